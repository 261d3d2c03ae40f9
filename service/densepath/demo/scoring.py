"""The demo's own scores of its models, in plain transformers and fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from densepath.demo.task import Example
from densepath.demo.training import IGNORED, encode

_BATCH = 128
_LONGEST_ANSWER = 16  # tokens; a longer answer is wrong


def response_logprobs(
    model: PreTrainedModel, examples: Sequence[Example], tokenizer: Any
) -> list[NDArray[np.float32]]:
    """The log-probability of each response token, EOS included, in nats: one float32 [T] per example."""
    logp_N_T = []
    for start in range(0, len(examples), _BATCH):
        ids_N_T, label_N_T = encode(examples[start : start + _BATCH], tokenizer)
        with torch.inference_mode():
            logp_N_T_V = model(ids_N_T, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        of_token_N_T = logp_N_T_V.gather(2, ids_N_T[:, 1:, None])[..., 0]
        for logp_T, label_T in zip(of_token_N_T, label_N_T[:, 1:], strict=True):
            logp_N_T.append(logp_T[label_T != IGNORED].numpy())
    return logp_N_T


def exact_match(
    model: PreTrainedModel, examples: Sequence[Example], tokenizer: Any, *, sample: bool, seed: int = 0
) -> float:
    """The share of examples that the model answers with the right response and EOS, sampled or greedily."""
    right = 0
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        texts = [
            tokenizer.apply_chat_template(item.messages, add_generation_prompt=True, tokenize=False)
            for item in batch
        ]
        prompts = tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + start)
            ids_N_T = model.generate(
                prompts["input_ids"],
                attention_mask=prompts["attention_mask"],
                do_sample=sample,
                max_new_tokens=_LONGEST_ANSWER,
                **({"top_k": 0} if sample else {}),
            )
        answers = tokenizer.batch_decode(ids_N_T[:, prompts["input_ids"].shape[1] :])
        right += sum(
            answer.startswith(item.response + tokenizer.eos_token)
            for answer, item in zip(answers, batch, strict=True)
        )
    return right / len(examples)

"""The model under SFT, and its checkpoints as model directories in Hugging Face form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import align_special_tokens

from densepath.trainer.sft.settings import SftSettings
from densepath.trainer.sft.snapshots import Parameters, restore


def load_tokenizer(directory: Path) -> Any:
    """The fast tokenizer of a model directory."""
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def load_trainable(settings: SftSettings) -> Any:
    """The model to train: fp32, or adapters in fp32 on a frozen base."""
    frozen_in_bf16 = settings.bf16 and settings.lora_rank is not None
    model = _load(settings.base, torch.bfloat16 if frozen_in_bf16 else torch.float32)
    return model if settings.lora_rank is None else _with_adapters(model, settings.lora_rank)


def write_checkpoint(settings: SftSettings, parameters: Parameters, directory: Path) -> None:
    """Write the base model with the trained `parameters` in it, adapters merged, and the tokenizer.

    The dtype is the one in which the base is stored. If the EOS ids of the configs lack that of the
    tokenizer, which SFT teaches, it is added.
    """
    model, tokenizer = _load(settings.base, "auto"), load_tokenizer(settings.base)
    if parameters and settings.lora_rank is not None:
        model = _with_adapters(model, settings.lora_rank)
    restore(model, parameters)
    if parameters and settings.lora_rank is not None:
        model = model.merge_and_unload()
    align_special_tokens(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _load(directory: Path, dtype: torch.dtype | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, trust_remote_code=False, local_files_only=True
    )


def _with_adapters(model: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    # Every linear layer except the head, because TRL reads the weight of the head without its adapter.
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)

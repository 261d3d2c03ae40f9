"""Rollouts: vLLM and transformers sample from the policy, and from the one that was handed over last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from densepath.trainer.rollouts.engines import RolloutEngine, build_generator
from densepath.trainer.types import Rollout, RolloutGenerator
from trainer.talkers import EOS_IDS

LONGEST = 12
PROMPTS = [[7, 8, 9], list(range(20, 60)), [7, 8, 9], [100]] * 4
SEEDS = list(range(len(PROMPTS)))


def build(kind: RolloutEngine, directory: Path) -> RolloutGenerator:
    return build_generator(
        kind, directory, max_new_tokens=LONGEST, eos_ids=frozenset(EOS_IDS), max_model_len=256
    )


def in_order(rollouts: RolloutGenerator, seeds: list[int] | None = SEEDS) -> list[Rollout]:
    found = sorted(rollouts.generate(PROMPTS, seeds), key=lambda one: one.index)
    assert [one.index for one in found] == list(range(len(PROMPTS)))
    return found


@pytest.fixture(
    scope="module", params=[RolloutEngine.TRANSFORMERS, pytest.param("vllm", marks=pytest.mark.engine)]
)
def rollouts(request: pytest.FixtureRequest, ending_pair: tuple[Path, Path]) -> Iterator[RolloutGenerator]:
    built = build(RolloutEngine(request.param), ending_pair[0])
    yield built
    built.close()


def log_probabilities(directory: Path, prompt: list[int], response: tuple[int, ...]) -> np.ndarray:
    """The oracle: one sequence, no cache, fp32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([[*prompt, *response]])
    with torch.inference_mode():
        logp_L_V = model(ids).logits[0].log_softmax(-1)
    return logp_L_V[torch.arange(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt) :]].numpy()


def difference(directory: Path, found: list[Rollout]) -> float:
    return max(
        float(np.abs(np.array(one.logp_T) - log_probabilities(directory, prompt, one.response_ids)).max())
        for one, prompt in zip(found, PROMPTS, strict=True)
    )


def test_ids_as_sampled_with_their_eos_and_log_probabilities(
    rollouts: RolloutGenerator, ending_pair: tuple[Path, Path], say_difference: Callable[[str, float], None]
) -> None:
    rollouts.load_weights(load_file(ending_pair[0] / "model.safetensors").items())
    found = in_order(rollouts)
    for one in found:
        assert one.ended == (one.response_ids[-1] in EOS_IDS)
        assert not set(one.response_ids[:-1]) & set(EOS_IDS)
        assert one.ended or len(one.response_ids) == LONGEST
        assert one.logp_T is not None
        assert len(one.logp_T) == len(one.response_ids)
    assert sum(one.ended for one in found) > 0
    off = difference(ending_pair[0], found)
    say_difference(f"log-probabilities of {type(rollouts).__name__}", off)
    assert off <= 2e-5
    assert in_order(rollouts) == found, "the same prompts and seeds give the same ids"
    others = in_order(rollouts, [seed + 1000 for seed in SEEDS])
    assert [one.response_ids for one in others] != [one.response_ids for one in found]
    assert found[0].response_ids != found[2].response_ids, "rollouts of one prompt differ by their seeds"


def test_weights_are_exchanged_in_place(rollouts: RolloutGenerator, ending_pair: tuple[Path, Path]) -> None:
    sft, reference = ending_pair
    rollouts.load_weights(load_file(sft / "model.safetensors").items())
    before = in_order(rollouts)
    rollouts.load_weights(load_file(reference / "model.safetensors").items())
    assert difference(reference, in_order(rollouts)) <= 2e-5
    assert difference(sft, in_order(rollouts)) > 1e-2
    rollouts.load_weights(load_file(sft / "model.safetensors").items())
    assert in_order(rollouts) == before, "nothing of the other weights is left, in a cache or elsewhere"


def test_greedy_is_the_likeliest_token(rollouts: RolloutGenerator, ending_pair: tuple[Path, Path]) -> None:
    rollouts.load_weights(load_file(ending_pair[0] / "model.safetensors").items())
    model = AutoModelForCausalLM.from_pretrained(ending_pair[0], dtype=torch.float32)
    one = in_order(rollouts, None)[1]
    with torch.inference_mode():
        logit_L_V = model(torch.tensor([[*PROMPTS[1], *one.response_ids]])).logits[0]
    assert tuple(logit_L_V.argmax(-1)[len(PROMPTS[1]) - 1 : -1].tolist()) == one.response_ids


def test_samples_follow_the_distribution(rollouts: RolloutGenerator, ending_pair: tuple[Path, Path]) -> None:
    """First tokens of 2000 samples against their probabilities: chi-square, ten likeliest and the rest."""
    rollouts.load_weights(load_file(ending_pair[0] / "model.safetensors").items())
    count = 2000
    drawn = Counter(one.response_ids[0] for one in rollouts.generate([[7, 8, 9]] * count, list(range(count))))
    model = AutoModelForCausalLM.from_pretrained(ending_pair[0], dtype=torch.float32)
    with torch.inference_mode():
        p_V = model(torch.tensor([[7, 8, 9]])).logits[0, -1].softmax(-1)
    top = p_V.topk(10)
    expected = [*(count * top.values).tolist(), count * (1 - float(top.values.sum()))]
    seen = [drawn[int(token)] for token in top.indices]
    seen.append(count - sum(seen))
    chi_square = sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True))
    assert chi_square < 35  # 10 degrees of freedom: one in ten thousand is above

"""The probes are what would have shown each fault: both sides of every edge that a config names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from densepath.verification.probes import AFTER, MAX_PROBE_TOKENS, Probe, Probes, choose_probes


def chosen(config: dict[str, Any], **options: Any) -> Probes:
    facts = {"vocab_size": 320, "context_length": 1024, "tokens_per_step": 256} | options
    return choose_probes((config, {}), **facts)


def named(probes: Probes, words: str) -> Probe:
    (probe,) = (probe for probe in probes.probes if words in probe.name)
    return probe


def test_every_pair_gets_the_common_ones() -> None:
    probes = chosen({})
    short, single = named(probes, "a short sequence"), named(probes, "a single token to score")
    assert len(short.sequence.token_ids_L) < 32
    assert len(single.sequence.positions_T) == 1
    assert named(probes, "a single token before").sequence.positions_T[0] == 1
    rollouts = [probe.sequence for probe in probes.probes if "rollout" in probe.name]
    assert len(rollouts) > 2
    shared = {tuple(rollout.token_ids_L[: rollout.positions_T[0]]) for rollout in rollouts}
    assert len(shared) == 1, "rollouts share their prompt"
    assert len(next(iter(shared))) >= 64, "a prompt fills blocks of the KV cache"


@pytest.mark.parametrize(
    "config",
    [
        {"sliding_window": 48},
        {"text_config": {"attention_chunk_size": 48}},
        {"layers": [{"sliding_window": 48}]},
    ],
)
def test_a_window_gets_a_longer_sequence(config: dict[str, Any]) -> None:
    sequence = named(chosen(config), "the window of 48 tokens").sequence
    assert len(sequence.token_ids_L) > 48
    after = sequence.positions_T[sequence.positions_T > 48]
    assert len(after) >= AFTER, "what lies beyond the window is scored"


def test_both_sides_of_a_rope_s_border_are_scored() -> None:
    probes = chosen({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 256}})
    within, beyond = named(probes, "as long as original_max"), named(probes, "longer than original_max")
    assert len(within.sequence.token_ids_L) == 256
    assert len(beyond.sequence.token_ids_L) > 256


def test_a_border_that_no_served_sequence_reaches_needs_no_probe() -> None:
    probes = chosen({"original_max_position_embeddings": 2048, "sliding_window": 4096})
    assert not any("original_max" in probe.name or "window" in probe.name for probe in probes.probes)
    assert probes.left_out == ()


def test_what_is_too_long_to_probe_is_said() -> None:
    probes = chosen({"sliding_window": MAX_PROBE_TOKENS}, context_length=2 * MAX_PROBE_TOKENS)
    assert probes.left_out == (f"a sequence longer than the window of {MAX_PROBE_TOKENS} tokens",)


def test_a_chunk_s_edge_is_crossed_by_one_sequence_or_by_several() -> None:
    one = named(chosen({}), "over the edge of a chunk (256 tokens)").sequence
    assert {255, 256, 257} <= set(one.positions_T.tolist())
    several = [p.sequence for p in chosen({}, context_length=100).probes if "edge of a step" in p.name]
    assert sum(len(sequence.token_ids_L) for sequence in several) > 256
    assert all(len(sequence.token_ids_L) == 100 for sequence in several)


@pytest.mark.parametrize("context_length", [2, 3, 16, 64, 1024])
def test_probes_can_be_scored_at_any_context_length(context_length: int) -> None:
    config = {"sliding_window": 1, "original_max_position_embeddings": 1}
    probes = chosen(config, context_length=context_length, tokens_per_step=64).probes
    assert probes
    for probe in probes:
        ids, positions = probe.sequence.token_ids_L, probe.sequence.positions_T
        assert len(ids) <= context_length
        assert 0 <= ids.min() <= ids.max() < 320
        assert 1 <= positions[0] <= positions[-1] < len(ids)
        assert (np.diff(positions) > 0).all()


def test_the_same_probes_every_time() -> None:
    config = {"sliding_window": 48}
    for one, other in zip(chosen(config).probes, chosen(config).probes, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.sequence.token_ids_L, other.sequence.token_ids_L)

"""The sequences that an engine is verified with, chosen from the configs of the two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from densepath.sequences import Sequence

#: Names in configs for the longest distance over which a layer attends.
WINDOWS = frozenset({"sliding_window", "sliding_window_size", "attention_chunk_size", "window_size"})
#: Names in configs for a length beyond which positions are treated differently.
BORDERS = frozenset({"original_max_position_embeddings", "floor_scale"})
#: A longer probe would cost more than it can show. It is left out, and the verdict reports this.
MAX_PROBE_TOKENS = 20_000
#: How many tokens are scored after an edge, so that a fault beyond it affects more than one or two tokens.
AFTER = 24
#: The prompt fills a few blocks of any KV cache, so that its rollouts share them.
SHARED_PROMPT_TOKENS = 100
ROLLOUTS = 4


@dataclass(frozen=True)
class Probe:
    """A sequence, with a short description as its name."""

    name: str
    sequence: Sequence


@dataclass(frozen=True)
class Probes:
    """All probes of a pair, and the names of those that are left out because they are too long."""

    probes: tuple[Probe, ...]
    left_out: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """The tokens of all probes."""
        return sum(len(probe.sequence.token_ids_L) for probe in self.probes)


def choose_probes(
    configs: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    vocab_size: int,
    context_length: int,
    tokens_per_step: int,
) -> Probes:
    """The probes of two models, from their config.json.

    Args:
        configs: config.json of the SFT and of the reference.
        vocab_size: ids are drawn from 0 to `vocab_size` - 1.
        context_length: tokens of the longest sequence that will be served.
        tokens_per_step: tokens after which the engine cuts a sequence or a batch into chunks.
    """
    builder = _Builder(vocab_size, context_length)
    builder.add("a short sequence", 16, (9, 16))
    builder.add("a sequence with a single token to score", 6, (5, 6))
    builder.add("a sequence with a single token before the first scored one", 13, (1, 13))
    builder.add("a sequence scored in several places", 96, (8, 16), (40, 41), (80, 96))
    builder.add_rollouts()
    for window in sorted(_values(configs, WINDOWS)):
        length = window + 1 + AFTER
        builder.add(f"a sequence longer than the window of {window} tokens", length, (window - 4, length))
    borders = ((name, border) for name in BORDERS for border in _values(configs, {name}))
    for field, border in sorted(borders):
        what = f"{field} ({border} tokens)"
        builder.add(f"a sequence as long as {what}", border, (2, 10), (border - 8, border))
        longer = border + AFTER
        builder.add(f"a sequence longer than {what}", longer, (2, 10), (border - 8, longer))
    builder.add_chunk_edge(tokens_per_step)
    return Probes(tuple(builder.probes), tuple(builder.left_out))


class _Builder:
    def __init__(self, vocab_size: int, context_length: int) -> None:
        self._random = np.random.default_rng(2510_02493)
        self._vocab_size = vocab_size
        self._context_length = context_length
        self.probes: list[Probe] = []
        self.left_out: list[str] = []

    def add(self, name: str, length: int, *spans: tuple[int, int]) -> None:
        """Add a random sequence of `length` tokens, scored at half-open spans, if such a length is served."""
        if length > min(self._context_length, MAX_PROBE_TOKENS):
            if length <= self._context_length:
                self.left_out.append(name)
            return
        positions_T = np.concatenate([np.arange(max(1, low), min(high, length)) for low, high in spans])
        if not len(positions_T):
            return
        self.probes.append(Probe(name, Sequence(self._ids(length), np.unique(positions_T))))

    def add_rollouts(self) -> None:
        """Add responses to one prompt. All but the first find it in the prefix cache."""
        prompt_ids = self._ids(min(SHARED_PROMPT_TOKENS, self._context_length // 2))
        for rollout in range(ROLLOUTS):
            room = self._context_length - len(prompt_ids)
            token_ids_L = np.concatenate((prompt_ids, self._ids(min(6 + 5 * rollout, room))))
            positions_T = np.arange(len(prompt_ids), len(token_ids_L))
            self.probes.append(
                Probe(f"rollout {rollout + 1} of one prompt", Sequence(token_ids_L, positions_T))
            )

    def add_chunk_edge(self, tokens_per_step: int) -> None:
        """Add what does not fit in one step: one sequence, or several if the context is shorter."""
        length = tokens_per_step + AFTER
        if length <= self._context_length:
            edge = f"a sequence over the edge of a chunk ({tokens_per_step} tokens)"
            self.add(edge, length, (tokens_per_step - 8, length))
            return
        length, count = self._context_length, tokens_per_step // self._context_length + 1
        for number in range(count):
            name = f"sequence {number + 1} of {count}, as long as the context, over the edge of a step"
            self.add(name, length, (max(1, length - AFTER), length))

    def _ids(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return self._random.integers(0, self._vocab_size, count, dtype=np.int64)


def _values(configs: tuple[Mapping[str, Any], ...], names: Set[str]) -> set[int]:
    """All integers above 0 under one of the names, at any depth."""
    return {value for config in configs for value in _walk(config, names)}


def _walk(node: Any, names: Set[str]) -> Iterator[int]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name in names and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value
            else:
                yield from _walk(value, names)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value, names)

"""Scores of the probes by the engine, and how far they are from transformers' and from each other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from densepath.engine.scorer import Scored, Scorer
from densepath.errors import DensepathError, InvalidPairError
from densepath.verification.probes import Probe
from densepath.verification.verdict import Difference

Float32 = NDArray[np.float32]
FLOAT32 = "float32"
#: float32 against float32: what differs is the order of sums.
FLOAT32_LIMIT = 1e-3
#: In 16 bits, a difference may be so many times transformers' own largest 16-bit one, over all tokens …
LARGEST_RATIO = 3.0
#: … and the mean over a probe so many times transformers' own, over that probe or over all tokens, the larger
#: of the two, where the probe has enough tokens for a mean.
MEAN_RATIO = 2.5
MEAN_TOKENS = 8

#: How the engine scored: what it wrote before, and what it was asked for at once, must not change a score.
Rounds = Mapping[str, list[Scored]]


@dataclass(frozen=True)
class Limit:
    """Nats that a log-probability of one model may be off."""

    largest: float
    mean_N: tuple[float, ...]  # over each probe of at least MEAN_TOKENS tokens


async def score_rounds(scorer: Scorer, probes: tuple[Probe, ...]) -> dict[str, list[Scored]]:
    """Score all probes alone and together, cold and with the prefix cache.

    Raises InvalidPairError that names the probe where the engine gives no number.
    """

    async def score(probe: Probe, cold: bool) -> Scored:
        try:
            scored = await scorer.score(probe.sequence, cold=cold)
        except DensepathError as error:
            raise InvalidPairError(
                f"the engine cannot score {probe.name}: {error.message}; the pair is not served"
            ) from error
        for model, logp_T in (("sft", scored.logp_sft_T), ("reference", scored.logp_reference_T)):
            if len(logp_T) != len(probe.sequence.positions_T) or not np.isfinite(logp_T).all():
                raise InvalidPairError(
                    f"the engine gives no finite log-probability of the {model} on {probe.name}; the pair "
                    "is not served"
                )
        return scored

    rounds: dict[str, list[Scored]] = {}
    for cold in (True, False):
        state = "cold" if cold else "with the prefix cache"
        rounds[f"together and {state}"] = list(
            await asyncio.gather(*(score(probe, cold) for probe in probes))
        )
        rounds[f"alone and {state}"] = [await score(probe, cold) for probe in probes]
    return rounds


def largest_noise(rounds: Rounds) -> float:
    """The largest difference of the engine from itself, in nats, over all rounds and both models."""
    return max(
        (
            float(np.abs(a - b).max())
            for one, other in combinations(rounds.values(), 2)
            for x, y in zip(one, other, strict=True)
            for a, b in ((x.logp_sft_T, y.logp_sft_T), (x.logp_reference_T, y.logp_reference_T))
        ),
        default=0.0,
    )


def derive_limit(dtype: str, oracle: Mapping[str, list[Float32]]) -> Limit:
    """What one model may be off, from transformers' own answers in float32 and in `dtype`."""
    if dtype == FLOAT32:
        return Limit(FLOAT32_LIMIT, (FLOAT32_LIMIT,) * len(oracle[FLOAT32]))
    off_N_T = [np.abs(a.astype(np.float64) - b) for a, b in zip(oracle[dtype], oracle[FLOAT32], strict=True)]
    off = np.concatenate(off_N_T)
    means = (max(off.mean(), off_T.mean()) for off_T in off_N_T)
    return Limit(
        largest=FLOAT32_LIMIT + LARGEST_RATIO * float(off.max()),
        mean_N=tuple(FLOAT32_LIMIT + MEAN_RATIO * float(mean) for mean in means),
    )


def judge(
    model: str,
    rounds: Mapping[str, list[Float32]],
    want: list[Float32],
    probes: tuple[Probe, ...],
    limit: Limit,
) -> Difference:
    """The difference of one model's log-probabilities from transformers' float32, over all rounds.

    Raises InvalidPairError, which names the model, the probe and the round, where it is past the limit.
    """
    worst = 0.0
    total, count = 0.0, 0
    failed: tuple[float, str, float] | None = None
    for how, got in rounds.items():
        for probe, got_T, want_T, mean_limit in zip(probes, got, want, limit.mean_N, strict=True):
            off_T = np.abs(got_T.astype(np.float64) - want_T)
            largest, mean = float(off_T.max()), float(off_T.mean())
            worst, total, count = max(worst, largest), total + float(off_T.sum()), count + len(off_T)
            # Asked so that what is not a number fails.
            within = largest <= limit.largest and (len(off_T) < MEAN_TOKENS or mean <= mean_limit)
            if not within and (failed is None or largest > failed[0]):
                failed = (largest, f"{probe.name}, {how}", mean_limit)
    if failed:
        raise InvalidPairError(
            f"the engine does not compute the {model} as transformers does: log p is off by up to "
            f"{failed[0]:.2g} nats on {failed[1]}, where {limit.largest:.2g} are allowed and "
            f"{failed[2]:.2g} in the mean; the pair is not served"
        )
    return Difference(worst, total / count)

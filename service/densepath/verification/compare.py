"""The engine's scores of the probes, and how much they differ from transformers' and from each other."""

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
#: Limit for float32 against float32, in nats: only the order of sums differs.
FLOAT32_LIMIT = 1e-3
#: The limit in 16 bits for a single token: this many times the largest difference between transformers in 16
#: bits and in float32, over all tokens.
LARGEST_RATIO = 3.0
#: The limit in 16 bits for the mean over a probe: this many times transformers' own mean difference, over
#: that probe or over all tokens, whichever is larger. It applies to probes with enough tokens for a mean.
MEAN_RATIO = 2.5
MEAN_TOKENS = 8

#: How the engine scored → its scores. Neither the cache nor the other requests of a batch may change a score.
Rounds = Mapping[str, list[Scored]]


@dataclass(frozen=True)
class Limit:
    """How far a log-probability of one model may be off, in nats."""

    largest: float
    mean_N: tuple[float, ...]  # over each probe of at least MEAN_TOKENS tokens


async def score_rounds(scorer: Scorer, probes: tuple[Probe, ...]) -> dict[str, list[Scored]]:
    """Score all probes alone and together, cold and with the prefix cache.

    Raises InvalidPairError, which names the probe, if the engine gives no number.
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
    """The largest difference between any two rounds of the engine, in nats, over both models."""
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
    """The limit for one model, from transformers' own answers in float32 and in `dtype`."""
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

    Raises InvalidPairError, which names the model, the probe and the round, if it is larger than the limit.
    """
    worst = 0.0
    total, count = 0.0, 0
    failed: tuple[float, str, float] | None = None
    for how, got in rounds.items():
        for probe, got_T, want_T, mean_limit in zip(probes, got, want, limit.mean_N, strict=True):
            off_T = np.abs(got_T.astype(np.float64) - want_T)
            largest, mean = float(off_T.max()), float(off_T.mean())
            worst, total, count = max(worst, largest), total + float(off_T.sum()), count + len(off_T)
            # Written so that NaN fails.
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

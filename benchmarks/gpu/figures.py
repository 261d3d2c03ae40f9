"""How far both log-probabilities and the reward are off, in nats, and how far they may be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from oracle import Logprobs

Both = tuple[Logprobs, Logprobs]  # of the SFT, of the reference

#: fp32: twenty times what fp32 itself costs, and a thirtieth of what TF32 costs.
FP32_MEAN, FP32_LARGEST = 1e-4, 1e-3
#: 16 bits: that many times as far off as transformers in the same dtype. A largest one is a matter of luck.
MEAN_TIMES, LARGEST_TIMES = 1.5, 3.0


@dataclass(frozen=True)
class Difference:
    """Largest and mean differences from transformers in fp32."""

    largest_sft: float
    largest_reference: float
    largest_r: float
    mean_r: float


def difference(got: Both, want: Both) -> Difference:
    """Over all tokens of all sequences; NaN where a number is NaN."""
    off_sft, off_reference = (_off(got[side], want[side]) for side in (0, 1))
    off_r = np.abs(off_sft - off_reference)
    return Difference(
        largest_sft=float(np.abs(off_sft).max()),
        largest_reference=float(np.abs(off_reference).max()),
        largest_r=float(off_r.max()),
        mean_r=float(off_r.mean()),
    )


def _off(got: Logprobs, want: Logprobs) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if [len(each) for each in got] != [len(each) for each in want]:
        raise ValueError("not every scored token has an answer")
    return np.concatenate([g.astype(np.float64) - w for g, w in zip(got, want, strict=True)])


def within_limits(found: Difference, dtype: str, transformers_16_bit: Difference) -> bool:
    """Whether an engine of this dtype is as right as the dtype allows."""
    if dtype == "float32":
        mean, largest = FP32_MEAN, FP32_LARGEST
    else:
        mean = MEAN_TIMES * transformers_16_bit.mean_r
        largest = LARGEST_TIMES * transformers_16_bit.largest_r
    each = (found.largest_r, found.largest_sft, found.largest_reference)
    return found.mean_r <= mean and all(value <= largest for value in each)  # NaN is within no limit

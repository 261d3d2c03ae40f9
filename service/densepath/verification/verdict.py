"""What is reported about a verification."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The difference between two engines, in nats, over all scored tokens of the probes."""

    largest: float
    mean: float


@dataclass(frozen=True)
class Verdict:
    """Whether the engine was compared with transformers, and the result. If it was not, `reason` says why."""

    verified: bool
    reason: str | None = None
    at: int | None = None  # seconds since 1970
    against: str | None = None  # a phrase with transformers' version, the dtype and the device
    sft: Difference | None = None  # of log p
    reference: Difference | None = None
    reward: Difference | None = None
    limit: float | None = None  # nats: the largest difference of log p of the sft that is accepted
    reference_limit: float | None = None  # the same for the reference
    noise: float | None = None  # nats: the largest difference between two scores of a token by the engine
    probes: int = 0
    tokens: int = 0
    left_out: tuple[str, ...] = ()  # the names of probes that would have been too long

    def line(self) -> str:
        """The verdict in one line."""
        if not self.verified or self.sft is None or self.reference is None or self.reward is None:
            return f"not verified: {self.reason}"
        return (
            f"verified against {self.against}: log p of the sft differs by at most {self.sft.largest:.1e}, "
            f"of the reference by {self.reference.largest:.1e}, the reward by {self.reward.largest:.1e} nats "
            f"({self.probes} probes, limits {self.limit:.1e} and {self.reference_limit:.1e})"
        )


def not_verified(reason: str) -> Verdict:
    """The verdict on an engine that was not compared with anything."""
    return Verdict(verified=False, reason=reason)

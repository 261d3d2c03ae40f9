"""What is measured, written down before the full run: cases, arms, and the comparisons that count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from densepath.demo.recipe import Mixture

RIGHT = Mixture(1.0, 0.0, 0.0, 0.0, 0.0)
IMPERFECT = Mixture(0.60, 0.30, 0.06, 0.02, 0.02)

SEEDS = range(10)
LENGTH = 6  # of words and answers, EOS not counted
LENGTHS = (4, 8, 16)  # of the length sweep, beside LENGTH
SWEEP_SEEDS = range(5)  # of the sweeps


class Reward(StrEnum):
    """What a token is credited with, before the KL term."""

    DENSE = "dense"  # r_t = log p_sft - log p_ref
    SUM = "sum"  # the sum of r_t, at the last token
    SHUFFLED = "shuffled"  # r_t of another response of the batch
    SFT = "log p_sft"  # no reference


@dataclass(frozen=True)
class Dpr:
    """An on-policy arm. `reference` is a share of the SFT's samples: 0 is the base model."""

    name: str
    gamma: float = 1.0
    kl: float = 0.5
    reference: float = 0.5
    reward: Reward = Reward.DENSE


@dataclass(frozen=True)
class Continued:
    """SFT on the same demonstrations, gone on with for as many steps and samples as DPR has."""

    name: str
    at_dpr_rate: bool


@dataclass(frozen=True)
class Decoded:
    """No training: tokens from pi_SFT (pi_SFT / pi_ref)^alpha."""

    name: str
    alpha: float
    reference: float


Arm = Dpr | Continued | Decoded

PAPER = Dpr("DPR γ 1, half reference (the paper's)")
HALF_0 = Dpr("DPR γ 0, half reference", gamma=0.0)
BASE_1 = Dpr("DPR γ 1, base reference", reference=0.0)
BASE_0 = Dpr("DPR γ 0, base reference", gamma=0.0, reference=0.0)
SUM_HALF = Dpr("the sum as one reward, half reference", reward=Reward.SUM)
SUM_BASE = Dpr("the sum as one reward, base reference", reference=0.0, reward=Reward.SUM)
SHUFFLED = Dpr("rewards shuffled over sequences, γ 1, half", reward=Reward.SHUFFLED)
NO_REFERENCE = Dpr("no reference: log p_sft as reward, γ 1", reward=Reward.SFT)
CONTINUED = Continued("SFT continued, same rate", at_dpr_rate=False)
CONTINUED_FAST = Continued("SFT continued, DPR's rate", at_dpr_rate=True)

LENGTH_ARMS: tuple[Arm, ...] = (PAPER, HALF_0, SUM_HALF, BASE_1, BASE_0, SUM_BASE)
MAIN_ARMS: tuple[Arm, ...] = (
    PAPER,
    HALF_0,
    BASE_1,
    BASE_0,
    CONTINUED,
    CONTINUED_FAST,
    SUM_HALF,
    SUM_BASE,
    SHUFFLED,
    NO_REFERENCE,
    Decoded("decoding α 1, half reference, no training", 1.0, 0.5),
    Decoded("decoding α 2, half reference, no training", 2.0, 0.5),
    Decoded("decoding α 1, base reference, no training", 1.0, 0.0),
    Decoded("decoding α 2, base reference, no training", 2.0, 0.0),
)
#: Sweeps change one thing of the paper's form; the reference is swept with gamma 0 too.
GAMMAS = (HALF_0, Dpr("γ 0.5", gamma=0.5), Dpr("γ 0.9", gamma=0.9), PAPER)
KLS = (Dpr("b 0", kl=0.0), Dpr("b 0.2", kl=0.2), PAPER, Dpr("b 1", kl=1.0))
REFERENCES = (BASE_1, Dpr("reference 25 %", reference=0.25), PAPER, Dpr("reference 75 %", reference=0.75))
REFERENCES_0 = (
    BASE_0,
    Dpr("reference 25 %, γ 0", gamma=0.0, reference=0.25),
    HALF_0,
    Dpr("reference 75 %, γ 0", gamma=0.0, reference=0.75),
)

#: The comparisons decided on beforehand: the first less the second.
COMPARISONS: tuple[tuple[Arm, Arm], ...] = (
    (PAPER, CONTINUED),
    (PAPER, CONTINUED_FAST),
    (BASE_0, CONTINUED),
    (BASE_0, CONTINUED_FAST),
    (PAPER, SUM_HALF),
    (HALF_0, SUM_HALF),
    (BASE_1, SUM_BASE),
    (BASE_0, SUM_BASE),
    (PAPER, SHUFFLED),
    (PAPER, NO_REFERENCE),
    (BASE_1, PAPER),
    (BASE_0, HALF_0),
)


@dataclass(frozen=True)
class Case:
    """What the demonstrations are, and when SFT stops: after brief steps, or at its validation minimum."""

    name: str
    words: str
    demonstrations: Mixture
    stops_at_minimum: bool
    dpr_steps: int
    arms: tuple[Arm, ...]
    swept: tuple[Arm, ...] = ()  # more arms, on fewer seeds


def _more(*groups: tuple[Arm, ...]) -> tuple[Arm, ...]:
    """What the sweeps have beyond the main arms."""
    return tuple(dict.fromkeys(arm for group in groups for arm in group if arm not in MAIN_ARMS))


_MINIMUM = "SFT at its validation minimum, imperfect"
A = Case("A", "brief SFT, clean demonstrations", RIGHT, False, 40, MAIN_ARMS)
B = Case("B", "brief SFT, imperfect", IMPERFECT, False, 40, MAIN_ARMS, _more(REFERENCES))
C = Case("C", _MINIMUM, IMPERFECT, True, 80, MAIN_ARMS, _more(GAMMAS, KLS, REFERENCES, REFERENCES_0))
CASES = (A, B, C)
LENGTH_CASE = replace(C, arms=LENGTH_ARMS, swept=())


@dataclass(frozen=True)
class Unit:
    """What is measured and written at a time: one task, one length of its words, one seed."""

    task: str
    length: int
    seed: int

    @property
    def name(self) -> str:
        """Names its file."""
        return f"{self.task}-{self.length}-seed-{self.seed:02}"

    @property
    def cases(self) -> tuple[Case, ...]:
        """All three, or the one of the length sweep."""
        return CASES if self.length == LENGTH else (LENGTH_CASE,)


TASKS = ("letters", "digits")
LENGTH_TASK = "digits"


def units(tasks: list[str], seeds: list[int], lengths: list[int]) -> Iterator[Unit]:
    """In the order of a run: both tasks seed by seed, then the longer and shorter answers."""
    for seed in seeds:
        for task in tasks:
            yield Unit(task, LENGTH, seed)
    for seed in seeds:
        if LENGTH_TASK in tasks:
            for length in lengths:
                yield Unit(LENGTH_TASK, length, seed)

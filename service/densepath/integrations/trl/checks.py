"""Refuses TRL settings that would sum, misplace or ignore per-token advantages, and gives the reason."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import trl
from packaging.version import Version
from transformers import PreTrainedTokenizerBase

from densepath.errors import InvalidRequestError
from densepath.integrations import IntegrationError
from densepath.rewards.kl import KL_COEFFICIENT, LEAST_KL_COEFFICIENT

#: The oldest release for which this adapter is made and tested. Its loss takes advantages (B, T).
OLDEST = Version("1.16.0")


class Rule(NamedTuple):
    """The values of a setting that keep one advantage per token, and why other values do not."""

    setting: str
    accepted: tuple[object, ...]
    why: str


_BOTH = (Rule("reward_weights", (None,), "the dense reward is the only one, and its weight is 1"),)

GRPO_RULES = (
    *_BOTH,
    Rule("scale_rewards", ("none",), "it divides by the deviation of summed rewards"),
    Rule("multi_objective_aggregation", ("sum_then_normalize",), "it normalises summed rewards"),
    Rule(
        "importance_sampling_level",
        ("token",),
        "one ratio for a whole completion makes its gradient that of the summed advantages",
    ),
    Rule(
        "loss_type",
        ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"),
        "it weighs a whole completion by the sign of its one advantage",
    ),
    Rule(
        "off_policy_mask_threshold", (None,), "it keeps whole completions by the sign of their one advantage"
    ),
)
RLOO_RULES = (
    *_BOTH,
    Rule("normalize_advantages", (False,), "it normalises one advantage per completion"),
    Rule("reward_clip_range", (None,), "it clips summed rewards"),
)


def check_release() -> None:
    """Raises IntegrationError for a release of TRL that is too old."""
    if Version(trl.__version__) < OLDEST:
        raise IntegrationError(f"TRL {trl.__version__} is installed: this adapter needs {OLDEST} or newer")


def check_settings(args: Any, rules: Sequence[Rule]) -> None:
    """Raises InvalidRequestError for the first setting of `args` that a rule forbids."""
    for rule in rules:
        value = getattr(args, rule.setting)
        if value not in rule.accepted:
            names = " or ".join(repr(each) for each in rule.accepted)
            raise InvalidRequestError(
                f"{rule.setting}={value!r} does not work with one reward per token: {rule.why}; set {names}",
                param=rule.setting,
            )


def warn_of_kl(beta: float) -> None:
    """Warn of a KL coefficient so small that the reward rises while the policy collapses (docs/LOG.md)."""
    if beta < LEAST_KL_COEFFICIENT:
        warnings.warn(
            f"beta={beta:g}: with less than {LEAST_KL_COEFFICIENT:g}, dense rewards have risen while the "
            f"policy got worse; start with {KL_COEFFICIENT:g}",
            stacklevel=4,
        )


def check_gamma(gamma: float) -> None:
    """Raises InvalidRequestError outside 0 to 1."""
    if not 0 <= gamma <= 1:
        raise InvalidRequestError("gamma must be from 0 to 1", param="gamma")


def check_processing_class(processing_class: object) -> None:
    """Raises InvalidRequestError for anything but a tokenizer: the pair's models read no images."""
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise InvalidRequestError(
            "dense rewards are only for text: processing_class must be a tokenizer", param="processing_class"
        )


def check_columns(columns: Mapping[str, Any], refused: Sequence[str] = ("image", "images")) -> None:
    """Raises InvalidRequestError for a batch with a column that changes what the policy sees of a prompt."""
    for name in refused:
        if columns.get(name) is not None:
            raise InvalidRequestError(
                f"the prompts of this batch are not only text: it has {name}", param=f"columns.{name}"
            )

"""What the adapters need of TRL's internals. When an upgrade moves one of these, the test names it."""

from __future__ import annotations

import inspect
import tomllib
from typing import Any

import pytest
import trl
from packaging.requirements import Requirement
from packaging.version import Version

from densepath.integrations.trl.checks import GRPO_RULES, OLDEST, RLOO_RULES
from docs.blocks import ROOT

BOTH = pytest.mark.parametrize("trainer", [trl.GRPOTrainer, trl.RLOOTrainer])


def test_the_installed_release_is_within_the_bounds() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (bound,) = (each for each in map(Requirement, extras["train"]) if each.name == "trl")
    assert Version(trl.__version__) in bound.specifier
    assert "<" in str(bound.specifier), "the internals below may move with any release"
    assert Version(trl.__version__) >= OLDEST


@BOTH
def test_generation_and_scoring_go_through_the_methods_that_dense_credit_extends(trainer: Any) -> None:
    for name in ("_generate", "_generate_and_score_completions", "_get_per_token_logps_and_entropies"):
        assert callable(getattr(trainer, name, None)), f"{trainer.__name__} has no {name} any more"
    assert "self._generate(" in inspect.getsource(trainer._generate_and_score_completions)
    assert list(inspect.signature(trainer._generate).parameters)[:2] == ["self", "prompts"]


@BOTH
def test_the_loss_reads_the_advantages_of_the_batch(trainer: Any) -> None:
    source = inspect.getsource(trainer._generate_and_score_completions)
    for key in ('"advantages"', '"completion_ids"', '"completion_mask"'):
        assert key in source, f"{trainer.__name__} no longer gives the loss {key}"
    assert 'inputs["advantages"]' in inspect.getsource(trainer._compute_loss)


def test_the_loss_of_grpo_takes_one_advantage_per_token() -> None:
    assert "advantages.dim() == 1" in inspect.getsource(trl.GRPOTrainer._compute_loss)


def test_the_log_probabilities_of_rloo_have_the_arguments_that_the_loss_gives() -> None:
    parameters = inspect.signature(trl.RLOOTrainer._get_per_token_logps_and_entropies).parameters
    assert {"logits_to_keep", "compute_entropy", "compute_aux_loss"} <= set(parameters)


@pytest.mark.parametrize(
    ("config", "rules"), [(trl.GRPOConfig, GRPO_RULES), (trl.RLOOConfig, RLOO_RULES)], ids=["GRPO", "RLOO"]
)
def test_every_setting_that_a_rule_reads_is_there(config: Any, rules: Any) -> None:
    fields = set(config.__dataclass_fields__)
    assert [rule.setting for rule in rules if rule.setting not in fields] == []


def test_sft_takes_rows_that_are_tokenised_already() -> None:
    assert "skip_prepare_dataset" in inspect.getsource(trl.SFTTrainer)
    assert callable(trl.SFTTrainer._send_telemetry), "telemetry is sent by something else now"

"""The alert rules: valid, each tested both ways by promtool, each with its heading in the runbook."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

from containers.files import ROOT, read_yaml
from deploy.expressions import DEPLOY, RULES
from promtool import promtool

ALERTS = [rule["alert"] for rule in RULES]
RUNBOOK = "docs/operations/runbook.md"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="make test-tools installs it")


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    assert f"{len(RULES)} rules found" in promtool(
        "check", "config", DEPLOY / "prometheus" / "prometheus.yml"
    )
    promtool("check", "rules", "--lint=all", "--lint-fatal", DEPLOY / "prometheus" / "alerts.yml")


@needs_promtool
def test_every_alert_fires_and_is_quiet_as_its_cases_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", DEPLOY / "prometheus" / "alerts.test.yml")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    cases: list[dict[str, Any]] = [
        case
        for group in read_yaml("deploy/prometheus/alerts.test.yml")["tests"]
        for case in group["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(ALERTS)


def test_every_alert_has_its_heading_in_the_runbook_in_the_same_order() -> None:
    text = (ROOT / RUNBOOK).read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ALERTS
    for rule, section in zip(RULES, re.split(r"^## .*$", text, flags=re.MULTILINE)[1:], strict=True):
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{rule['alert'].lower()}"
        for part in ("**Means:**", "**Look:**", "**Do:**"):
            assert part in section, (rule["alert"], part)


@pytest.mark.parametrize("rule", RULES, ids=ALERTS)
def test_an_alert_says_how_bad_what_and_where(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    summary, description = (rule["annotations"][name] for name in ("summary", "description"))
    assert len(summary) < 140
    assert summary != description
    for text in (summary, description):
        assert "$labels" in text, "it names the replica or the job"

"""The expressions of the board and of the alerts, and the names in them."""

from __future__ import annotations

import json
import re
from typing import Any

from containers.files import ROOT, read_yaml

DEPLOY = ROOT / "deploy"
BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "densepath.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule for group in read_yaml("deploy/prometheus/alerts.yml")["groups"] for rule in group["rules"]
]
#: What the board's variables stand for, where there is one service and one trainer.
VARIABLES = {"$job": ".+", "$instance": ".+", "$trainer": ".+", "$__rate_interval": "30s"}


def board_expressions() -> dict[str, str]:
    """Each query of the board with its variables filled in, by its panel's title and its letter."""
    found = {}
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression
            found[f"{panel['title']}, {target['refId']}"] = expression
    return found


def selectors(expression: str) -> list[str]:
    """Each vector selector of an expression, without its range."""
    return re.findall(r"\b(?:densepath_[a-z_]+|up)\b(?:\{[^}]*\})?", expression)


def metric_names(expression: str) -> set[str]:
    """The metrics of an expression."""
    return {selector.partition("{")[0] for selector in selectors(expression)}

"""The Grafana board: readable without its authors, and of metrics that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.bodies import GOOD
from api.running import make_service, pair, running
from densepath.pair.pair import Pair
from densepath.trainer.reinforce.metrics import PrometheusSink, Sinks
from deploy.expressions import BOARD, PANELS, RULES, board_expressions, metric_names
from trainer.runs import make_row

__all__ = ["pair"]  # a fixture of this folder
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@pytest.fixture(scope="module")
def exported(pair: Pair) -> Iterator[set[str]]:
    """The names that a service which has scored and failed, and a trainer which has made a step, export."""
    with running(make_service(pair)) as served, Sinks([sink := PrometheusSink(0)]):
        served.score(GOOD)
        served.score()
        sink.step(make_row(10))
        pages = [
            served.client.get("/metrics").text,
            httpx.get(f"http://127.0.0.1:{sink.port}/metrics", trust_env=False).text,
        ]
        yield {
            sample.name
            for page in pages
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }


def queried() -> set[str]:
    """The metrics of the board, its variables included, and of the alerts."""
    texts = [*board_expressions().values(), *(rule["expr"] for rule in RULES)]
    texts += [v["definition"] for v in BOARD["templating"]["list"] if v["type"] == "query"]
    return set().union(*map(metric_names, texts))


def test_every_expression_names_metrics_that_are_exported(exported: set[str]) -> None:
    assert queried() - exported == {"up"}, "which Prometheus makes itself"


def test_what_is_exported_is_looked_at(exported: set[str]) -> None:
    ours = {re.sub(r"_(count|sum)$", "_bucket", name) for name in exported if name.startswith("densepath_")}
    unseen = {"token_reward_nats", "loss", "learning_rate"}  # constants, and others' near doubles
    assert ours - queried() == {f"densepath_trainer_{name}" for name in unseen}


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_says_what_it_shows_and_how_to_read_it(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 40
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == DATASOURCE
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    for one, other in combinations(BOARD["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one["title"], other["title"])
        assert one["id"] != other["id"]
        assert one["title"] != other["title"]
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in BOARD["panels"])


def test_the_board_is_found_again_and_hangs_on_no_data_source() -> None:
    assert BOARD["uid"] == "densepath"
    assert BOARD.get("id") is None, "Grafana gives one"
    assert BOARD["schemaVersion"] >= 39  # Grafana 11
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "trainer"]
    assert variables["datasource"]["type"] == "datasource"
    assert all(variables[name]["datasource"] == DATASOURCE for name in ("job", "instance", "trainer"))
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Service", "Trainer"]


def test_the_runbook_names_panels_that_there_are() -> None:
    from containers.files import ROOT

    text = " ".join((ROOT / "docs" / "operations" / "runbook.md").read_text().split())
    titles = {panel["title"] for panel in PANELS}
    named = set(re.findall(r'"([A-Z][^"]+?),?"', text))
    assert named
    assert named <= titles

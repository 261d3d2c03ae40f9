"""What the pages list is what the code has: settings, errors, routes, metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_type_hints

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.running import Running, make_service, pair, running
from densepath.commands.settings import ServeSettings
from densepath.errors import BY_CODE
from densepath.pair.pair import Pair
from densepath.trainer.reinforce.metrics import PrometheusSink
from docs.blocks import ROOT

__all__ = ["pair"]

API = (ROOT / "docs/api.md").read_text("utf-8")
OPERATIONS = (ROOT / "docs/operations/index.md").read_text("utf-8")
TRAINER = (ROOT / "docs/trainer.md").read_text("utf-8")


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Running]:
    with running(make_service(pair)) as service:
        yield service


def rows(page: str, begin: str) -> list[list[str]]:
    """The cells of every row of a table whose first cell begins so."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {begin}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def written(default: Any) -> str:
    """A default as the table has it."""
    if default is None:
        return ""
    return "off" if default is False else str(getattr(default, "value", default))


def test_the_settings_are_those_of_serve() -> None:
    hints = get_type_hints(ServeSettings, include_extras=True)
    settings = [
        [f"`--{f.name.replace('_', '-')}`", written(f.default), hints[f.name].__metadata__[0].help]
        for f in fields(ServeSettings)
    ]
    assert rows(OPERATIONS, "`--") == settings, "docs/operations/index.md has another table"


def test_the_errors_are_those_of_the_code() -> None:
    table = {code.strip("`"): int(status) for status, code, *_ in rows(API, "4") + rows(API, "5")}
    assert table == {code: error.status for code, error in BY_CODE.items()}


def test_the_routes_are_those_of_the_service(served: Running) -> None:
    document = served.client.get("/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    table = {
        name
        for method in ("GET", "POST", "PUT")
        for row in rows(API, f"`{method}")
        for name in re.findall(r"`(\S+ /\S*)`", row[0])
    }
    assert table - {"GET /"} == routes


def names(text: str) -> set[str]:
    """The names of metrics as a query has them."""
    families = text_string_to_metric_families(text)
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def test_the_metrics_are_those_of_the_service(served: Running) -> None:
    served.client.get("/livez")
    listed = {row[0].strip("`") for row in rows(API, "`densepath_")}
    assert listed == names(served.client.get("/metrics").text)


def test_the_metrics_of_the_trainer_are_its_own() -> None:
    sink = PrometheusSink(0)
    try:
        text = httpx.get(f"http://127.0.0.1:{sink.port}/metrics").text
    finally:
        sink.close()
    assert {row[0].strip("`") for row in rows(TRAINER, "`densepath_trainer_")} == names(text)

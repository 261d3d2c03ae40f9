"""Prometheus scrapes a real service and a real trainer, and every query of board and alerts has data."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.expressions import BOARD, RULES, board_expressions, selectors
from deploy.processes import (
    COMMANDS,
    Prometheus,
    cache_path,
    densepath,
    process,
    prometheus,
    until,
)
from live import Demo, free_port
from promtool import check_metrics

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="make test-tools installs it"),
]

CHAT = {"messages": [{"role": "user", "content": "reverse: planet"}], "append_eos": True}
#: So that a step takes well under a second here.
SHORT = ("--rollout-engine=transformers", "--prompts-per-step=8")


@dataclass
class Stack:
    """What `docker compose --profile train up` starts, Grafana left out."""

    service: str
    trainer: str
    prometheus: Prometheus


@pytest.fixture(scope="module")
def stack(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    service, trainer_port, port = demo.url.removeprefix("http://"), free_port(), free_port()
    trainer = f"127.0.0.1:{trainer_port}"
    changes = {
        f"={cache_path()}/densepath": f"={demo.sft.parent.parent}",
        f"={cache_path()}/runs": f"={folder}",
        "http://densepath:8000": demo.url,
        "=8001": f"={trainer_port}",
    }
    log = folder / "trainer.log"
    with (
        process(densepath("trainer", changes, *SHORT), log, {"OMP_NUM_THREADS": "1"}),
        prometheus({"densepath:8000": service, "trainer:8001": trainer}, port, folder) as scraping,
        traffic(demo.url),
    ):
        until(lambda: scraping.numbers("densepath_trainer_step > 1"), "no step", log, within=240)
        yield Stack(demo.url, f"http://{trainer}", scraping)


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """Right and wrong answers to one prompt, and a mistake, several times a second."""
    enough = threading.Event()

    def send() -> None:
        items = [{**CHAT, "response": response} for response in ("tenalp", "tenxlp", "planet")]
        with httpx.Client(base_url=url, timeout=60) as client:
            while not enough.wait(0.2):
                assert client.post("/v1/rewards", json={"items": items}).status_code == 200
                assert client.post("/v1/rewards", json={"items": [{}]}).status_code == 422

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            yield
        finally:
            enough.set()
        sending.result()


def health_of_targets(stack: Stack) -> dict[str, str]:
    targets = stack.prometheus.get("targets")["activeTargets"]
    return {target["labels"]["job"]: target["health"] for target in targets}


def test_everything_is_scraped_and_follows_prometheus_rules(stack: Stack) -> None:
    up = {"densepath": "up", "densepath-trainer": "up", "prometheus": "up"}
    until(lambda: health_of_targets(stack) == up, f"not all of {up} are scraped", stack.prometheus.log)
    for url in (stack.service, stack.trainer):
        check_metrics(httpx.get(f"{url}/metrics").text)


@pytest.mark.parametrize("query", board_expressions())
def test_every_query_of_the_board_has_data(query: str, stack: Stack) -> None:
    assert stack.prometheus.until_numbers(board_expressions()[query])


def test_every_variable_of_the_board_has_values(stack: Stack) -> None:
    found: dict[str, Any] = {}
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, label = (
                variable["definition"].removeprefix("label_values(").removesuffix(")").rsplit(",", 1)
            )
            matched = stack.prometheus.get("series", **{"match[]": series.replace("$job", ".+")})
            found[variable["name"]] = {each[label.strip()] for each in matched}
    assert found["job"] == {"densepath"}
    assert found["instance"] == {stack.service.removeprefix("http://")}
    assert found["trainer"] == {stack.trainer.removeprefix("http://")}


def test_every_alert_is_evaluated_on_series_that_there_are_and_none_fires(stack: Stack) -> None:
    loaded = [rule for group in stack.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in loaded] == [rule["alert"] for rule in RULES]
    until(
        lambda: all(
            rule["health"] == "ok"
            for group in stack.prometheus.get("rules")["groups"]
            for rule in group["rules"]
        ),
        "a rule that cannot be evaluated",
        stack.prometheus.log,
    )
    # A 5xx other than 503 is a fault: there is none to be counted.
    healthy = {'densepath_http_requests_total{status=~"5..", status!="503"}'}
    for selector in {each for rule in RULES for each in selectors(rule["expr"])} - healthy:
        assert stack.prometheus.until_numbers(selector)
    assert stack.prometheus.numbers('ALERTS{alertstate="firing"}') == []


def test_the_service_s_own_command_serves_the_demo(demo: Demo, tmp_path: Path) -> None:
    """The engine apart, which the variable of the environment replaces: `demo` runs it."""
    assert sorted(COMMANDS["densepath"]) == sorted(["serve", "--demo", "--host", "0.0.0.0", "--port", "8000"])
    port, log = free_port(), tmp_path / "log"
    cache = demo.sft.parent.parent.parent
    env = {"XDG_CACHE_HOME": str(cache), "DENSEPATH_ENGINE": "fake"}
    with process(densepath("densepath", {"8000": str(port)}), log, env):
        url = f"http://127.0.0.1:{port}"
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200, "the service is away", log)
        answer = httpx.post(f"{url}/v1/rewards", json={"items": [{**CHAT, "response": "tenalp"}]})
        assert answer.status_code == 200

"""The sinks of a run's figures: Prometheus over real HTTP, trackers behind stand-in modules."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from densepath.errors import InvalidRequestError
from densepath.trainer.reinforce.metrics import PrometheusSink, Sinks, open_sinks
from trainer.runs import make_row

PREFIX = "densepath_trainer_"
GAUGES = {
    "reward_nats": "reward",
    "token_reward_nats": "reward_token",
    "kl_nats": "kl",
    "objective_nats": "objective",
    "response_tokens": "length",
    "entropy_nats": "entropy",
    "gradient_norm": "grad_norm",
    "loss": "loss",
    "learning_rate": "lr",
    "logp_gap_nats": "logp_gap",
    "step": "step",
}


@pytest.fixture
def prometheus() -> Iterator[PrometheusSink]:
    sink = PrometheusSink(0)
    with Sinks([sink]):
        yield sink


def scrape(sink: PrometheusSink) -> dict[str, float]:
    text = httpx.get(f"http://127.0.0.1:{sink.port}/metrics", trust_env=False).raise_for_status().text
    return {
        sample.name.removeprefix(PREFIX) + "".join(f"[{value}]" for value in sample.labels.values()): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(PREFIX)
    }


def test_gauges_are_of_the_last_step_and_counters_of_all(prometheus: PrometheusSink) -> None:
    rows = [make_row(step) for step in (10, 11)]
    for row in rows:
        prometheus.step(row)
    found = scrape(prometheus)
    for name, key in GAUGES.items():
        assert found[name] == pytest.approx(rows[1][key]), name
    assert found["responses_total"] == 128
    assert found["truncated_responses_total"] == rows[0]["truncated"] + rows[1]["truncated"] > 0
    assert found["held_out[greedy]"] == rows[0]["held_out"]["greedy"], "the last check holds until the next"
    for phase in ("rollout", "rewards", "forward_backward", "weight_update"):
        spent = sum(row["seconds"][phase] for row in rows)
        assert found[f"phase_seconds_total[{phase}]"] == pytest.approx(spent)
    assert "phase_seconds_total[total]" not in found, "no second is counted twice"
    assert not [name for name in found if name.endswith("_created")]


def test_what_a_row_lacks_is_no_number(prometheus: PrometheusSink) -> None:
    prometheus.step({**make_row(1, held_out=False), "grad_norm": 7.0})
    lacking = make_row(2, held_out=False)
    del lacking["grad_norm"]
    prometheus.step(lacking | {"entropy": None})
    found = scrape(prometheus)
    assert found["gradient_norm"] == 7.0
    assert not [name for name in found if name.startswith("held_out")]


def test_waiting_shows_while_the_service_is_away(prometheus: PrometheusSink) -> None:
    sinks = Sinks([prometheus])
    seen = [scrape(prometheus)["waiting"]]
    for away in (True, False):
        sinks.waiting(away)
        seen.append(scrape(prometheus)["waiting"])
    assert seen == [0, 1, 0]


def test_the_port_and_the_thread_are_given_back() -> None:
    before = set(threading.enumerate())
    sink = PrometheusSink(0)
    (server,) = set(threading.enumerate()) - before
    with Sinks([sink]):
        scrape(sink)
    assert not server.is_alive()
    with pytest.raises(httpx.ConnectError):
        scrape(sink)
    again = PrometheusSink(sink.port)
    again.close()


def test_a_port_in_use_is_an_error_in_words(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidRequestError, match=f"--metrics-port {port} cannot be opened"):
            open_sinks([], port, tmp_path)


@pytest.mark.parametrize("port", [None, 0])
def test_nothing_is_opened_unasked(port: int | None, tmp_path: Path) -> None:
    before = threading.active_count()
    with open_sinks([], port, tmp_path) as sinks:
        sinks.step(make_row(1))
        assert threading.active_count() == before


class StandIn(ModuleType):
    """A tracker's module that notes what it is asked."""

    def __init__(self, name: str, fault: Exception | None = None) -> None:
        super().__init__(name)
        self.calls: list[tuple[Any, ...]] = []
        self.fault = fault

    def init(self, *, project: str, name: str) -> StandIn:
        self.calls.append(("init", project, name))
        return self

    def log(self, figures: dict[str, float], *, step: int) -> None:
        if self.fault:
            raise self.fault
        self.calls.append(("log", step, figures))

    def finish(self) -> None:
        self.calls.append(("finish",))

    def SummaryWriter(self, directory: str, *, purge_step: int) -> StandIn:
        self.calls.append(("writer", directory, purge_step))
        return self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.calls.append(("scalar", name, value, step))

    def close(self) -> None:
        self.calls.append(("close",))


def install(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, fault: Exception | None = None
) -> StandIn:
    stand_in = StandIn(name, fault)
    monkeypatch.setitem(sys.modules, module, stand_in)
    return stand_in


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_figure_once(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tracker = install(monkeypatch, name, name)
    run = tmp_path / "strings"
    row = make_row(10)
    with open_sinks([name, name], None, run) as sinks:
        sinks.step(row)
        sinks.waiting(True)
    init, log, *rest = tracker.calls
    assert init == ("init", "densepath", "strings")
    assert rest == [("finish",)]
    _, step, figures = log
    assert step == 10
    assert figures["held_out/greedy"] == row["held_out"]["greedy"]
    assert figures["seconds/rollout"] == row["seconds"]["rollout"]
    assert figures["reward"] == row["reward"]
    assert "step" not in figures
    assert len(figures) == len(row) - 3 + len(row["held_out"]) + len(row["seconds"])
    assert not run.exists(), "the run's directory is the journal's to make"


def test_tensorboard_hides_steps_that_are_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    board = install(monkeypatch, "tensorboard", "torch.utils.tensorboard")
    with open_sinks(["tensorboard"], None, tmp_path / "run") as sinks:
        assert board.calls == []
        sinks.step(make_row(21))
        sinks.step(make_row(22))
    assert board.calls[0] == ("writer", str(tmp_path / "run" / "tensorboard"), 21)
    scalars = [call for call in board.calls if call[0] == "scalar"]
    assert ("scalar", "reward", make_row(22)["reward"], 22) in scalars
    assert board.calls[-1] == ("close",)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_an_error_before_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(InvalidRequestError, match=f"--log-to {name} needs the package {name}"):
        open_sinks([name], None, tmp_path)


def test_an_unknown_tracker_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="the known ones are tensorboard, wandb, trackio"):
        open_sinks(["mlflow"], None, tmp_path)


def test_what_was_open_is_closed_where_the_next_cannot_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = install(monkeypatch, "wandb", "wandb"), install(monkeypatch, "trackio", "trackio")

    def refuse(**_: object) -> StandIn:
        raise OSError("no login")

    monkeypatch.setattr(second, "init", refuse)
    with pytest.raises(InvalidRequestError, match="--log-to trackio cannot start: no login"):
        open_sinks(["wandb", "trackio"], None, tmp_path)
    assert first.calls[-1] == ("finish",)


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = install(monkeypatch, "wandb", "wandb", OSError("the network is gone"))
    whole = install(monkeypatch, "trackio", "trackio")
    with caplog.at_level(logging.WARNING), open_sinks(["wandb", "trackio"], None, tmp_path) as sinks:
        for step in (1, 2, 3):
            sinks.step(make_row(step))
    assert [call[1] for call in whole.calls if call[0] == "log"] == [1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "wandb failed at step 1 and gets no more steps"
    ]
    assert broken.calls[-1] == ("finish",)

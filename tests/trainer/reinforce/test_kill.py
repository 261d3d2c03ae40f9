"""A run that is killed again and again ends with the same bits as one that never was."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from densepath.files import LOCK, InUseError
from densepath.trainer.errors import ServiceAwayError
from densepath.trainer.reinforce.run import train
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.rollouts.engines import RolloutEngine
from live import free_port, start, wait_ready
from trainer.killed import run, spawn

STEPS, KILLS = 24, 20


def settings(directory: Path, url: str, sft: Path, prompts: Path, **changed: Any) -> TrainSettings:
    """A short run in which everything that has a state has one: guards, held-out checks, two checkpoints."""
    common = TrainSettings(
        sft=sft,
        prompts=prompts,
        run=directory,
        url=url,
        steps=STEPS,
        prompts_per_step=4,
        rollouts=2,
        max_new_tokens=24,
        learning_rate=1e-4,
        kl=1.0,
        rollout_engine=RolloutEngine.TRANSFORMERS,
        held_out=prompts,
        check_every=10,
        save_every=2,
        keep=2,
        wait_seconds=60.0,
    )
    return replace(common, **changed)


def rows(directory: Path) -> list[dict[str, Any]]:
    """The figures of every step, without what a clock says."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def weights(directory: Path) -> bytes:
    return (directory / "final" / "model.safetensors").read_bytes()


@pytest.mark.timeout(600)
def test_row_27_killed_at_random_moments(
    service: str, ending_pair: tuple[Path, Path], prompts_file: Path, tmp_path: Path
) -> None:
    unbroken = settings(tmp_path / "unbroken", service, ending_pair[0], prompts_file)
    process = spawn(run, unbroken, tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()[-2000:]

    rng, kills, run_count = random.Random(0), 0, 0
    while kills < KILLS:
        run_count += 1
        broken = replace(unbroken, run=tmp_path / f"broken-{run_count}")
        kills += kill_until_done(broken, rng, tmp_path / "log")
        assert weights(broken.run) == weights(unbroken.run)
        assert rows(broken.run) == rows(unbroken.run)
    assert len(rows(unbroken.run)) == STEPS
    assert (tmp_path / "log").read_text().count("resuming after step") >= 5
    assert weights(unbroken.run) != (ending_pair[0] / "model.safetensors").read_bytes()


def kill_until_done(broken: TrainSettings, rng: random.Random, log: Path) -> int:
    """Kill the run at random moments, later and later, until it ends by itself; how often it was killed."""
    kills, longest = 0, 0.6
    while True:
        process = spawn(run, broken, log)
        process.join(rng.uniform(0.0, longest))
        process.kill()  # says nothing to one that has ended
        process.join()
        if process.exitcode == 0:
            return kills
        assert process.exitcode == -signal.SIGKILL, log.read_text()[-2000:]
        kills, longest = kills + 1, longest * 1.05


def test_two_trainers_on_one_run(ending_pair: tuple[Path, Path], prompts_file: Path, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    given = settings(tmp_path / "run", nobody, ending_pair[0], prompts_file)
    process = spawn(run, given, tmp_path / "log")
    try:
        until(lambda: holder(given.run) == str(process.pid), process)
        with pytest.raises(InUseError, match=f"run is in use by process {process.pid}: wait until"):
            train(given, Console(quiet=True))
    finally:
        process.kill()
        process.join()
    with pytest.raises(ServiceAwayError):  # the first was killed, and holds nothing
        train(replace(given, wait_seconds=0.1), Console(quiet=True))
    assert list(given.run.iterdir()) == []


def test_more_steps_later_are_the_same_as_at_once(
    service: str, ending_pair: tuple[Path, Path], prompts_file: Path, tmp_path: Path
) -> None:
    at_once = settings(tmp_path / "a", service, ending_pair[0], prompts_file, steps=6, held_out=None)
    parts = replace(at_once, run=tmp_path / "b", steps=3)
    for each in (at_once, parts, replace(parts, steps=6)):
        process = spawn(run, each, tmp_path / "log")
        process.join()
        assert process.exitcode == 0, (tmp_path / "log").read_text()[-2000:]
    assert weights(at_once.run) == weights(parts.run)
    assert rows(at_once.run) == rows(parts.run)


@pytest.mark.timeout(600)
def test_row_26_a_service_killed_in_the_middle_loses_and_doubles_no_step(
    service: str, ending_pair: tuple[Path, Path], prompts_file: Path, tmp_path: Path
) -> None:
    clean = settings(tmp_path / "clean", service, ending_pair[0], prompts_file, steps=12)
    process = spawn(run, clean, tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()[-2000:]

    port, log, served = free_port(), tmp_path / "trainer", tmp_path / "service"
    pair = ("--sft", ending_pair[0], "--reference", ending_pair[1], "--engine", "transformers")
    hit = replace(clean, run=tmp_path / "hit", url=f"http://127.0.0.1:{port}")
    one = {"OMP_NUM_THREADS": "1"}
    first, url = start(*pair, log=served, env=one, port=port)
    wait_ready(first, url, served)
    process = spawn(run, hit, log)
    try:
        until(lambda: len(metrics(hit.run)) >= 3, process)
        first.kill()
        first.wait()
        until(lambda: "the service has not answered" in log.read_text(), process)
        steps = len(metrics(hit.run))
        second, url = start(*pair, log=served, env=one, port=port)
        try:
            process.join()
        finally:
            second.kill()
            second.wait()
    finally:
        process.kill()
        first.kill()
    assert process.exitcode == 0, log.read_text()[-2000:]
    assert steps < 12, "it was hit in the middle"
    assert "the service answers again" in log.read_text()
    assert rows(hit.run) == rows(clean.run)
    assert weights(hit.run) == weights(clean.run)


def holder(directory: Path) -> str:
    lock = directory / LOCK
    return lock.read_text().partition(" ")[0] if lock.exists() else ""


def metrics(directory: Path) -> list[str]:
    path = directory / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def until(true: Callable[[], bool], process: BaseProcess) -> None:
    """Wait for a condition, as long as the process lives."""
    while not true():
        process.join(0.02)
        assert process.exitcode is None, "it ended before"

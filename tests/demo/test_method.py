"""`densepath demo` from nothing, cut short: every command runs for real, and the table is what was found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

import forked
from densepath.demo import Recipe, method
from densepath.demo.verdict import NAMES, Compared, evaluation_table
from densepath.pair.runs import read_sft_run
from densepath.trainer.evaluate.statistics import Estimate

SHORT = replace(
    method.RECIPE,
    pretraining_steps=300,
    sft_steps=16,
    training_demonstrations=512,
    validation_demonstrations=64,
)


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_method_runs_from_base_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 3, "BATCH": 16, "HELD_OUT": 40}.items():
        monkeypatch.setattr(method, name, value)
    monkeypatch.setattr(method, "DPR", ("--gamma", "0", "--kl", "0.3", "--learning-rate", "1e-4"))
    directory, log = tmp_path / "demo", tmp_path / "said"
    with log.open("w") as file:
        said = Console(file=file, width=200)
        with forked.new_interpreters():
            compared = method.run_demo(directory, said, said, SHORT)
    printed = log.read_text()
    for command in ("sft", "serve", "train", "report"):
        assert f"$ densepath {command}" in printed
    assert [one.prompts for one in compared] == [40, 360]
    assert compared[0].sentence() in printed
    run = read_sft_run(directory / "sft")
    assert [checkpoint.share for checkpoint in run.checkpoints] == [0.0, 0.5, 1.0]
    assert len((directory / "dpr" / "metrics.jsonl").read_text().splitlines()) == 3
    evaluation = json.loads((directory / "dpr" / "evaluation.json").read_text())
    assert evaluation == evaluation_table(compared)
    page = (directory / "dpr" / "report.html").read_text()
    assert evaluation["title"] in page
    left = [process.cmdline() for process in psutil.Process().children(recursive=True)]
    assert not [command for command in left if "serve" in command and str(directory / "sft") in command]


def compared(lead: tuple[float, float]) -> Compared:
    share = {name: Estimate(0.5, (0.4, 0.6)) for name in NAMES}
    others = {name: Estimate(sum(lead) / 2, lead) for name in ("sft", "continued")}
    return Compared("words", 100, {"greedy": share}, {"greedy": others})


@pytest.mark.parametrize(
    ("lead", "word"),
    [((0.01, 0.05), "ahead of"), ((-0.05, -0.01), "behind"), ((-0.01, 0.05), "not distinguishable from")],
)
def test_the_sentence_follows_from_the_intervals(lead: tuple[float, float], word: str) -> None:
    assert f"greedy, DPR is {word} SFT and SFT continued." in compared(lead).sentence()


def test_the_table_has_a_row_for_each_policy() -> None:
    described = evaluation_table([compared((0.01, 0.05))])
    assert len(described["rows"]) == len(NAMES)
    assert all(len(row) == len(described["columns"]) for row in described["rows"])
    assert described["rows"][0][-1] == "+3.0 [+1.0, +5.0]"


def test_no_prompt_stands_in_two_files(tmp_path: Path) -> None:
    files = method.write_files(tmp_path, Recipe())
    seen: dict[str, str] = {}
    for name in ("demonstrations", "validation", "prompts", "check", "held_out", "english"):
        for line in files[name].read_text().splitlines():
            content = json.loads(line)["messages"][0]["content"]
            assert seen.setdefault(content, name) == name, content
    assert len(seen) > 7000

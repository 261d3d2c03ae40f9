"""The pages' commands, programs and answers for real, against the demo pair in the real engine."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from densepath import Client
from docs.blocks import Block, blocks, commands, split_commands
from docs.elsewhere import COMMANDS, PYTHON, known
from docs.running import HERE, SMALL, run, words_of, write_files
from live import Demo, free_port, start, stop, wait_ready

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


def of(entry: str) -> list[str]:
    """The commands of the pages that an entry of SMALL is about, each once."""
    texts = dict.fromkeys(text for _, text in commands())
    found = [text for text in texts if known(text, [*SMALL, *COMMANDS]) == entry]
    assert found, f"no page has a command that begins with {entry!r}"
    return found


@pytest.fixture(scope="module")
def directory(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's data, and the pair that the page's `sft` has made of it."""
    directory = tmp_path_factory.mktemp("reader")
    write_files(directory)
    (command,) = of("densepath sft --base DIR")
    run(command, demo, directory, SMALL["densepath sft --base DIR"])
    return directory


@pytest.fixture(scope="module")
def trained(demo: Demo, directory: Path) -> Path:
    """The same, after the page's `train`."""
    (command,) = of("densepath train")
    run(command, demo, directory, SMALL["densepath train"])
    return directory


def test_probe_says_what_each_reference_promises(demo: Demo, directory: Path) -> None:
    (command,) = of("densepath probe")
    assert "promises" in run(command, demo, directory, SMALL["densepath probe"]).stdout


def test_a_file_is_scored_by_a_service(demo: Demo, directory: Path) -> None:
    (command,) = of("densepath score items.jsonl -o")
    assert "4 scored, 0 failed" in run(command, demo, directory).stderr
    assert (directory / "scores.parquet").stat().st_size


def test_a_file_is_scored_and_shown_without_one(demo: Demo, directory: Path) -> None:
    (command,) = of("densepath score items.jsonl --sft")
    done = run(command, demo, directory, SMALL["densepath score items.jsonl --sft"])
    assert "4 scored, 0 failed" in done.stderr
    assert "<|end|>" in done.stdout + done.stderr


def test_the_pair_is_served(
    demo: Demo, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    (command,) = of("densepath serve --pair run")
    small = SMALL["densepath serve --pair run"]
    options = words_of(command, demo, small)[4:]
    process, url = start(*options, log=tmp_path / "log", env=small.variables, port=free_port())
    try:
        wait_ready(process, url, tmp_path / "log")
        with Client(url) as client:
            assert client.pair()["sources"] == {"sft": "final", "reference": "share-0.50"}
        assert stop(process) == 0
    finally:
        process.kill()
        process.wait()


def test_checkpoints_are_compared(demo: Demo, trained: Path) -> None:
    (command,) = of("densepath eval")
    assert "dpr/final" in run(command, demo, trained, SMALL["densepath eval"]).stdout


def test_the_run_has_a_report(demo: Demo, trained: Path) -> None:
    (command,) = of("densepath report")
    run(command, demo, trained)
    assert "<title>" in (trained / "dpr" / "report.html").read_text()


def asked() -> list[Any]:
    """Each curl of a page, with the answer that stands behind it, if there is one."""
    found, every = [], blocks()
    for block, after in zip(every, [*every[1:], None], strict=True):
        if block.kind != "shell":
            continue
        curls = [text for text in split_commands(block.text) if text.startswith("curl")]
        texts = [text for text in curls if known(text, COMMANDS) is None]
        for text in texts:
            shown = after if text == texts[-1] and after and after.kind == "json" else None
            found.append(pytest.param(text, shown, id=f"{block.name}-{texts.index(text)}"))
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("command", "shown"), asked())
def test_curl_gets_the_answer_that_the_page_shows(
    command: str, shown: Block | None, demo: Demo, tmp_path: Path
) -> None:
    answer = json.loads(run(command, demo, tmp_path).stdout)
    if shown is None:
        assert "error" not in answer
    elif "…" in shown.text:  # shortened
        assert set(re.findall(r'"(\w+)":', shown.text)) <= set(re.findall(r'"(\w+)":', json.dumps(answer)))
    else:
        assert form(json.loads(shown.text.replace("\n", ""))) == form(answer)


def form(value: Any) -> Any:
    """What an answer is without its numbers: names and types, and of a list its first element."""
    match value:
        case dict():
            return {name: form(inner) for name, inner in value.items()}
        case [first, *_]:
            return [form(first)]
        case float():
            return float
    return type(value)


def programs() -> list[Any]:
    here = [block for block in blocks() if block.kind == "python" and not known(block.first, PYTHON)]
    return [pytest.param(block.text, id=block.name) for block in here]


@pytest.mark.parametrize("text", programs())
def test_a_program_of_a_page_runs(text: str, demo: Demo) -> None:
    exec(compile(text.replace(HERE, demo.url), "page", "exec"), {})


def test_an_answer_stands_behind_its_question() -> None:
    """A block of JSON is an answer, and its curl stands before it: nothing else is checked."""
    shown = {param.values[1].name for param in asked() if param.values[1]}
    assert {block.name for block in blocks() if block.kind == "json"} == shown

"""Every path of every command, wrong in every way: one sentence that names it, before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest

from api.running import Running, pair
from densepath import cli
from densepath.config import NAME
from faults.commands import DEMONSTRATION, Run, gated, run, served, write_items
from faults.permissions import like_any_user
from trainer.runs import write_run

__all__ = ["gated", "pair", "run", "served"]  # fixtures


FILE, CHECKPOINT, OUTPUT, DIRECTORY, ANY = "file", "checkpoint", "output", "directory", "any"

#: Of each command: a call that is right, and what each of its paths is.
PATHS: dict[str, tuple[list[str], dict[str, str]]] = {
    "serve": (
        ["--sft", "{sft}", "--reference", "{reference}", "--engine", "fake"],
        {
            "sft": CHECKPOINT,
            "reference": CHECKPOINT,
            "base": ANY,
            "pair": CHECKPOINT,
            "api_key_file": FILE,
            "admin_key_file": FILE,
            "pair_root": CHECKPOINT,
            "config": FILE,
        },
    ),
    "check": (
        ["--sft", "{sft}", "--reference", "{reference}"],
        {"sft": CHECKPOINT, "reference": CHECKPOINT, "base": ANY, "pair": CHECKPOINT, "config": FILE},
    ),
    "score": (
        ["{items}", "--output", "{tmp}/scored.jsonl", "--url", "{url}"],
        {
            "source": FILE,
            "output": OUTPUT,
            "sft": ANY,
            "reference": ANY,
            "base": ANY,
            "pair": ANY,
            "config": FILE,
        },
    ),
    "train": (
        ["--sft", "{sft}", "--prompts", "{items}", "--run", "{tmp}/run", "--url", "{url}"],
        {"sft": CHECKPOINT, "prompts": FILE, "held_out": FILE, "run": DIRECTORY, "config": FILE},
    ),
    "sft": (
        ["--base", "{sft}", "--demonstrations", "{demonstrations}", "--run", "{tmp}/run"],
        {
            "base": CHECKPOINT,
            "demonstrations": FILE,
            "validation": FILE,
            "run": DIRECTORY,
            "config": FILE,
        },
    ),
    "probe": (
        ["--sft", "{sft}", "--reference", "{reference}", "--prompts", "{items}"],
        {
            "sft": CHECKPOINT,
            "reference": CHECKPOINT,
            "prompts": FILE,
            "pair": CHECKPOINT,
            "output": OUTPUT,
            "config": FILE,
        },
    ),
    "eval": (
        ["{sft}", "--held-out", "{items}"],
        {
            "checkpoints": CHECKPOINT,
            "held_out": FILE,
            "output": OUTPUT,
            "answers": DIRECTORY,
            "config": FILE,
        },
    ),
    "report": (["{run}"], {"run": CHECKPOINT, "output": DIRECTORY}),
    "demo": ([], {"directory": DIRECTORY}),
}
#: Paths that are given without a flag.
ARGUMENTS = {("score", "source"), ("eval", "checkpoints"), ("report", "run")}
FAULTS = {
    FILE: ("missing", "a directory", "not readable"),
    CHECKPOINT: ("missing", "a file", "not readable"),
    OUTPUT: ("a directory", "in no directory", "in a read-only directory"),
    DIRECTORY: ("a file", "below a file", "in a read-only directory"),
    ANY: (),
}


def make_fault(fault: str, kind: str, tmp_path: Path) -> Path:
    """A path that is wrong in this way."""
    place = tmp_path / "wrong"
    place.mkdir()
    path = place / ("it.jsonl" if kind in (FILE, OUTPUT) else "it")
    if fault in ("a file", "below a file"):
        path.write_text("what was there")
    elif fault == "a directory" or (fault == "not readable" and kind == CHECKPOINT):
        path.mkdir()
    elif fault == "not readable":
        path.write_text("{}\n")
    if fault == "not readable":
        path.chmod(0)
    if fault == "in a read-only directory":
        place.chmod(0o500)
    if fault in ("below a file", "in no directory"):
        path = path / path.name
    return path


def is_path(hint: Any) -> bool:
    """Whether an option takes a path, or a name that may be one."""
    return "pathlib" in str(hint) or any(
        getattr(about, "metavar", None) == NAME for about in getattr(hint, "__metadata__", ())
    )


def test_every_path_of_every_command_is_in_the_table() -> None:
    found = {}
    for command in cli.app.registered_commands:
        assert command.callback is not None
        hints = get_type_hints(command.callback, include_extras=True)
        name = command.name or command.callback.__name__
        found[name] = {option for option, hint in hints.items() if is_path(hint)}
    assert found == {command: kinds.keys() for command, (_, kinds) in PATHS.items()}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `densepath train`."""
    return write_run(tmp_path_factory.mktemp("finished") / "run", steps=2)


@pytest.mark.parametrize(
    ("command", "name", "fault"),
    [
        (command, name, fault)
        for command, (_, kinds) in PATHS.items()
        for name, kind in kinds.items()
        for fault in FAULTS[kind]
    ],
)
def test_a_path_that_is_wrong_is_one_sentence(
    command: str,
    name: str,
    fault: str,
    served: Running,
    run: Run,
    pair_dirs: tuple[Path, Path],
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    words, kinds = PATHS[command]
    wrong = make_fault(fault, kinds[name], tmp_path)
    places = {
        "sft": pair_dirs[0],
        "reference": pair_dirs[1],
        "items": write_items(tmp_path / "items.jsonl", 3),
        "demonstrations": tmp_path / "demonstrations.jsonl",
        "url": f"http://127.0.0.1:{served.port}",
        "tmp": tmp_path,
        "run": finished_run,
    }
    places["demonstrations"].write_text(DEMONSTRATION)
    given = [word.format(**places) for word in words]
    if name == "pair":
        given = given[4:]  # instead of --sft and --reference
    flag = f"--{name.replace('_', '-')}"
    if (command, name) in ARGUMENTS:
        given[0] = str(wrong)
    elif flag in given:
        given[given.index(flag) + 1] = str(wrong)
    else:
        given += [flag, str(wrong)]
    with like_any_user():
        status, said = run(command, *given)
    assert status in (1, 2), said
    # A problem of a pair names the model, and not its directory.
    assert str(wrong.parent) in said or said.startswith(
        (f"error not a pair: {name}: ", f"not a pair: {name}: ")
    )
    if said.startswith("error "):
        assert said.count("\n") == 0, said
    if fault in ("a file", "below a file"):
        assert next((tmp_path / "wrong").iterdir()).read_text() == "what was there"

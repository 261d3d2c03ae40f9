"""Every command and every program of the pages: run, or named in elsewhere.py with the test that runs it."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import typer

from densepath import cli
from docs.blocks import PAGES, ROOT, Block, blocks, commands
from docs.elsewhere import COMMANDS, PYTHON, WORDS, known
from docs.running import HERE, SMALL

TABLES = {"COMMANDS": COMMANDS, "PYTHON": PYTHON, "WORDS": WORDS}
#: Languages of a fence that hold nothing to run.
PLAIN = {"text", "toml", "yaml"}
#: Of another tool's repository.
THEIRS = "examples/on_policy_distillation"


def is_accounted_for(command: str) -> bool:
    program, _, rest = command.partition(" ")
    if program == "curl":
        return HERE in rest  # test_running.py
    return program in ("make", "pytest") or known(command, [*SMALL, *COMMANDS]) is not None


def test_every_command_is_run_or_named() -> None:
    unknown = [f"{block.name}: {command}" for block, command in commands() if not is_accounted_for(command)]
    assert unknown == []


def test_every_block_is_of_a_known_kind() -> None:
    unknown = [
        f"{block.name}: {block.kind or 'indented'}: {block.first}"
        for block in blocks()
        if block.kind not in {"shell", "python", "json", *PLAIN}
        and not (block.kind == "" and known(block.first, WORDS))
    ]
    assert unknown == []


@pytest.mark.parametrize("table", [*TABLES, "SMALL"])
def test_no_entry_is_of_what_is_gone(table: str) -> None:
    texts = {
        "COMMANDS": [command for _, command in commands()],
        "SMALL": [command for _, command in commands()],
        "PYTHON": [block.first for block in blocks() if block.kind == "python"],
        "WORDS": [block.first for block in blocks() if block.kind == ""],
    }[table]
    entries = TABLES.get(table, SMALL)
    used = {known(text, entries) for text in texts}
    assert [entry for entry in entries if entry not in used] == []


def named_tests() -> list[str]:
    """Every test that a table or a page names."""
    in_tables = [where for table in TABLES.values() for where in table.values() if "::" in where]
    in_pages = [
        name for page in PAGES for name in re.findall(r"`(tests/[\w/.]+::\w+)`", page.read_text("utf-8"))
    ]
    return [*in_tables, *in_pages]


def test_every_test_that_is_named_is_there() -> None:
    def is_there(name: str) -> bool:
        path, _, test = name.partition("::")
        file = ROOT / path
        return file.is_file() and re.search(rf"^(async )?def {test}\(", file.read_text(), re.M) is not None

    assert len(named_tests()) > 40
    assert [name for name in named_tests() if not is_there(name)] == []


def test_every_target_of_make_is_there() -> None:
    targets = {command for _, command in commands() if command.startswith("make ")}
    assert "make serve" in targets
    for target in sorted(targets):
        done = subprocess.run(
            [*shlex.split(target), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_every_file_that_is_named_is_there() -> None:
    """Paths of the repository, in commands and in the text; a * stands for what tests are called."""
    path = re.compile(
        r"\b((?:tests|benchmarks|examples|locks|scripts|service|deploy|k8s)/[\w./*-]*\w|docker-compose[\w.-]*\.yml)"
    )
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in path.findall(page.read_text("utf-8"))
        if not (name.startswith(THEIRS) or any(ROOT.glob(name)) or any((ROOT / "benchmarks").glob(name)))
    ]
    assert missing == []


def options() -> dict[str, set[str]]:
    """The options of each command of `densepath`."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    return {
        name: {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for name, command in group.commands.items()
    }


def densepath_lines(page: Path) -> list[str]:
    """What stands behind `densepath` in commands and in code of the text."""
    spans = re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))
    typed = [command for block, command in commands() if ROOT / block.page == page]
    begins = re.compile(r"(?:^|-- )densepath ([a-z].*)")
    return [match[1] for line in [*spans, *typed] if (match := begins.search(line))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_option_of_densepath_is_one(page: Path) -> None:
    known_options = options()
    for line in densepath_lines(page):
        command, *words = line.split()
        assert command in known_options, f"densepath {line}"
        flags = {word.split("=")[0].rstrip("],|") for word in words if word.startswith("-")}
        assert flags - {"-"} <= known_options[command], f"densepath {line}"


def elsewhere_python() -> list[Block]:
    return [block for block in blocks() if block.kind == "python" and known(block.first, PYTHON)]


@pytest.mark.parametrize("block", elsewhere_python(), ids=lambda block: block.name)
def test_a_program_that_runs_elsewhere_compiles_and_its_names_exist(block: Block) -> None:
    text = re.sub(r",\s*…", "", block.text).replace("…", "...")
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and importlib.util.find_spec(node.module.split(".")[0])
        ):
            module = import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []

"""docs/reliability.md is the promise: each of its faults has a test, and each of its tests exists."""

from __future__ import annotations

import ast
import re

from docs.blocks import ROOT

PAGE = (ROOT / "docs/reliability.md").read_text("utf-8")
PROMISED, _, NOT_PROMISED = PAGE.partition("## What is not promised")
FAULTS = set(range(1, 52))
NUMBERED = re.compile(r"test_rows?_([0-9]{2}(?:_[0-9]{2})*)_[a-z]")


def numbers(test: str) -> set[int]:
    """The faults that are in the name of a test."""
    match = NUMBERED.match(test)
    return set() if match is None else {int(number) for number in match[1].split("_")}


def all_tests() -> set[tuple[str, str]]:
    """File and name of every test function."""
    return {
        (str(path.relative_to(ROOT)), node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def named(text: str) -> set[tuple[str, str]]:
    """File and name of every test that a text names."""
    return set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))


def test_every_fault_has_a_test_or_a_reason() -> None:
    reasons = {int(number) for number in re.findall(r"\(([0-9]+)\)\.\*\*", NOT_PROMISED)}
    tested = set().union(*(numbers(name) for _, name in all_tests()))
    promised = set().union(*(numbers(name) for _, name in named(PROMISED)))
    assert tested <= FAULTS
    assert tested | reasons == FAULTS
    assert promised == tested, "docs/reliability.md has no line for a fault that has a test"


def test_every_line_has_tests_that_exist_and_their_numbers() -> None:
    existing = all_tests()
    lines = [line for line in PROMISED.splitlines() if re.match(r"\|[ 0-9,]*\| ", line)]
    assert len(lines) > 90
    for line in lines:
        found = named(line)
        assert found, line
        assert found <= existing, line
        first = {int(number) for number in re.findall("[0-9]+", line.split("|")[1])}
        assert first == set().union(*(numbers(name) for _, name in found)), line

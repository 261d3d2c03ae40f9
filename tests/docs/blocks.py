"""The code blocks of the pages, fenced and indented, and the commands in those of a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Where a reader is told what to type; the site's other pages are made of these.
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
    ]
)
FENCE = re.compile(r"( *)```+ *([\w+-]*)")
SHELL = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:git|make|curl|docker|kubectl|densepath|python|pip|pytest|lm_eval|torchrun|uv"
    r"|promtool|prometheus|check-jsonschema|scripts/\w+) "
)
PYTHON = re.compile(r"(?:from \S+ import|import \w|\w+ = \w+\(|\w+\(.*=)")
LANGUAGES = {"sh": "shell", "bash": "shell", "console": "shell", "shell": "shell"}


@dataclass(frozen=True)
class Block:
    """`kind`: shell, python, json, a fence's own language; empty for an indented block of another kind."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def first(self) -> str:
        """Its first line that is no comment: what the tables know it by."""
        lines = (line.strip() for line in self.text.splitlines())
        return next((line for line in lines if line and not line.startswith("#")), "")

    @property
    def name(self) -> str:
        """Where a reader finds it."""
        return f"{self.page}:{self.line}"


@cache
def blocks() -> list[Block]:
    """Every block of every page, in the order of the pages."""
    return [block for page in PAGES for block in _of_page(page)]


def commands() -> Iterator[tuple[Block, str]]:
    """Every command of every shell block, on one line, without its comment."""
    for block in blocks():
        if block.kind == "shell":
            yield from ((block, command) for command in split_commands(block.text))


def split_commands(text: str) -> list[str]:
    """The commands of a script; one goes on over a backslash and within quotes."""
    found, begun = [], ""
    for line in text.splitlines():
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1].rstrip() + " "
            continue
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # within quotes
            begun += "\n"
            continue
        if words:
            found.append(_without_comment(begun.strip()))
        begun = ""
    assert not begun, f"a command that does not end: {begun}"
    return found


def _without_comment(command: str) -> str:
    """Cut what stands behind a # outside quotes."""
    for place in (match.start() for match in re.finditer(r"\s#\s", command)):
        try:
            shlex.split(command[:place])
        except ValueError:
            continue
        return command[:place].rstrip()
    return command


def _of_page(path: Path) -> Iterator[Block]:
    page, lines = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence:
            end = next(n for n in range(at + 1, len(lines)) if lines[n].strip().startswith("```"))
            text = "\n".join(line.removeprefix(fence[1]) for line in lines[at + 1 : end])
            yield Block(page, at + 2, LANGUAGES.get(fence[2], fence[2]), text)
            at = end + 1
        elif _begins_indented(lines, at):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield from _indented(page, at, [line[4:] for line in lines[at:end]])
            at = end
        else:
            at += 1


def _begins_indented(lines: list[str], at: int) -> bool:
    before = lines[at - 1] if at else ""
    return lines[at].startswith("    ") and (not before.strip() or before.startswith("#"))


def _indented(page: str, at: int, lines: list[str]) -> Iterator[Block]:
    """An indented block, cut where another kind begins behind an empty line."""
    begin, kind = 0, _kind(lines)
    for n in range(1, len(lines)):
        after_gap = not lines[n - 1].strip() and lines[n][:1].strip()
        if after_gap and (other := _kind(lines[n:])) not in ("", kind):
            yield Block(page, at + begin + 1, kind, "\n".join(lines[begin:n]))
            begin, kind = n, other
    yield Block(page, at + begin + 1, kind, "\n".join(lines[begin:]))


def _kind(lines: list[str]) -> str:
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    if SHELL.match(first + " "):
        return "shell"
    if PYTHON.match(first):
        return "python"
    return "json" if first.startswith("{") else ""

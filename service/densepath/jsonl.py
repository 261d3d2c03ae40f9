"""JSONL files: a JSON object on each line, UTF-8.

Only a line feed byte ends a line. Inside a string, JSON allows U+2028, U+0085 and other characters at which
`str.splitlines` would cut. Blank lines are skipped, but they count in line numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from densepath.errors import InvalidRequestError


def read_objects(path: Path, *, growing: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line, from 1 on, and its object.

    Set `growing` if the file may still be written, or if its writer was killed. A last line that has no line
    feed yet is then left out.

    Raises InvalidRequestError, with the file and the line number, for a line that is not a JSON object;
    OSError if the file cannot be read.
    """
    for number, line in read_lines(path):
        if line.endswith(b"\n") or not growing:
            yield number, parse_object(line, path, number)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number of each line that is not blank, from 1 on, and its bytes with their line feed."""
    with path.open("rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def parse_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """The object on line `number` of `path`. Raises InvalidRequestError, which names both, if it is none."""
    try:
        found = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} line {number} is not JSON: {_reason(error)}") from error
    if not isinstance(found, dict):
        raise InvalidRequestError(f"{path} line {number} is not a JSON object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _reason(error: ValueError | RecursionError) -> str:
    """Why a line could not be parsed, without the bytes that the line holds."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)

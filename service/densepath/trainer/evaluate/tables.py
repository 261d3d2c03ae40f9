"""How `densepath eval` and `densepath probe` print and write their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from densepath import file_errors
from densepath.errors import InvalidRequestError
from densepath.files import write_whole

GREEDY, SAMPLED = "greedy", "sampled"
_HOW = (SAMPLED, GREEDY)

Report = Mapping[str, Any]


def eval_table(report: Report) -> Table:
    """The accuracies, and the differences from the first checkpoint, with 95 % intervals."""
    first, *others = report["checkpoints"]
    table = Table(Column("checkpoint", overflow="fold"), *_HOW, title=_title(report))
    for how in _HOW if others else ():
        table.add_column(f"{how}, minus {first['name']}")
    table.add_column("cut")
    for found in report["checkpoints"]:
        differences = [found[how].get("minus_first") for how in _HOW] if others else []
        table.add_row(
            found["name"], *map(partial(_accuracy, found), _HOW), *map(points, differences), _cut(found)
        )
    return table


def probe_table(report: Report) -> Table:
    """Accuracies of each reference and alpha, and gains over plain SFT, with 95 % intervals."""
    table = Table(Column("reference", overflow="fold"), "alpha", title=_title(report))
    for how in _HOW:
        table.add_column(how)
        table.add_column("gain")
    table.add_column("cut")
    for found in (report["plain"], *report["sharpened"], *report["choices"]):
        name, alpha = found.get("reference") or "none", found.get("alpha", 0)
        cells = [cell for how in _HOW for cell in (_percent(found[how]), points(found[how].get("gain")))]
        table.add_row(name, f"{alpha:g}", *cells, _cut(found))
    return table


def points(difference: Report | None) -> str:
    """A difference of shares in points, with its interval; empty if there is none."""
    if difference is None:
        return ""
    low, high = difference["interval"]
    return f"{100 * difference['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def progress_bar(say: Console) -> Progress:
    """A bar that counts responses."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=say)


def require_place(path: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done."""
    if path is None:
        return
    if not path.resolve().parent.is_dir():
        raise InvalidRequestError(f"--output {path} is in a directory that does not exist: create it first")
    file_errors.require_place(path)


def write_json(path: Path, report: Report) -> None:
    """Write the complete report as JSON."""
    write_whole(path, json.dumps(report, ensure_ascii=False, indent=1, default=str).encode())


def _title(report: Report) -> str:
    settings = report["settings"]
    checker = settings["checker"] or "exact match"
    return f"Right by {checker}, in %: {report['prompts']} prompts, {settings['seeds']} samples per prompt"


def _accuracy(found: Report, how: str) -> str:
    low, high = found[how]["interval"]
    return f"{_percent(found[how])} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(found: Report) -> str:
    return f"{100 * found['accuracy']:.1f}"


def _cut(found: Report) -> str:
    """How many responses were cut at the limit."""
    return str(sum(found[how]["truncated"] for how in _HOW))

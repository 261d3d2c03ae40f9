"""Reading the files of a `densepath train` run. Errors name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepath.errors import InvalidRequestError
from densepath.jsonl import read_objects
from densepath.trainer.run_files import EVALUATION, KIND, MANIFEST, METRICS, SAMPLES, Row

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sample:
    """A scored response: T tokens, each with its reward in nats."""

    step: int
    prompt: str
    tokens: tuple[str, ...]
    reward_T: Float64
    sum: float
    ended: bool


@dataclass(frozen=True)
class Table:
    """`evaluation.json`: a table that the author of the run adds to the top of the page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run has written so far. Arrays whose names end in `_S` have one entry per step."""

    directory: Path
    manifest: Mapping[str, Any]
    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]
    evaluation: Table | None

    @property
    def step_S(self) -> NDArray[np.int64]:
        """The numbers of the steps, in ascending order."""
        return np.array([row["step"] for row in self.rows], dtype=np.int64)

    def column(self, name: str, inside: str | None = None) -> Float64:
        """`name` of every step, or `inside[name]`, float64 [S]; NaN if a step has none."""
        places = [row if inside is None else row.get(inside) or {} for row in self.rows]
        return np.array([_number(place.get(name)) for place in places], dtype=np.float64)

    @property
    def held_out_kinds(self) -> tuple[str, ...]:
        """How the held-out checks decoded: greedy, sampled. Empty if no step has checked."""
        return tuple(dict.fromkeys(kind for row in self.rows for kind in row.get("held_out") or {}))


def read_run(directory: Path) -> Run:
    """Read the run in `directory`. Raises InvalidRequestError if it is not a run or has no step yet."""
    manifest = _manifest(directory)
    metrics = directory / METRICS
    rows = [row for _, row in _objects(metrics)] if metrics.exists() else []
    if not rows:
        raise InvalidRequestError(
            f"{directory} has no steps yet: {METRICS} gets one line per step; try again after the first step"
        )
    samples = directory / SAMPLES
    return Run(
        directory,
        manifest,
        tuple(rows),
        tuple(_sample(samples, line, row) for line, row in _objects(samples)) if samples.exists() else (),
        _evaluation(directory / EVALUATION),
    )


def _manifest(directory: Path) -> Mapping[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise InvalidRequestError(
            f"{directory} is not a run directory, because it has no {MANIFEST}: give one of `densepath train`"
        )
    manifest = _object(path.read_bytes(), str(path))
    if (kind := manifest.get("kind")) != KIND:
        raise InvalidRequestError(
            f"{path} describes a run of kind {kind!r}; a report needs a run of `densepath train`"
        )
    return manifest


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"{where} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequestError(f"{where} is not a JSON object")
    return found


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects, each of a step."""
    for number, found in read_objects(path, growing=True):
        if not isinstance(found.get("step"), int):
            raise InvalidRequestError(f"{path} line {number} has no whole number under `step`")
        yield number, found


def _sample(path: Path, line: int, row: Row) -> Sample:
    try:
        sample = Sample(
            row["step"],
            str(row["prompt"]),
            tuple(map(str, row["tokens"])),
            np.array(row["rewards"], dtype=np.float64),
            float(row["sum"]),
            bool(row["ended"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"{path} line {line} is not a sample: it needs step, prompt, tokens, rewards, sum and ended"
        ) from error
    if sample.reward_T.shape != (len(sample.tokens),):
        raise InvalidRequestError(
            f"{path} line {line} has {len(sample.tokens)} tokens and rewards of shape "
            f"{sample.reward_T.shape}: there must be one reward per token"
        )
    return sample


def _evaluation(path: Path) -> Table | None:
    if not path.exists():
        return None
    found = _object(path.read_bytes(), str(path))
    columns, rows = found.get("columns"), found.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise InvalidRequestError(f"{path} needs `columns` and `rows`, both lists")
    if any(not isinstance(row, list) or len(row) != len(columns) for row in rows):
        raise InvalidRequestError(f"{path} has a row that does not have {len(columns)} cells, one per column")
    return Table(
        str(found.get("title", "Evaluation")),
        tuple(map(str, columns)),
        tuple(map(tuple, rows)),
        str(found.get("note") or ""),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")

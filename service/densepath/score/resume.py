"""What `densepath score` does: it writes the scores of a file of items, and resumes where it stopped.

The items are read in chunks, so the input may be larger than memory. Each result is written to `OUT.partial`
at once. The first record of that file says which input, options and pair version it belongs to. After a
crash, the same call continues after the last complete record. At the end the results are compared with the
items, in number, order and ids, and written to OUT, and the partial file is removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np

from densepath.client.answers import renumbered
from densepath.client.results import Score, Scores
from densepath.errors import InternalError, InvalidItemError, ModelVersionMismatchError
from densepath.file_errors import naming
from densepath.files import whole_file
from densepath.score.formats import (
    WRITERS,
    Item,
    ScoreFileError,
    check_formats,
    count_items,
    read_items,
)
from densepath.score.records import Result, append_record, read_records

__all__ = ["CHUNK_ITEMS", "Counts", "ScoreFileError", "score_file"]

CHUNK_ITEMS = 256

_ARRAYS = {
    "rewards": "reward_T",
    "sft_logprobs": "logp_sft_T",
    "reference_logprobs": "logp_reference_T",
    "returns": "return_T",
    "response_token_ids": "response_token_ids",
    "positions": "positions",
    "offsets": "offsets",
}


@dataclass(frozen=True)
class Counts:
    """How many items of the file were scored, and how many have an error."""

    scored: int = 0
    failed: int = 0

    def plus(self, failed: bool) -> Counts:
        """The counts with one more item."""
        return Counts(self.scored + (not failed), self.failed + failed)


def score_file(
    source: Path,
    target: Path,
    score_chunk: Callable[[list[Item]], Scores],
    *,
    model_version: str,
    include: Sequence[str] = (),
    gamma: float = 1.0,
    progress: Callable[[int, int], None] = lambda done_items, total_items: None,
    on_score: Callable[[Score], None] = lambda score: None,
) -> Counts:
    """Score every item of `source` into `target`; their suffixes give the formats.

    The caller holds `files.reserved_file(target)`, so that no other process writes the same results.

    An item that cannot be read or scored becomes a result with an error and no number; the others are still
    scored. A result is an item of the service's answer, with its `model_version`.

    Args:
        source: .jsonl (one item per line; blank lines are skipped) or .parquet (one column per field; null
            means that the field is absent).
        target: .jsonl, .parquet or .safetensors (built in memory); it must not exist.
        score_chunk: scores at most CHUNK_ITEMS items with on_error "item", this `include` and this `gamma`.
        model_version: the pair version that every result must come from.
        include: any of "logprobs", "returns" and "tokens", as in a request.
        gamma: the discount of the returns.
        progress: called with the numbers of finished items and of all items, at the start and after each
            chunk.
        on_score: called with each score as it is written, numbered as in the file.

    Raises:
        ScoreFileError: an unknown suffix, a damaged input, a target that exists, or a partial file of another
            input, of other options or of another pair version.
        OSError: a file cannot be read or written; the results so far stay in the partial file.
        ModelVersionMismatchError: `score_chunk` scored with another pair version.
        DensepathError: what `score_chunk` raises; the results so far stay in the partial file.
    """
    check_files(source, target)
    partial = target.with_name(f"{target.name}.partial")
    total = count_items(source)
    belonging = _belonging(source, model_version, include, gamma)
    with naming(partial), partial.open("a+b") as results:
        counts = _resume(results, partial, belonging)
        done = counts.scored + counts.failed
        progress(done, total)
        items = islice(enumerate(read_items(source)), done, None)
        while chunk := list(islice(items, CHUNK_ITEMS)):
            for score in _scores(chunk, score_chunk, model_version):
                append_record(results, _result(score, model_version))
                on_score(score)
                counts = counts.plus(failed=score.error is not None)
            done += len(chunk)
            progress(done, total)
    if _describe(source) != belonging["input"]:
        raise ScoreFileError(
            f"{source} was changed while it was scored: remove {partial} to score from the start"
        )
    _finish(source, partial, target)
    return counts


def check_files(source: Path, target: Path) -> None:
    """Raise ScoreFileError for an unknown suffix or a target that exists, before any work is done."""
    check_formats(source, target)
    if target.exists():
        raise ScoreFileError(f"{target} exists: remove it, or name another output")


def _belonging(source: Path, model_version: str, include: Sequence[str], gamma: float) -> dict[str, object]:
    """What the results of a partial file must have in common."""
    return {
        "input": _describe(source),
        "options": {"include": sorted(include), "gamma": gamma},
        "pair version": model_version,
    }


def _describe(source: Path) -> dict[str, object]:
    """What an input is recognised by."""
    with naming(source), source.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def _resume(results: BinaryIO, partial: Path, belonging: dict[str, object]) -> Counts:
    """Count the results that are there, and remove a last record that is incomplete after a kill.

    Raises:
        ScoreFileError: the results belong to another input, other options or another pair version.
    """
    results.seek(0)
    records = read_records(results)
    first = next(records, None)
    if first is None:  # new, or killed before the first record was complete
        results.truncate(0)
        append_record(results, belonging)
        return Counts()
    other = [name for name, value in belonging.items() if first.get(name) != value]
    if other:
        raise ScoreFileError(
            f"{partial} was made with a different {' and '.join(other)}: remove it to score from the start"
        )
    counts, end = Counts(), results.tell()
    for result in records:
        if result.get("index") != counts.scored + counts.failed:
            break  # a record is missing: what follows is scored again
        counts, end = counts.plus(failed=result.get("status") != "ok"), results.tell()
    results.truncate(end)
    return counts


def _scores(
    chunk: list[tuple[int, Item | InvalidItemError]],
    score_chunk: Callable[[list[Item]], Scores],
    model_version: str,
) -> list[Score]:
    """The scores of a chunk in order, numbered as in the file, with the ids of the items."""
    scores = {index: Score(index, error=item) for index, item in chunk if isinstance(item, InvalidItemError)}
    items = {index: item for index, item in chunk if isinstance(item, dict)}
    if items:
        answer, indexes = score_chunk(list(items.values())), list(items)
        if answer.model_version != model_version:
            raise ModelVersionMismatchError("the pair was swapped while the file was scored: score it again")
        if len(answer) != len(items):
            raise InternalError(f"{len(items)} items were sent, and {len(answer)} scores came back")
        for index, score in zip(indexes, answer, strict=True):
            if score.id not in (None, _id(items[index])):
                raise InternalError(f"the score of items[{index}] has the id of another item")
            error = score.error and renumbered(score.error, indexes)
            scores[index] = replace(score, index=index, error=error, id=_id(items[index]))
    return [scores[index] for index, _ in chunk]


def _result(score: Score, model_version: str) -> Result:
    result: Result = {"index": score.index, "id": score.id}
    if score.error is not None:
        return result | {"status": "error", "error": score.error.detail(), "model_version": model_version}
    result["status"] = "ok"
    for name, attribute in _ARRAYS.items():
        array = getattr(score, attribute)
        if array is not None:
            result[name] = array if array.dtype == np.float32 else array.tolist()
    if score.tokens is not None:
        result["tokens"] = list(score.tokens)
    return result | {"sum": score.sum, "ended": score.ended, "model_version": model_version}


def _id(item: Item | InvalidItemError) -> str | None:
    """The id of an item; None if it has none, or one that is not a string, which is an error of the item."""
    id_ = item.get("id") if isinstance(item, dict) else None
    return id_ if isinstance(id_, str) else None


def _finish(source: Path, partial: Path, target: Path) -> None:
    """Write the complete target, and only then remove the partial file."""
    with partial.open("rb") as results, whole_file(target) as file:
        records = read_records(results)
        next(records)  # it says what the results belong to
        WRITERS[target.suffix](_compared(source, records, partial), file)
    partial.unlink()


def _compared(source: Path, results: Iterator[Result], partial: Path) -> Iterator[Result]:
    """The results, each compared with the item in its place.

    Raises ScoreFileError if there is not exactly one result per item, in the order of the items and with
    their ids.
    """
    for index, (item, result) in enumerate(zip_longest(read_items(source), results)):
        if item is None or result is None or (result["index"], result["id"]) != (index, _id(item)):
            raise ScoreFileError(
                f"{partial} does not have the result of item {index} in its place: remove it to score from "
                "the start"
            )
        yield result

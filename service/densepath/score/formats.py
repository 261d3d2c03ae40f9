"""The formats of `densepath score`: items from JSONL or Parquet, results to JSONL, Parquet or safetensors.

Both sides are read and written in chunks. pyarrow is only needed, and only imported, for Parquet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from densepath.errors import InvalidItemError, InvalidRequestError
from densepath.jsonl import parse_object, read_lines
from densepath.score.records import Result
from densepath.wire import pack_answer

Item = dict[str, Any]

_ROWS = 1024
_SAFETENSORS_METADATA_BYTES = 90_000_000  # the format allows a header of 100 MB
_FLOATS = ("rewards", "sft_logprobs", "reference_logprobs", "returns")


class ScoreFileError(ValueError):
    """A file that cannot be read, resumed or written. The message says what to do."""


def count_items(source: Path) -> int:
    """The number of items in the input. Raises ScoreFileError or OSError if it cannot be read."""
    if source.suffix == ".parquet":
        with _reading_parquet(source) as file:
            return int(file.metadata.num_rows)
    return sum(1 for _ in read_lines(source))


def read_items(source: Path) -> Iterator[Item | InvalidItemError]:
    """The items in order. A line that is not a JSON object is replaced by an error.

    Raises ScoreFileError or OSError if the input cannot be read.
    """
    if source.suffix == ".parquet":
        with _reading_parquet(source) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                yield from (without_nulls(row) for row in batch.to_pylist())
    else:
        yield from (_item(line, source, number) for number, line in read_lines(source))


def write_jsonl(results: Iterable[Result], target: BinaryIO) -> None:
    """One line per result. A float32 is written with the fewest digits that give the same float32 back."""
    for result in results:
        fields = (f"{json.dumps(name)}:{_json(value)}" for name, value in result.items())
        target.write(f"{{{','.join(fields)}}}\n".encode())


def write_parquet(results: Iterable[Result], target: BinaryIO) -> None:
    """One row per result. A field that a result does not have is null."""
    arrow = _arrow()
    schema = _schema(arrow)
    rows = iter(results)
    with arrow.parquet.ParquetWriter(target, schema) as writer:
        while chunk := list(islice(rows, _ROWS)):
            writer.write_table(arrow.Table.from_pylist(chunk, schema=schema))


def write_safetensors(results: Iterable[Result], target: BinaryIO) -> None:
    """Write arrays, with the rest of the results as metadata, as in the service's safetensors answer.

    Raises:
        ScoreFileError: there is more metadata than the format allows.
    """
    items: list[Result] = []
    parts: dict[str, list[Any]] = {name: [] for name in _FLOATS}
    lengths = [0]
    for result in results:
        lengths.append(len(result.get("rewards", ())))
        for name in _FLOATS:
            if name in result:
                parts[name].append(result[name])
        items.append({name: value for name, value in result.items() if name not in _FLOATS})
    arrays = {name: np.concatenate(part) for name, part in parts.items() if part}
    arrays.setdefault("rewards", np.zeros(0, np.float32))
    arrays["offsets"] = np.cumsum(lengths, dtype=np.int64)
    target.write(pack_answer(arrays, _metadata(items)))


WRITERS: dict[str, Callable[[Iterable[Result], BinaryIO], None]] = {
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
    ".safetensors": write_safetensors,
}
_READABLE = (".jsonl", ".parquet")


def check_formats(source: Path, target: Path) -> None:
    """Refuse unknown suffixes, and Parquet without pyarrow, before any work is done."""
    if source.suffix not in _READABLE:
        raise ScoreFileError(f"the suffix of the input must be one of {', '.join(_READABLE)}")
    if target.suffix not in WRITERS:
        raise ScoreFileError(f"the suffix of the output must be one of {', '.join(WRITERS)}")
    if ".parquet" in (source.suffix, target.suffix):
        _arrow()


@contextmanager
def _reading_parquet(source: Path) -> Iterator[Any]:
    """The open file. Whichever error pyarrow raises about a damaged file becomes a ScoreFileError."""
    arrow = _arrow()
    source.open("rb").close()  # a file that cannot be opened is an OSError with its name
    try:
        with arrow.parquet.ParquetFile(source, page_checksum_verification=True) as file:
            yield file
    except (OSError, ValueError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ScoreFileError(f"{source} cannot be read as Parquet: {reason}") from error


def _item(line: bytes, source: Path, number: int) -> Item | InvalidItemError:
    try:
        return parse_object(line, source, number)
    except InvalidRequestError as error:
        return InvalidItemError(error.message)


def without_nulls(value: Any) -> Any:
    """A row of a table without its null fields, also in nested objects: null means an absent field."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [without_nulls(inner) for inner in value]
    return value


def _json(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"[{','.join(map(str, value))}]"  # float32 digits; `tolist` would give those of a float64
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _metadata(items: list[Result]) -> dict[str, object]:
    versions = [item.pop("model_version") for item in items]
    text = json.dumps(items)
    # Within the header it is JSON inside JSON: quotes and backslashes are escaped once more.
    if len(text) + text.count('"') + text.count("\\") > _SAFETENSORS_METADATA_BYTES:
        raise ScoreFileError("there are too many results for one .safetensors file: give a .parquet output")
    return {"object": "rewards", "model_version": versions[0] if versions else None, "items": items}


def _schema(arrow: Any) -> Any:
    text, integers, floats = arrow.string(), arrow.list_(arrow.int64()), arrow.list_(arrow.float32())
    error = arrow.struct([(name, text) for name in ("message", "type", "param", "code")])
    return arrow.schema(
        [
            ("index", arrow.int64()),
            ("id", text),
            ("status", text),
            *((name, floats) for name in _FLOATS),
            ("sum", arrow.float64()),
            ("ended", arrow.bool_()),
            ("response_token_ids", integers),
            ("positions", integers),
            ("tokens", arrow.list_(text)),
            ("offsets", arrow.list_(integers)),
            ("error", error),
            ("model_version", text),
        ]
    )


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ScoreFileError("Parquet needs pyarrow: pip install 'densepath[parquet]'") from None
    return pyarrow

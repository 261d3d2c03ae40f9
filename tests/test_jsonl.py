"""JSONL files, read by bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from densepath.errors import InvalidRequestError
from densepath.jsonl import read_objects

#: Where `str.splitlines` cuts, and a JSON string may hold unescaped.
INSIDE = "\u2028 \u2029 \x85"


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": INSIDE}, {"text": "b"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes(f"{lines[0]}\r\n\n {lines[1]}".encode())
    assert list(read_objects(path)) == [(1, rows[0]), (3, rows[1])]


def test_a_line_that_is_still_being_written_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert [row for _, row in read_objects(path)] == [{"a": 1}, {"a": 2}]
    assert [row for _, row in read_objects(path, growing=True)] == [{"a": 1}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": secret}', "is not JSON: Expecting value at character 7"),
        (b'{"a": "\xff"}', "is not JSON: it is not UTF-8"),
        (b'{"a": NaN}', "is not JSON: NaN is not a JSON number"),
        (b"[" * 100_000, "is not JSON: it is nested too deeply"),
        (b"[1]", "is not a JSON object"),
    ],
)
@pytest.mark.parametrize("growing", [False, True])
def test_a_bad_line_is_named_with_its_file(line: bytes, message: str, growing: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n\n" + line + b"\n{}\n")
    with pytest.raises(InvalidRequestError, match=f"^{re.escape(f'{path} line 3 {message}')}$"):
        list(read_objects(path, growing=growing))

"""Full disks (row 29 of the table of faults) and damaged files (row 28).

A limit of the size of files takes the place of a full disk: the kernel refuses the write in the same place.
"""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api.running import Running, pair
from densepath.files import write_whole
from faults.commands import DEMONSTRATION, N, Run, gated, ids, run, served, write_items

__all__ = ["gated", "pair", "run", "served"]  # fixtures


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Inside the block, no file of this process can become larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_row_29_score_on_a_full_disk_goes_on_when_there_is_room(
    served: Running, run: Run, tmp_path: Path, suffix: str
) -> None:
    source, output = write_items(tmp_path / "in.jsonl"), tmp_path / f"out{suffix}"
    words = ("score", source, "-o", output, "--url", f"http://127.0.0.1:{served.port}")
    with files_up_to(100_000):
        status, said = run(*words)
    partial = tmp_path / f"out{suffix}.partial"
    assert (status, said.count("\n")) == (2, 0)
    assert said.startswith(f"error {partial}: the file system, or `ulimit -f`, does not allow a file of this")
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", partial.name]
    before = served.scorer.scored
    status, said = run(*words)
    assert (status, f"{N} scored, 0 failed" in said) == (0, True)
    assert 0 < served.scorer.scored - before < N, "it resumes"
    assert served_ids(output) == ids(source)


def served_ids(output: Path) -> list[str]:
    if output.suffix == ".parquet":
        return list(pq.read_table(output)["id"].to_pylist())
    return ids(output)


def test_row_29_a_full_disk_at_the_end_keeps_every_result(
    served: Running, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_items(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    words = ("score", source, "-o", output, "--url", f"http://127.0.0.1:{served.port}")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, said = run(*words)
    assert (status, said) == (2, f"error {output}: the disk is full: free some space and try again")
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl.partial"]
    before = served.scorer.scored
    assert run(*words)[0] == 0
    assert served.scorer.scored == before
    assert ids(output) == ids(source)


def test_row_29_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_whole(path, b"old")
    with files_up_to(1000), pytest.raises(OSError, match="too large") as caught:
        write_whole(path, bytes(5000))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def test_row_29_sft_on_a_full_disk(run: Run, pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    rows, made = tmp_path / "rows.jsonl", tmp_path / "made"
    rows.write_text(DEMONSTRATION * 4)
    words = ("sft", "--base", pair_dirs[0], "--demonstrations", rows, "--run", made, "--batch-size", 2)
    with files_up_to(100_000):
        status, said = run(*words)
    assert status == 2
    errors = [line for line in said.splitlines() if line.startswith("error ")]
    assert [line.partition(": ")[0] for line in errors] == [f"error {made}"]


def test_row_28_a_damaged_parquet_file_is_one_sentence(served: Running, run: Run, tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    rows = [json.loads(line) for line in write_items(tmp_path / "in.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), source, write_page_checksum=True, compression="none")
    data = source.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    damaged = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"{}\n" * 100,
        "footer": data[: -8 - footer] + b"\xff" * 16 + data[-8 - footer + 16 :],
        "page": data[:200] + bytes([data[200] ^ 1]) + data[201:],
    }
    for name, content in damaged.items():
        source.write_bytes(content)
        status, said = run("score", source, "-o", output, "--url", f"http://127.0.0.1:{served.port}")
        assert (name, status) == (name, 2)
        assert said.startswith(f"error {source} cannot be read as Parquet: "), said
        assert said.count("\n") == 0
        assert not output.exists()
        (tmp_path / "out.jsonl.partial").unlink(missing_ok=True)

"""Writes files and directories that are complete or absent, even if the process is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def cache_directory(name: str) -> Path:
    """`$XDG_CACHE_HOME/densepath/NAME`, or `~/.cache/densepath/NAME` if that variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "densepath" / name


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when the block ends without an error.

    A reader sees either the old file or the new one, even after a crash or if several processes write it.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("xb") as file:
            yield file
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `directory` when the block ends without an error.

    One process at a time: what an earlier one left unfinished is removed.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        commit_directory(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process has the lock file at `path`, and hold it inside the block."""
    # The kernel releases the lock when the process ends, so a killed process never blocks others.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def commit_directory(partial: Path, directory: Path) -> None:
    """Rename a filled directory to its final name, once all of its content is on the disk."""
    for path in sorted(partial.rglob("*"), reverse=True):
        sync(path)
    sync(partial)
    os.replace(partial, directory)
    sync(directory.parent)


def sync(path: Path) -> None:
    """Flush the bytes of a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

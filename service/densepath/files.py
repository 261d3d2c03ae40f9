"""Files and directories that are there whole, or not at all, whatever kills the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader, and a restart after a crash, sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def commit_directory(partial: Path, directory: Path) -> None:
    """Give a directory that is filled its name; on the disk from then on, with all that is in it."""
    for path in sorted(partial.rglob("*"), reverse=True):
        sync(path)
    sync(partial)
    os.replace(partial, directory)
    sync(directory.parent)


def sync(path: Path) -> None:
    """Have a file's bytes, or a directory's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Writing files and directories so that they are complete or absent, even if the process is killed."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old file or the new one, also after a crash."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def commit_directory(partial: Path, directory: Path) -> None:
    """Rename a filled directory to its final name, after all of its content is on the disk."""
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

"""Writes files and directories that are complete or absent, even if the process is killed, and locks them."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from densepath.file_errors import naming
from densepath.forks import closed_in_forks

#: The lock of a directory, inside it.
LOCK = ".lock"


class InUseError(BlockingIOError):
    """Another process uses a file or directory. The message names both."""


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
    except OSError as error:
        if error.errno and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
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
        with naming(directory):
            yield partial
            commit_directory(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process has the lock file at `path`, and hold it inside the block."""
    with _lock(path, fcntl.LOCK_EX):
        yield


@contextmanager
def reserved_file(path: Path) -> Iterator[None]:
    """Inside the block, this process alone writes the file at `path`; it need not exist yet.

    The lock file is beside it. Raises InUseError if another process writes it, and OSError if its directory
    is missing or not writable.
    """
    with _reserved(path.with_name(f".{path.name}{LOCK}"), path):
        yield


@contextmanager
def reserved_directory(directory: Path) -> Iterator[None]:
    """Inside the block, this process alone writes into a directory, which is made if it is missing.

    The lock file is inside, so that two mounts of the same directory have the same lock. A directory that was
    made and is still empty is removed. Raises InUseError if another process writes into it, and OSError if
    it cannot be made.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with _reserved(directory / LOCK, directory):
            yield
    finally:
        if made:
            with suppress(OSError):
                directory.rmdir()


def require_free(directory: Path) -> None:
    """Raise InUseError if a process writes into a directory."""
    with suppress(FileNotFoundError), (directory / LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(directory, directory / LOCK) from None


def has_content(directory: Path) -> bool:
    """Whether a directory has anything except its lock."""
    return any(path.name != LOCK for path in directory.iterdir())


@contextmanager
def _reserved(lock: Path, used: Path) -> Iterator[None]:
    try:
        file = _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(used, lock) from None
    except OSError as error:
        error.filename = str(lock.parent)
        raise
    with file, closed_in_forks(file):
        try:
            with naming(lock.parent):
                file.truncate(0)
                file.write(f"{os.getpid()} {socket.gethostname()}".encode())
            yield
        finally:
            with suppress(OSError):
                lock.unlink()  # before the lock is released, so that it is this process's own file


def _lock(path: Path, operation: int) -> FileIO:
    """The open lock file at `path`, with the lock."""
    # The kernel releases the lock when the process ends, so a killed process never blocks others.
    while True:
        file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, operation)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # the process that had the lock before has removed the file


def _in_use(used: Path, lock: Path) -> InUseError:
    try:
        pid, host = lock.read_text(encoding="utf-8").split()
        holder = f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"
    except (OSError, ValueError):  # it has the lock, and has not written its number yet
        holder = "another process"
    return InUseError(f"{used} is in use by {holder}: wait until that process ends, or name another place")


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
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

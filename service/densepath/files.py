"""Writes files and directories that are complete or absent, even if the process is killed, and locks them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

#: The lock of a directory, inside it.
LOCK = ".lock"

_AGAIN = "free some space and try again"
_PERMISSION = "this user has no permission for it: give the permission, or name another place"
_NO_LOCKS = "its file system has no locks (flock): name a place on another one, such as a local disk"
#: What a user can do about a fault of the file system. Any other OSError is a fault of densepath.
_WORDS = {
    errno.ENOSPC: f"the disk is full: {_AGAIN}",
    errno.EDQUOT: f"the disk quota of this user is used up: {_AGAIN}",
    errno.EFBIG: "the file system, or `ulimit -f`, does not allow a file of this size",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "the file system is read-only: name another place",
    errno.ENOENT: "there is no such file or directory",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.EISDIR: "it is a directory: name a file",
    errno.EEXIST: "it exists and is not a directory: name a directory",
    errno.ENOTEMPTY: "it has other content: name a directory that is empty or does not exist",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "it has a loop of symbolic links",
    errno.EIO: "the disk returned an error",
    errno.ESTALE: "the network file system has lost it: mount it again",
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
}
#: How libraries that are written in Rust end the message of an error of the operating system.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


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
        yield partial
        commit_directory(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process has the lock file at `path`, and hold it inside the block."""
    descriptor = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


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
        descriptor = _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(used, lock) from None
    except OSError as error:
        error.filename = str(lock.parent)
        raise
    try:
        with naming(lock.parent):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # before the lock is released, so that it is this process's own file
        os.close(descriptor)


def _lock(path: Path, operation: int) -> int:
    """The descriptor of the lock file at `path`, with the lock."""
    # The kernel releases the lock when the process ends, so a killed process never blocks others.
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that had the lock before has removed the file


def _in_use(used: Path, lock: Path) -> InUseError:
    try:
        pid, host = lock.read_text(encoding="utf-8").split()
        holder = f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"
    except (OSError, ValueError):  # it has the lock, and has not written its number yet
        holder = "another process"
    return InUseError(f"{used} is in use by {holder}: wait until that process ends, or name another place")


def require_place(path: Path) -> None:
    """Raise the OSError that writing the file `path` would end in, before there is work to lose."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = path.absolute().parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        error.filename = str(folder)
        raise


def require_directory(directory: Path) -> None:
    """Raise the OSError that making a directory and writing into it would end in."""
    directory = directory.absolute()
    require_place(next(path for path in (directory, *directory.parents) if path.exists()) / "file")


def explain(error: OSError) -> str | None:
    """One sentence about a fault of the file system that a user can mend; None for any other error."""
    if isinstance(error, InUseError):
        return str(error)
    words = _WORDS.get(error.errno or 0)
    return words and f"{error.filename or 'a file'}: {words}"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError inside the block the name of the file or directory that was written or read.

    Python names a file that cannot be opened, but not one that cannot be written. Libraries in Rust, such as
    safetensors, raise errors of their own, which become the OSError that they are about.
    """
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if found := _RUST_ERROR.search(str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


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

"""What is said about the faults of files and directories: the errors of the operating system, in words."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    words = _WORDS.get(error.errno or 0)
    return words and f"{error.filename or error.strerror}: {words}"


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

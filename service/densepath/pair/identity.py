"""The identities of a checkpoint's files, which are recorded before the files are read, and compared later.

A file that is replaced or rewritten, or a link that is changed, gets another identity. Only the kernel sets a
file's change time (`ctime_ns`), so neither `touch` nor `rsync --times` can hide a change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

#: Everything that transformers or vLLM reads in a model directory.
READ = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "additional_chat_templates/*.jinja")
#: Two changes within one tick of the kernel's clock give a file the same times, so files are not read that
#: early.
_TICK_NS = 20_000_000


class Identity(NamedTuple):
    """One file, with links followed, as it was at one moment."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


#: Names relative to the directory → identities.
Identities = Mapping[str, Identity]


def identify(path: Path) -> Identity:
    """The identity of the file at a path, with links followed. Raises OSError."""
    real = path.resolve()
    stat = real.stat()
    return Identity(str(real), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def identify_all(directory: Path) -> dict[str, Identity]:
    """The identities of all files of a model directory that an engine may read. Broken links are left out."""
    found = _look(directory)
    age = time.time_ns() - max((identity.ctime_ns for identity in found.values()), default=0)
    if age < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
        found = _look(directory)
    return found


def changed(directory: Path, before: Identities) -> list[str]:
    """The names of files that have changed, have disappeared, or are new."""
    now = _look(directory)
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _look(directory: Path) -> dict[str, Identity]:
    found = {}
    for pattern in READ:
        for path in directory.glob(pattern):
            try:
                found[path.relative_to(directory).as_posix()] = identify(path)
            except OSError:
                continue
    return found

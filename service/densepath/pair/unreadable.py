"""Why a file of a checkpoint is not what its name says: a pointer, a web page, a broken link."""

from __future__ import annotations

from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
_HEAD_BYTES = 512


def why_unreadable(path: Path) -> str | None:
    """What is wrong with a file, and what would be right. None if it can be read and has content."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        if path.is_symlink():
            return "is a symbolic link to a missing file: download the file, or copy it here"
        return f"is missing{unfinished(path.parent)}"
    except IsADirectoryError:
        return "is a directory: it must be a file"
    except PermissionError:
        return "cannot be read by this user: give it read permission"
    except OSError:
        return "cannot be read because the file system returned an error: copy it again"
    if not head:
        return f"is empty: write or download it again{unfinished(path.parent)}"
    if head.startswith(_LFS):
        return "is a Git LFS pointer and not the file itself: run `git lfs pull` in its directory"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page and not the file itself: download it again, and log in first if that is needed"
    if head.startswith(b"PK\x03\x04") and path.suffix == ".safetensors":
        return "is a PyTorch pickle in spite of its name: convert it to safetensors"
    return None


def unfinished(directory: Path) -> str:
    """A clause that begins with a comma if a download into the directory is not finished, or else empty."""
    places = (
        directory.glob("*.incomplete"),
        directory.glob(".cache/huggingface/download/**/*.incomplete"),
        (directory.parent.parent / "blobs").glob("*.incomplete")
        if directory.parent.name == "snapshots"
        else (),
    )
    try:
        found = any(True for place in places for _ in place)
    except OSError:
        found = False
    return ", and a download of it is not finished" if found else ""

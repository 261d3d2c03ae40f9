"""Dense rewards from two checkpoints of one SFT run: the light client, and the version of the package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from densepath.client import AsyncClient, Client, Score, Scores

    __version__: str

__all__ = ["AsyncClient", "Client", "Score", "Scores", "__version__"]


def __getattr__(name: str) -> object:
    # PEP 562: `import densepath` costs nothing; the client is loaded when it is asked for.
    if name == "__version__":
        return _version()
    if name in __all__:
        from densepath import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    try:
        return version("densepath")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"

"""vLLM's engine process, as the service starts it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import CoreEngineProcManager

from densepath.engine.vllm.plugin import register
from densepath.engine.vllm.reasons import record

REAP_SECONDS = 2.0
_run_engine_core = EngineCoreProc.run_engine_core


def run(*args: Any, **kwargs: Any) -> None:
    """The life of the process. A start that fails ends it with its reason kept, and no traceback.

    A forked process has the service's list of loaded plugins and loads none, so ours is called here.
    """
    register()
    try:
        _run_engine_core(*args, **kwargs)
    except Exception as error:
        if not record(error):
            raise
        sys.exit(1)


@contextmanager
def engine_process() -> Iterator[None]:
    """Engine processes that are made in here are run by `run`, and vLLM knows how they ended."""
    finished_procs = CoreEngineProcManager.finished_procs

    def reaped(manager: Any) -> dict[str, int]:
        for process in manager.processes:  # one that has closed its pipes may not have its status yet
            process.join(REAP_SECONDS)
        return finished_procs(manager)  # type: ignore[no-any-return]

    EngineCoreProc.run_engine_core = staticmethod(run)
    CoreEngineProcManager.finished_procs = reaped
    try:
        yield
    finally:
        EngineCoreProc.run_engine_core = staticmethod(_run_engine_core)
        CoreEngineProcManager.finished_procs = finished_procs

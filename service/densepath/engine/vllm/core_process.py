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
    """The main function of the process. If the start fails, it records why and exits without a traceback.

    A forked process inherits the service's list of loaded plugins and loads none, so ours is called here.
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
    """Inside this block, new engine processes run `run`, and vLLM learns with which status they ended."""
    finished_procs = CoreEngineProcManager.finished_procs

    def reaped(manager: Any) -> dict[str, int]:
        for process in manager.processes:  # after closing its pipes, a process may take a while to end
            process.join(REAP_SECONDS)
        return finished_procs(manager)  # type: ignore[no-any-return]

    EngineCoreProc.run_engine_core = staticmethod(run)
    CoreEngineProcManager.finished_procs = reaped
    try:
        yield
    finally:
        EngineCoreProc.run_engine_core = staticmethod(_run_engine_core)
        CoreEngineProcManager.finished_procs = finished_procs

"""vLLM's engine process, as the service starts it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import CoreEngineProcManager

from densepath.engine.vllm.plugin import register
from densepath.engine.vllm.reasons import record

REAP_SECONDS = 2.0
#: What a process that is told to end may take, before it is killed.
END_SECONDS = 5.0
_run_engine_core = EngineCoreProc.run_engine_core
_finished_procs = CoreEngineProcManager.finished_procs
_one_at_a_time = threading.Lock()


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


class Processes:
    """The processes of one engine, so that they can be ended, whatever state they are in."""

    def __init__(self) -> None:
        self.closed = False
        self._known: dict[int, psutil.Process] = {}

    def add(self, pid: int) -> None:
        """Remember an engine process. One that starts after the end is ended at once."""
        with suppress(psutil.Error):
            self._known[pid] = psutil.Process(pid)
        if self.closed:
            self.kill()

    def look(self) -> list[psutil.Process]:
        """All of them, with their own processes, which cannot be found any more once their parent is gone."""
        for process in list(self._known.values()):
            with suppress(psutil.Error):
                for child in process.children(recursive=True):
                    self._known.setdefault(child.pid, child)
        return list(self._known.values())

    def kill(self) -> None:
        """Kill those that still run, stopped ones too, and return when they are gone."""
        self.closed = True
        left = self.look()
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=END_SECONDS)


@contextmanager
def engine_process(processes: Processes) -> Iterator[None]:
    """Inside this block, new engine processes run `run`, and vLLM learns with which status they ended.

    They are added to `processes`. Another thread waits until the block ends.
    """
    seen: list[Any] = []

    def reaped(manager: Any) -> dict[str, int]:
        if manager not in seen:  # they have just been started
            seen.append(manager)
            for process in manager.processes:
                if process.pid is not None:
                    processes.add(process.pid)
            return _finished_procs(manager)  # type: ignore[no-any-return]
        for process in manager.processes:  # after closing its pipes, a process may take a while to end
            process.join(REAP_SECONDS)
        return _finished_procs(manager)  # type: ignore[no-any-return]

    with _one_at_a_time:
        EngineCoreProc.run_engine_core = staticmethod(run)
        CoreEngineProcManager.finished_procs = reaped
        try:
            yield
        finally:
            EngineCoreProc.run_engine_core = staticmethod(_run_engine_core)
            CoreEngineProcManager.finished_procs = _finished_procs

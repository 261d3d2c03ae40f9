"""Gives a pair of each architecture to densepath, in a process of its own, and says what came of it.

The processes are forked from one that has vLLM loaded, so each costs seconds; one that crashes or hangs ends
alone.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from architectures.outcomes import Outcome

#: A tiny pair takes seconds; what takes so long hangs.
SECONDS = 200
#: Loaded once, before the first process is forked.
PRELOADED = ["architectures.engine"]


@contextmanager
def start_all(names: Iterable[str]) -> Iterator[dict[str, Future[Outcome]]]:
    """Examine all of them, as many at once as there are cores; what has not begun at the end is left."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11.7 looks for what is to be preloaded there alone, and goes on where it finds nothing.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        yield {name: pool.submit(examine, name, context) for name in names}
    finally:
        pool.shutdown(cancel_futures=True)
        # There is one for the whole run, and it would keep what it has loaded from other tests.
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def examine(name: str, context: Any) -> Outcome:
    """What comes of one architecture."""
    result, sender = context.Pipe(duplex=False)
    process = context.Process(target=_examine_here, args=(name, sender))
    process.start()
    sender.close()
    try:
        if not result.poll(SECONDS):
            return Outcome("broken", None, f"no outcome within {SECONDS} seconds")
        outcome: Outcome = result.recv()
        process.join(10)
        return outcome
    except EOFError:
        process.join()
        return Outcome("broken", None, f"the process ended with status {process.exitcode}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _examine_here(name: str, sender: Connection) -> None:
    assert set(PRELOADED) <= sys.modules.keys()
    os.setsid()  # what it starts ends with it
    gc.freeze()  # vLLM collects garbage often, and each time would copy all that the parent has loaded
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from architectures.engine import judge

    try:
        with tempfile.TemporaryDirectory() as folder:
            outcome = judge(name, Path(folder))
    except Exception:
        outcome = Outcome("broken", None, traceback.format_exc())
    sender.send(outcome)

"""Contenders in processes of their own that take turns, step by step."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rewarded:
    """One response of a step; its rewards as the trainer got them, float32 [T], nats."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    reward_T: NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One step of a trainer: seconds of its process, of each phase that it can tell apart, its responses."""

    wall_s: float
    cpu_s: float
    phases: dict[str, float]
    responses: list[Rewarded]


class Turn:
    """A contender's end of the line: it waits for its turn, takes one step and says what it did."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._wall = self._cpu = 0.0

    def wait(self) -> None:
        """Until it is this contender's turn; the clock starts then. At the end, it ends the process."""
        self._line.send(None)
        if not self._line.recv():
            sys.exit()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def done(self, phases: dict[str, float], responses: list[Rewarded]) -> None:
        """The step is over: the clock stops."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self._line.send(Step(wall, cpu, phases, responses))


#: Takes a `Turn` and arguments, and goes through steps until `wait` ends it. It runs in a new process, which
#: imports it by name.
Contend = Callable[..., None]

ENDED_WITHIN = 60.0  # seconds


class Contender:
    """A contender's process, seen from here. What it prints goes to the file `log`."""

    def __init__(self, name: str, log: Path, contend: Contend, *arguments: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, log, contend, arguments))
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Until it is loaded, or has done what follows a step. Raises RuntimeError where it has failed."""
        self._receive()

    def step(self) -> Step:
        """Give it its turn. Raises RuntimeError where it fails."""
        self._line.send(True)
        step: Step = self._receive()
        self.wait()
        return step

    def _receive(self) -> Any:
        try:
            received = self._line.recv()
        except EOFError:
            received = "its process is gone"
        match received:
            case str() as why:
                raise RuntimeError(f"{self.name}: {why}")
            case ready_or_step:
                return ready_or_step

    def dismiss(self) -> None:
        """Tell its process to end instead of another step."""
        with suppress(OSError):
            self._line.send(False)

    def end(self) -> None:
        """Until its process has ended, by force where it does not end by itself."""
        self._process.join(ENDED_WITHIN)
        self._process.terminate()
        self._process.join()


@contextmanager
def contending(log: Path, entries: dict[str, tuple[Any, ...]]) -> Iterator[list[Contender]]:
    """Every contender, loaded: `Contend` and its arguments, by name."""
    contenders: list[Contender] = []
    try:
        for name, (contend, *arguments) in entries.items():
            contenders.append(Contender(name, log, contend, *arguments))
        for contender in contenders:
            contender.wait()
        yield contenders
    finally:
        for contender in contenders:
            contender.dismiss()
        for contender in contenders:
            contender.end()


def _run(line: Connection, log: Path, contend: Contend, arguments: tuple[Any, ...]) -> None:
    with log.open("ab") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    try:
        contend(Turn(line), *arguments)
    except Exception:  # whatever it is, it is told where it can be read
        line.send(traceback.format_exc())

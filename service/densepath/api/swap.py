"""`PairSwap`: another pair in place of the served one, while requests are answered."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from densepath.api.lifecycle import Lifecycle, Phase, draining
from densepath.api.served import Served
from densepath.engine.scorer import Scorer
from densepath.errors import (
    DensepathError,
    DrainingError,
    EngineStartError,
    InvalidPairError,
    InvalidRequestError,
    SwapInProgressError,
)
from densepath.telemetry.metrics import Metrics
from densepath.verification.start import Start

#: Between two looks whether the service is shutting down.
LOOK_SECONDS = 0.2
STILL_SERVED = "the pair that was served still is"

#: Checks two directories, and makes an engine for them that is not started. It blocks, and calls its last
#: argument often, with bytes done and bytes in all. Raises InvalidPairError where they are no pair.
Prepare = Callable[[Path, Path, Callable[[int, int], None]], tuple[Served, Start]]

log = structlog.get_logger()


@dataclass(frozen=True)
class Swapping:
    """Where pairs may come from, and how they are made."""

    root: Path
    prepare: Prepare
    drain_seconds: float  # that requests of the old pair may still take once the new one is served


class PairSwap:
    """Swaps the served pair, one swap at a time.

    The new pair gets an engine of its own beside the old one. It is served once it is loaded and verified. If
    anything fails until then, the old pair has never stopped being served, and the new engine is closed.
    """

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, swapping: Swapping | None) -> None:
        """Without `swapping`, every swap is refused."""
        self._lifecycle, self._metrics, self._swapping = lifecycle, metrics, swapping
        self._busy = False
        self._closing: asyncio.Task[None] | None = None  # of the old pair's engine

    async def swap(self, sft: str, reference: str) -> Served:
        """Serve the pair of two directories, which are relative to the root or lie under it.

        Cancelling the call ends the new engine. Raises InvalidPairError with the reason why the pair is not
        served, SwapInProgressError, and DrainingError where the service is shutting down.
        """
        if self._swapping is None:
            raise InvalidPairError("this service has no --pair-root, so another pair cannot be served")
        if self._busy:
            raise SwapInProgressError("another swap is running: send this one when it has ended")
        self._busy = True
        begin, result = time.monotonic(), "failed"
        log.info("swap_begins", model_version=self._lifecycle.served.pair.version)
        try:
            served = await self._unless_draining(self._swap(sft, reference, self._swapping))
            result = "success"
            return served
        except (InvalidPairError, DrainingError) as error:
            result = "refused" if isinstance(error, InvalidPairError) else "cancelled"
            raise
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        finally:
            self._busy = False
            self._metrics.pair_swaps.labels(result).inc()
            log.info(
                "swap_ends",
                result=result,
                model_version=self._lifecycle.served.pair.version,
                seconds=round(time.monotonic() - begin, 3),
            )

    async def _unless_draining(self, work: Coroutine[Any, Any, Served]) -> Served:
        swapping = asyncio.ensure_future(work)
        try:
            while not swapping.done():
                if self._lifecycle.phase is Phase.DRAINING:
                    raise draining()
                await asyncio.wait({swapping}, timeout=LOOK_SECONDS)
            return swapping.result()
        finally:
            swapping.cancel()
            await asyncio.gather(swapping, return_exceptions=True)

    async def _swap(self, sft: str, reference: str, swapping: Swapping) -> Served:
        directories = [
            await asyncio.to_thread(allowed_directory, side, text, swapping.root)
            for side, text in (("sft", sft), ("reference", reference))
        ]
        if self._closing is not None:  # there is never a third engine
            await asyncio.shield(self._closing)
        try:
            served = await self._started(directories[0], directories[1], swapping.prepare)
        except (InvalidRequestError, EngineStartError) as error:
            message = error.message
            for directory, side in zip(directories, ("the sft", "the reference"), strict=True):
                message = message.replace(f"{directory}/", "").replace(str(directory), side)
            raise InvalidPairError(f"{message}; {STILL_SERVED}") from error
        try:
            old = self._lifecycle.switch(served)
        except DensepathError:
            await served.scorer.close()
            raise
        self._closing = asyncio.create_task(self._close(old.scorer, swapping.drain_seconds))
        return served

    async def _started(self, sft: Path, reference: Path, prepare: Prepare) -> Served:
        """The checked pair in a verified engine. If this fails or is cancelled, the engine is closed."""
        unwanted = threading.Event()

        def progress(done: int, total: int) -> None:
            if unwanted.is_set():
                raise draining()  # ends the thread; nobody sees it

        try:
            served, start = await asyncio.to_thread(prepare, sft, reference, progress)
        finally:
            unwanted.set()
        try:
            verdict = await start(served.scorer)
            await asyncio.to_thread(served.pair.ensure_unchanged)
        except BaseException:
            await served.scorer.close()
            raise
        return replace(served, verdict=verdict)

    async def _close(self, scorer: Scorer, drain_seconds: float) -> None:
        """Close the old engine when the requests that may use it are answered."""
        try:
            async with asyncio.timeout(drain_seconds):
                await self._lifecycle.answered()
        except TimeoutError:
            log.warning("swap_cuts_off", seconds=drain_seconds)
        finally:
            await scorer.close()


def allowed_directory(side: str, text: str, root: Path) -> Path:
    """A directory under the root, with its links resolved.

    Raises InvalidPairError where it is elsewhere, or where a file in it is a link that leads out of the root.
    """
    root = root.resolve()
    try:
        directory = (root / text).resolve()
        if not directory.is_relative_to(root):
            raise InvalidPairError(f"{side}: this is not a directory under the service's --pair-root")
        if not directory.is_dir():
            raise InvalidPairError(f"{side}: there is no such directory under the service's --pair-root")
        for folder, folders, files in os.walk(directory):
            for name in (*folders, *files):
                if not Path(folder, name).resolve().is_relative_to(root):
                    raise InvalidPairError(
                        f"{side}: {name} is a link that leads out of the service's --pair-root"
                    )
    except InvalidPairError:
        raise
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
        raise InvalidPairError(f"{side}: this does not name a directory that can be read") from None
    return directory

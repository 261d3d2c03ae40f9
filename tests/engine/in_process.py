"""The pair inside vLLM in this process, behind the interface that the service uses."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from densepath.engine.scorer import Scored, View
from densepath.engine.vllm.arguments import computed_dtypes
from densepath.errors import EngineUnavailableError
from densepath.sequences import Sequence


def start_offline(arguments: dict[str, Any]) -> Any:
    """An `OfflineVllm`; what is loaded is kept from the garbage collections that vLLM makes at its start."""
    from densepath.engine.vllm.engine import OfflineVllm

    gc.freeze()  # until the engine ends
    return OfflineVllm(arguments)


class InProcessScorer:
    """Calls that wait at the same time go to the engine as one batch, as they do in the service."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self.context_length: int = arguments["max_model_len"]
        self.dtype, self.reference_dtype = computed_dtypes(arguments)
        self._engine: Any = None
        self._waiting: list[tuple[Sequence, bool, asyncio.Future[Scored]]] = []

    async def start(self) -> None:
        self._engine = start_offline(self._arguments)

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        future: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.append((sequence, cold, future))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._score_waiting)
        return await future

    def _score_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            scores = self._engine.score([sequence for sequence, _, _ in waiting], cold=waiting[0][1])
        except Exception as error:  # in the service, the engine's process ends with it
            for _, _, future in waiting:
                future.set_exception(EngineUnavailableError(f"the engine is not running: {error}"))
            return
        for (_, _, future), scored in zip(waiting, scores, strict=True):
            future.set_result(scored)

    def alive(self) -> bool:
        return self._engine is not None

    async def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

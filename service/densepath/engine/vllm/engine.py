"""Runs the pair: `VllmScorer` for the service and `densepath score`, `OfflineVllm` for tests and timings."""

from __future__ import annotations

import densepath.engine.vllm.environment  # noqa: F401

# isort: split
import asyncio
import uuid
from collections.abc import Sequence as ListLike
from contextlib import aclosing
from typing import Any

import numpy as np
from vllm import LLM, PoolingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from densepath.engine.ranking import read_table, table_width
from densepath.engine.scorer import Scored, View, engine_lost
from densepath.engine.vllm.arguments import computed_dtypes
from densepath.engine.vllm.core_process import END_SECONDS, Processes, engine_process
from densepath.engine.vllm.lifetime import mark_children
from densepath.engine.vllm.longrope import ShortSequences
from densepath.engine.vllm.plugin import register
from densepath.engine.vllm.pooler import TASK, pooling_params
from densepath.engine.vllm.reasons import forget, reasons
from densepath.errors import InternalError
from densepath.sequences import Sequence


def _scored(output: Any, sequence: Sequence, view: View | None = None) -> Scored:
    logp_T_X = output.outputs.data  # both log-probabilities, then the table of the view
    shape = (len(sequence.positions_T), 2 + table_width(view))
    if tuple(logp_T_X.shape) != shape:
        raise InternalError(f"the engine's answer has shape {tuple(logp_T_X.shape)} instead of {shape}")
    columns = logp_T_X.cpu().numpy().astype(np.float32, copy=False)
    ranked = None if view is None else read_table(columns[:, 2:], view)
    return Scored(columns[:, 0].copy(), columns[:, 1].copy(), int(output.num_cached_tokens or 0), ranked)


#: The time between two checks whether the engine is alive.
DEATH_LOOK_SECONDS = 0.5


class VllmScorer:
    """The pair in vLLM's own engine process. vLLM's scheduler makes the batches."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """`arguments` are those of `engine_arguments`."""
        self.arguments = arguments
        self.context_length: int = arguments["max_model_len"]
        self.dtype, self.reference_dtype = computed_dtypes(arguments)
        self.steps = 0
        self._llm: Any = None  # an AsyncLLM once started
        self._loading: asyncio.Future[AsyncLLM] | None = None
        self._processes = Processes()

    async def start(self) -> None:
        """Start the engine process and load both models. The event loop is not blocked meanwhile.

        Raises EngineStartError with vLLM's reason in one sentence.
        """
        register()
        mark_children()
        with reasons():
            self._loading = asyncio.ensure_future(asyncio.to_thread(self._load))
            self._llm = await asyncio.shield(self._loading)
        await asyncio.to_thread(self._processes.look)
        self._short = ShortSequences.of(self._llm.model_config)
        self._count_steps(self._llm.engine_core)
        self._death = asyncio.ensure_future(self.died())

    def _load(self) -> AsyncLLM:
        args = AsyncEngineArgs(**self.arguments, disable_log_stats=True, enable_log_requests=False)
        with engine_process(self._processes):
            return AsyncLLM.from_engine_args(args)

    def _count_steps(self, client: Any) -> None:
        """`PairScheduler` reports every step, and each report passes here."""
        receive = client.get_output_async

        async def counted() -> Any:
            outputs = await receive()
            self.steps += 1
            return outputs

        client.get_output_async = counted

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        """Score one sequence. Cancelling the call aborts its work in the engine."""
        if not self.alive():
            raise engine_lost()
        params = pooling_params(sequence.spans(), view, cold=cold)
        work = asyncio.ensure_future(self._encode(sequence, params, view))
        try:
            await asyncio.wait({work, self._death}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise engine_lost()
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _encode(self, sequence: Sequence, params: PoolingParams, view: View | None) -> Scored:
        prompt = {"prompt_token_ids": self._short.prompt_ids(sequence)}
        outputs = self._llm.encode(prompt, params, uuid.uuid4().hex)
        try:
            async with aclosing(outputs):
                return _scored(await anext(outputs), sequence, view)  # a pooling request has one output
        except EngineDeadError as error:
            raise engine_lost() from error

    async def died(self) -> None:
        """Return when the engine has died. A call that vLLM gets just after the death would never return."""
        while self.alive():  # noqa: ASYNC110  # vLLM has no event for this
            await asyncio.sleep(DEATH_LOOK_SECONDS)

    def alive(self) -> bool:
        """Whether the engine process still runs."""
        return self._llm is not None and not self._llm.errored

    async def close(self) -> None:
        """End the engine's processes, also those of one that is still starting or that hangs.

        Calls that wait raise EngineUnavailableError at once. Other engines are not affected.
        """
        forget()
        llm, self._llm = self._llm, None
        if llm is not None:
            self._death.cancel()
            # It must end before the engine does, or it would log the end of the engine as a failure.
            if (handler := llm.output_handler) is not None:
                handler.cancel()
            await asyncio.to_thread(llm.shutdown, END_SECONDS)
        await asyncio.to_thread(self._processes.kill)
        if self._loading is not None and not self._loading.done():  # its thread ends now that its process has
            await asyncio.wait({self._loading}, timeout=END_SECONDS)
        if self._loading is not None and self._loading.done() and not self._loading.cancelled():
            self._loading.exception()  # so that asyncio does not report it as unread


class OfflineVllm:
    """Scores a list of sequences as one workload. Tests and benchmarks use it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """`arguments` are those of `engine_arguments`, and any other arguments of vLLM's `LLM`."""
        register()
        self.llm = LLM(**arguments)
        self._short = ShortSequences.of(self.llm.llm_engine.model_config)

    def score(
        self, sequences: ListLike[Sequence], view: View | None = None, *, cold: bool = False
    ) -> list[Scored]:
        """Score all sequences as one workload."""
        outputs = self.llm.encode(
            [{"prompt_token_ids": self._short.prompt_ids(sequence)} for sequence in sequences],
            pooling_params=[pooling_params(sequence.spans(), view, cold=cold) for sequence in sequences],
            pooling_task=TASK,
            use_tqdm=False,
        )
        return [_scored(output, sequence, view) for output, sequence in zip(outputs, sequences, strict=True)]

    def close(self) -> None:
        """End the engine and its processes."""
        self.llm.llm_engine.engine_core.shutdown()

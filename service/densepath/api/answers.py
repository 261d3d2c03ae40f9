"""From scores to the bytes of an answer, as JSON or safetensors."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from densepath.api.items import Batch, Item
from densepath.api.service import Service
from densepath.engine.scorer import Scored
from densepath.errors import DensepathError
from densepath.rewards.reward import returns, rewards, total
from densepath.sequences import Sequence
from densepath.wire import pack_answer

#: The arrays of an item: its JSON field, and its tensor in the safetensors form.
ARRAYS = ("rewards", "sft_logprobs", "reference_logprobs", "returns")


@dataclass(frozen=True)
class ScoredItem:
    """A scored item. Arrays are float32 [T], in nats."""

    sequence: Sequence
    scored: Scored
    reward_T: NDArray[np.float32]

    @classmethod
    def of(cls, sequence: Sequence, scored: Scored) -> ScoredItem:
        """Raises NonFiniteScoreError: a failed score is never a number."""
        return cls(sequence, scored, rewards(scored.logp_sft_T, scored.logp_reference_T))


def answer(batch: Batch, results: list[ScoredItem | DensepathError]) -> dict[str, Any]:
    """The whole answer as a dict. The arrays in it are still numpy arrays."""
    good = [result for result in results if isinstance(result, ScoredItem)]
    return {
        "object": "rewards",
        "id": f"rw-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": batch.served.model_name,
        "model_version": batch.served.pair.version,
        "items": [
            _item(i, item, result, batch)
            for i, (item, result) in enumerate(zip(batch.items, results, strict=True))
        ],
        "usage": {
            "prompt_tokens": sum(result.sequence.prompt_tokens for result in good),
            "response_tokens": sum(len(result.reward_T) for result in good),
            "cached_tokens": sum(result.scored.cached_tokens for result in good),
        },
    }


def _item(index: int, item: Item, result: ScoredItem | DensepathError, batch: Batch) -> dict[str, Any]:
    head: dict[str, Any] = {"index": index} | ({"id": item.id} if item.id is not None else {})
    if isinstance(result, DensepathError):
        return {**head, "status": "error", "error": result.detail()}
    include, sequence = batch.options.include, result.sequence
    ids_T = sequence.scored_ids_T.tolist()
    fields: dict[str, Any] = {
        **head,
        "status": "ok",
        "rewards": result.reward_T,
        "sum": total(result.reward_T),
        "ended": ids_T[-1] in batch.served.pair.eos_token_ids,
    }
    if item.from_text or "tokens" in include:
        fields["response_token_ids"] = ids_T
    if item.from_mask:
        fields["positions"] = sequence.positions_T.tolist()
    if "logprobs" in include:
        fields["sft_logprobs"] = result.scored.logp_sft_T
        fields["reference_logprobs"] = result.scored.logp_reference_T
    if "returns" in include:
        fields["returns"] = returns(result.reward_T, batch.options.gamma)
    if "tokens" in include:
        fields["tokens"] = batch.served.tokenizer.token_strings(ids_T)
        if sequence.offsets_T is not None:
            fields["offsets"] = sequence.offsets_T
    return fields


async def write_answer(make: Callable[[], bytes], service: Service) -> bytes:
    """Make the bytes of an answer outside the event loop: the last stage of a request."""
    with service.traces.stage("answer") as span:
        content = await asyncio.to_thread(make)
        span.count(bytes=len(content))
        return content


def to_json(fields: dict[str, Any] | list[dict[str, Any]]) -> bytes:
    """JSON. Each float32 is written with the fewest digits that give the same float32 back."""
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def to_safetensors(fields: dict[str, Any]) -> bytes:
    """One safetensors blob: all items' arrays joined, the rest as metadata. A failed item has no rows."""
    items: list[dict[str, Any]] = fields["items"]
    lengths_N = [len(item["rewards"]) if "rewards" in item else 0 for item in items]
    arrays: dict[str, NDArray[Any]] = {"offsets": np.cumsum([0, *lengths_N], dtype=np.int64)}
    empty = np.empty(0, dtype=np.float32)
    for name in ARRAYS:
        parts = [item[name] for item in items if name in item]
        if parts or name == "rewards":
            arrays[name] = np.concatenate([*parts, empty])
    rest = {**fields, "items": [{k: v for k, v in item.items() if k not in ARRAYS} for item in items]}
    return pack_answer(arrays, rest)

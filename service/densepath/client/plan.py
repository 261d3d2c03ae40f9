"""From items to requests: chunks within the service's limits, each of one form and for one replica."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from densepath.client.items import AnyItem, Item, JsonItem, SpanItem, TokenItem, id_bytes, read_item
from densepath.client.replicas import Replica, Replicas
from densepath.errors import BodyTooLargeError, DensepathError, InternalError, InvalidRequestError
from densepath.wire import JSON_MEDIA_TYPE, MEDIA_TYPE, PackedRequest, pack_request

OnError = Literal["fail", "item"]
EXTRAS = ("logprobs", "returns", "tokens")

_ENVELOPE_BYTES = 4096  # the other fields of a request, and a safetensors header


#: Upper bounds of the bytes in an answer. A token has up to four float32, its id, its position and its
#: offsets. Its text is a string of JSON inside JSON. An item may have an error instead of rewards.
_ANSWER_BYTES = 1 << 16
_ANSWER_BYTES_AN_ITEM = 4096
_ANSWER_BYTES_A_TOKEN = 128
_ANSWER_BYTES_A_TEXT = 1024


@dataclass(frozen=True)
class Options:
    """What a call asks for besides its items.

    Raises:
        InvalidRequestError: the contract does not allow an option's value.
    """

    include: tuple[str, ...] = ()
    gamma: float = 1.0
    on_error: OnError = "fail"

    def __post_init__(self) -> None:
        if not set(self.include) <= set(EXTRAS):
            raise InvalidRequestError(f"include can hold {', '.join(EXTRAS)}", param="include")
        if not 0 <= self.gamma <= 1:
            raise InvalidRequestError("gamma must be between 0 and 1", param="gamma")
        if self.on_error not in ("fail", "item"):
            raise InvalidRequestError('on_error must be "fail" or "item"', param="on_error")

    def fields(self, model_version: str | None) -> dict[str, object]:
        """The request's JSON without its items."""
        fields: dict[str, object] = {
            "include": list(self.include),
            "gamma": float(self.gamma),
            "on_error": self.on_error,
        }
        if model_version is not None:
            fields["model_version"] = model_version
        return fields


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    max_items: int
    max_body_bytes: int
    max_queued_tokens: int

    @classmethod
    def of(cls, pair: Mapping[str, object]) -> Limits:
        """The limits in the answer of `GET /v1/pair`."""
        limits = pair.get("limits")
        values: list[Any] = [
            limits.get(name) if isinstance(limits, dict) else None for name in cls.__dataclass_fields__
        ]
        if not all(type(value) is int and value > 0 for value in values):
            raise InternalError(
                "the service's pair has no limits: max_items, max_body_bytes, max_queued_tokens"
            )
        return cls(*values)

    @classmethod
    def smallest(cls, of_all: Iterable[Limits]) -> Limits:
        """Limits that fit all of them: each value is the smallest."""
        return cls(*(min(values) for values in zip(*map(astuple, of_all), strict=True)))


@dataclass(frozen=True)
class Chunk:
    """Items of one form that are sent in one request, to the first of `replicas` that can be reached.

    All their prompts belong to the first replica. The others are in the order of the first item's prompt.
    """

    items: tuple[AnyItem, ...]
    replicas: tuple[Replica, ...]

    def body(self, options: Options, model_version: str | None) -> tuple[str, bytes]:
        """The media type and the bytes of its request."""
        fields = options.fields(model_version)
        if isinstance(self.items[0], JsonItem):
            return JSON_MEDIA_TYPE, _json_body([i for i in self.items if isinstance(i, JsonItem)], fields)
        ids = [item.id for item in self.items]
        if any(id_ is not None for id_ in ids):
            fields["ids"] = ids
        return MEDIA_TYPE, pack_request(_packed(self.items, fields))

    def max_answer_bytes(self, options: Options, limits: Limits) -> int:
        """An upper bound of the bytes of its answer."""
        # The service refuses a request with more tokens than its queue holds.
        n_tokens = min(sum(item.n_tokens for item in self.items), limits.max_queued_tokens)
        a_token = _ANSWER_BYTES_A_TOKEN + _ANSWER_BYTES_A_TEXT * ("tokens" in options.include)
        items = sum(_ANSWER_BYTES_AN_ITEM + id_bytes(item.id) for item in self.items)
        return _ANSWER_BYTES + items + a_token * n_tokens


@dataclass(frozen=True)
class Plan:
    """The chunks of a call, and the items that are not sent: index → reason."""

    chunks: tuple[Chunk, ...]
    refused: dict[int, DensepathError]


def read_items(
    items: Iterable[Item], options: Options, first: int = 0
) -> tuple[list[AnyItem], dict[int, DensepathError]]:
    """The items, numbered from `first`, and index → reason for those that are invalid.

    With on_error "fail", the first invalid item raises its error.
    """
    read: list[AnyItem] = []
    refused: dict[int, DensepathError] = {}
    for index, item in enumerate(items, first):
        try:
            read.append(read_item(index, item))
        except DensepathError as error:
            if options.on_error == "fail":
                raise
            refused[index] = error
    if not read and not refused:
        raise InvalidRequestError("there is nothing to score: send at least one item", param="items")
    return read, refused


def make_plan(
    items: Sequence[AnyItem],
    refused: Mapping[int, DensepathError],
    options: Options,
    limits: Limits,
    replicas: Replicas,
    in_flight: int,
) -> Plan:
    """Chunks within the limits. They are so small that `in_flight` of them fit a replica's queue together."""
    room = limits.max_body_bytes - _ENVELOPE_BYTES
    tokens = max(1, limits.max_queued_tokens // in_flight)
    too_large = {item.index: _too_large(item, limits) for item in items if item.n_bytes > room}
    if too_large and options.on_error == "fail":
        raise next(iter(too_large.values()))
    groups: dict[tuple[type, Replica], list[AnyItem]] = {}
    orders: dict[int, tuple[Replica, ...]] = {}
    for item in items:
        if item.index not in too_large:
            orders[item.index] = replicas.order(item.prompt_key)
            groups.setdefault((type(item), orders[item.index][0]), []).append(item)
    chunks = [
        Chunk(part, orders[part[0].index])
        for group in groups.values()
        for part in _split(group, limits.max_items, room, tokens)
    ]
    chunks.sort(key=lambda chunk: chunk.items[0].index)
    return Plan(tuple(chunks), {**refused, **too_large})


def _split(
    items: Sequence[AnyItem], max_items: int, max_bytes: int, max_tokens: int
) -> list[tuple[AnyItem, ...]]:
    bounds = [0]
    n_bytes = n_tokens = 0
    for at, item in enumerate(items):
        full = (
            at - bounds[-1] == max_items
            or n_bytes + item.n_bytes > max_bytes
            or n_tokens + item.n_tokens > max_tokens
        )
        if full and at > bounds[-1]:
            bounds.append(at)
            n_bytes = n_tokens = 0
        n_bytes += item.n_bytes
        n_tokens += item.n_tokens
    return [tuple(items[a:b]) for a, b in pairwise([*bounds, len(items)]) if a < b]


def _too_large(item: AnyItem, limits: Limits) -> BodyTooLargeError:
    where = f"items[{item.index}]"
    return BodyTooLargeError(
        f"{where} alone may need {item.n_bytes} bytes; a request can have {limits.max_body_bytes} at most",
        param=where,
    )


def _json_body(items: Sequence[JsonItem], fields: dict[str, object]) -> bytes:
    head = json.dumps(fields, separators=(",", ":")).encode()[:-1]
    return head + b',"items":[' + b",".join(item.body for item in items) + b"]}"


def _packed(items: Sequence[AnyItem], fields: dict[str, object]) -> PackedRequest:
    rows = [item for item in items if not isinstance(item, JsonItem)]
    token_ids = np.concatenate([item.token_ids for item in rows])
    int32 = np.iinfo(np.int32)
    if token_ids.size and int32.min <= token_ids.min() and token_ids.max() <= int32.max:
        token_ids = token_ids.astype(np.int32)
    offsets = np.cumsum([0, *(len(item.token_ids) for item in rows)], dtype=np.int64)
    spans = [item.response_mask for item in rows if isinstance(item, SpanItem)]
    starts = [item.response_start for item in rows if isinstance(item, TokenItem)]
    return PackedRequest(
        token_ids,
        offsets,
        np.array(starts, np.int64) if starts else None,
        np.concatenate(spans) if spans else None,
        fields,
    )

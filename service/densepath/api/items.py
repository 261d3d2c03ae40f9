"""From both wire forms of a request to one batch. An item without a sequence has its error instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from densepath import sequences
from densepath.api.body import parse_json, validate, wanted
from densepath.api.schemas import (
    ChatItem,
    PackedOptions,
    RewardsOptions,
    SpansItem,
    Strict,
    TextItem,
    TokensItem,
)
from densepath.api.served import Served
from densepath.errors import (
    DensepathError,
    InvalidItemError,
    InvalidRequestError,
    MalformedBodyError,
    ModelNotFoundError,
    ModelVersionMismatchError,
)
from densepath.sequences import Sequence
from densepath.wire import PackedRequest, unpack_request

#: The fields that identify each form. `response` belongs to two forms, so it identifies none.
FORMS: dict[str, type[Strict]] = {
    "prompt_token_ids": TokensItem,
    "response_token_ids": TokensItem,
    "token_ids": SpansItem,
    "response_mask": SpansItem,
    "messages": ChatItem,
    "prompt": TextItem,
}
#: A header has a few tensors and the options of the request. It is parsed at once, and holds the service.
MOST_HEADER_BYTES = 1 << 22
FORMS_IN_WORDS = (
    "prompt_token_ids and response_token_ids, token_ids and response_mask, prompt and response, "
    "or messages and response"
)


@dataclass(frozen=True)
class Item:
    """One item of a batch; `sequence` is what is scored, or the error why there is none."""

    id: str | None
    sequence: Sequence | DensepathError
    from_text: bool = False  # the answer then has its token ids
    from_mask: bool = False  # the answer then has the positions of its scored tokens


@dataclass(frozen=True)
class Batch:
    """A whole request, in order, and the pair that it is scored by."""

    served: Served
    options: RewardsOptions
    items: list[Item]


def read_json_batch(body: bytes, served: Served, max_items: int) -> Batch:
    """Read a JSON body. It tokenises text, so call it outside the event loop."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequestError("the body must be a JSON object with items")
    raw_items = value.pop("items", None)
    options = validate(RewardsOptions, value)
    _check_served(options, served)
    if not isinstance(raw_items, list):
        raise InvalidRequestError("items: a list of items is required", param="items")
    _check_count(len(raw_items), max_items)
    return Batch(served, options, [_read_item(raw, i, served) for i, raw in enumerate(wanted(raw_items))])


def read_packed_batch(body: bytes, served: Served, max_items: int) -> Batch:
    """Read a safetensors body."""
    if int.from_bytes(body[:8], "little") > min(MOST_HEADER_BYTES, len(body)):
        raise MalformedBodyError(
            f"the body is not a safetensors file with a header of up to {MOST_HEADER_BYTES} bytes"
        )
    packed = unpack_request(body)
    options = validate(PackedOptions, packed.request)
    _check_served(options, served)
    count = len(packed.offsets) - 1
    _check_count(count, max_items)
    ids = options.ids or [None] * count
    if len(ids) != count:
        raise InvalidRequestError(f"ids has {len(ids)} entries for {count} sequences", param="ids")
    return Batch(served, options, [_read_packed(packed, i, ids[i], served) for i in range(count)])


def _check_served(options: RewardsOptions, served: Served) -> None:
    """Refuse a model or a version that is not the served one, before any item is read."""
    if options.model is not None and options.model != served.model_name:
        raise ModelNotFoundError(f"this service serves the model `{served.model_name}`", param="model")
    if options.model_version is not None and options.model_version != served.pair.version:
        raise ModelVersionMismatchError(
            f"the served pair has version {served.pair.version}, which is not the pinned one",
            param="model_version",
        )


def _check_count(count: int, max_items: int) -> None:
    if not 1 <= count <= max_items:
        raise InvalidItemError(f"items has {count} entries: a request holds 1 to {max_items}", param="items")


def _read_item(raw: Any, index: int, served: Served) -> Item:
    if not isinstance(raw, dict):
        return Item(None, InvalidRequestError(f"items[{index}] must be an object", param=f"items[{index}]"))
    raw_id = raw.get("id")
    item_id = raw_id if isinstance(raw_id, str) else None
    forms = {FORMS[name] for name in raw if name in FORMS}
    sequence = _located(index, lambda: served.check(_sequence(raw, forms, index, served)))
    return Item(item_id, sequence, from_text=bool(forms & {TextItem, ChatItem}), from_mask=SpansItem in forms)


def _sequence(raw: dict[str, Any], forms: Iterable[type[Strict]], index: int, served: Served) -> Sequence:
    found = list(forms)
    if not found:
        raise InvalidRequestError(f"the item has none of the forms: send {FORMS_IN_WORDS}")
    if len(found) > 1:
        raise InvalidItemError(f"the item mixes two forms: send either {FORMS_IN_WORDS}")
    match validate(found[0], raw, at=f"items[{index}]"):
        case TokensItem(prompt_token_ids=prompt_ids, response_token_ids=response_ids):
            if prompt_ids and response_ids:
                served.check_length([prompt_ids], more=len(response_ids))
            return sequences.from_response(prompt_ids, response_ids)
        case SpansItem(token_ids=token_ids, response_mask=mask):
            return sequences.from_mask(token_ids, mask)
        case TextItem(prompt=prompt, response=response, append_eos=append_eos):
            if not prompt:  # a BOS that the tokenizer adds is no prompt
                raise InvalidItemError(
                    "the prompt is empty: there is nothing to be scored after", param="prompt"
                )
            served.check_text(prompt, response)
            return served.tokenizer.from_text(prompt, response, append_eos=append_eos)
        case ChatItem(messages=messages, response=response) as item:
            if not messages:
                raise InvalidItemError("messages is empty: send at least one", param="messages")
            served.check_text(response)
            return served.tokenizer.from_chat(
                [message.model_dump(exclude_unset=True) for message in messages],
                response,
                append_eos=item.append_eos,
                template_kwargs=item.chat_template_kwargs,
                context_length=served.scorer.context_length,
            )
    raise AssertionError(found)


def _read_packed(packed: PackedRequest, index: int, item_id: str | None, served: Served) -> Item:
    begin, end = packed.offsets[index], packed.offsets[index + 1]
    token_ids_L = packed.token_ids[begin:end].astype(np.int64)

    def read() -> Sequence:
        if packed.response_mask is not None:
            return sequences.from_mask(token_ids_L, packed.response_mask[begin:end])
        start = int(packed.response_start[index]) if packed.response_start is not None else 0
        if not 0 <= start <= len(token_ids_L):
            raise InvalidItemError(
                f"response_start is outside the sequence of {len(token_ids_L)} tokens", param="response_start"
            )
        return sequences.from_response(token_ids_L[:start], token_ids_L[start:])

    sequence = _located(index, lambda: served.check(read()))
    return Item(item_id, sequence, from_mask=packed.response_mask is not None)


def _located(index: int, make: Callable[[], Sequence]) -> Sequence | DensepathError:
    """A sequence, or its error, which then names the item."""
    try:
        return make()
    except InvalidRequestError as error:
        return at_item(error, index)


def at_item(error: DensepathError, index: int) -> DensepathError:
    """The same error, with the index of the item in it."""
    place = f"items[{index}]"
    if (error.param or "").startswith(place):
        return error
    located = type(error)(f"{place}: {error.message}", retry_after=error.retry_after)
    located.param = f"{place}.{error.param}" if error.param else place
    return located

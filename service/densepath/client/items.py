"""The four forms of an item, read from plain dicts.

Token ids may be lists of ints, integer arrays or torch tensors on any device. An item that the wire format
cannot carry is refused here with the service's error. Checks that need the pair (the range of ids, the
context length) are left to the service.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from densepath.errors import InvalidItemError

Item = Mapping[str, object]

_BYTES_A_TOKEN = 8 + 1  # an int64 id and its byte of the mask: an upper bound
_BYTES_AN_ITEM = 16  # its offset and its response_start

_FORMS: dict[str, tuple[frozenset[str], frozenset[str]]] = {  # form → required, optional
    "tokens": (frozenset({"prompt_token_ids", "response_token_ids"}), frozenset({"id"})),
    "spans": (frozenset({"token_ids", "response_mask"}), frozenset({"id"})),
    "text": (frozenset({"prompt", "response"}), frozenset({"id", "append_eos"})),
    "chat": (frozenset({"messages", "response"}), frozenset({"id", "append_eos", "chat_template_kwargs"})),
}


@dataclass(frozen=True, eq=False)
class _Sequence:
    index: int
    id: str | None
    token_ids: npt.NDArray[np.int64]

    @property
    def n_tokens(self) -> int:
        """How many tokens it takes in the service's queue."""
        return len(self.token_ids)

    @property
    def n_bytes(self) -> int:
        """An upper bound of the bytes that it takes in a body."""
        return _BYTES_AN_ITEM + _BYTES_A_TOKEN * self.n_tokens + id_bytes(self.id)


@dataclass(frozen=True, eq=False)
class TokenItem(_Sequence):
    """Tokens form: the response begins at `response_start`."""

    response_start: int

    @property
    def prompt_key(self) -> bytes:
        """Equal for all items with the same prompt, in either of the two forms of token ids."""
        return _digest(self.token_ids[: self.response_start].tobytes())


@dataclass(frozen=True, eq=False)
class SpanItem(_Sequence):
    """Spans form: the tokens under the mask are scored."""

    response_mask: npt.NDArray[np.uint8]

    @property
    def prompt_key(self) -> bytes:
        """As `TokenItem.prompt_key`. The prompt is everything before the first scored token."""
        return _digest(self.token_ids[: self.response_mask.argmax()].tobytes())


@dataclass(frozen=True, eq=False)
class JsonItem:
    """Text or chat form, already JSON."""

    index: int
    id: str | None
    body: bytes
    prompt_key: bytes

    @property
    def n_tokens(self) -> int:
        """An upper bound of its tokens: no tokenizer makes more tokens than the text has bytes."""
        return len(self.body)

    @property
    def n_bytes(self) -> int:
        """How many bytes it takes in a body, its comma included."""
        return len(self.body) + 1


AnyItem = TokenItem | SpanItem | JsonItem


def read_item(index: int, item: Item) -> AnyItem:
    """The item that a dict holds.

    Raises:
        InvalidItemError: the dict has none of the four forms, or a field that the wire format cannot carry.
    """
    where = f"items[{index}]"
    form = _form(item, where)
    id_ = item.get("id")
    if id_ is not None and not isinstance(id_, str):
        _refuse(where, "id", "must be a string")
    if form == "tokens":
        prompt = _token_ids(item["prompt_token_ids"], where, "prompt_token_ids")
        response = _token_ids(item["response_token_ids"], where, "response_token_ids")
        return TokenItem(index, id_, np.concatenate([prompt, response]), len(prompt))
    if form == "spans":
        token_ids = _token_ids(item["token_ids"], where, "token_ids")
        return SpanItem(index, id_, token_ids, _mask(item["response_mask"], len(token_ids), where))
    body, context = _json(item, where), item.get("prompt", item.get("messages"))
    return JsonItem(index, id_, body, _digest(json.dumps(context).encode()))


def _form(item: Item, where: str) -> str:
    if not isinstance(item, Mapping):
        raise InvalidItemError(f"{where} must be a mapping", param=where)
    given = set(item)
    for form, (required, optional) in _FORMS.items():
        if required <= given <= required | optional:
            return form
    raise InvalidItemError(
        f"{where} must have the fields of exactly one form: prompt_token_ids and response_token_ids; "
        "token_ids and response_mask; prompt and response; or messages and response",
        param=where,
    )


def _token_ids(value: object, where: str, field: str) -> npt.NDArray[np.int64]:
    array = _integers(value)
    if array is None:
        _refuse(where, field, "must be a flat list of integers, or a one-dimensional integer array")
    return array


def _mask(value: object, length: int, where: str) -> npt.NDArray[np.uint8]:
    given: Any = _from_torch(value)
    if getattr(given, "dtype", None) == np.bool_:
        given = np.asarray(given).astype(np.uint8)
    array = _integers(given)
    if array is None or not bool(np.isin(array, (0, 1)).all()):
        _refuse(where, "response_mask", "must be a flat list of 0 and 1")
    if len(array) != length:
        _refuse(where, "response_mask", f"has {len(array)} values for {length} token ids")
    return array.astype(np.uint8)


def _integers(value: object) -> npt.NDArray[np.int64] | None:
    """A flat int64 array, or None if a value is not an integer. True and 2.0 do not count as integers."""
    value = _from_torch(value)
    if isinstance(value, (list, tuple)):
        kinds = set(map(type, value))  # checking each type once is faster than checking each value
        if any(not issubclass(kind, (int, np.integer)) or kind is bool for kind in kinds):
            return None
    elif not hasattr(value, "__array__") or np.asarray(value).dtype.kind not in "iu":
        return None
    try:
        array = np.asarray(value, dtype=np.int64)
    except OverflowError:
        return None
    return array if array.ndim == 1 else None


def _from_torch(value: Any) -> Any:
    """A torch tensor as a numpy array, without importing torch. Anything else is returned unchanged."""
    if not any(base.__module__.partition(".")[0] == "torch" for base in type(value).__mro__):
        return value
    try:
        return value.detach().cpu().numpy()
    except (RuntimeError, TypeError):  # numpy lacks the layout or the dtype, so these are not integers
        return None


def _json(item: Item, where: str) -> bytes:
    for field, kind in (
        ("prompt", str),
        ("response", str),
        ("messages", (list, tuple)),
        ("append_eos", bool),
        ("chat_template_kwargs", (dict, type(None))),
    ):
        if field in item and not isinstance(item[field], kind):
            _refuse(where, field, "has another type than the contract requires")
    try:
        fields = {key: value for key, value in item.items() if not (key == "id" and value is None)}
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):  # a lone surrogate is a ValueError too
        raise InvalidItemError(f"{where} cannot be written as JSON in UTF-8", param=where) from None


def _digest(prompt: bytes) -> bytes:
    return hashlib.blake2b(prompt, digest_size=16).digest()


def id_bytes(id_: str | None) -> int:
    """An upper bound of the bytes of an id in a body."""
    # In the metadata the id is JSON inside JSON: at most 7 bytes for each UTF-16 unit, and the quotes.
    return 14 * len(id_) + 8 if id_ is not None else 8


def _refuse(where: str, field: str, what: str) -> NoReturn:
    raise InvalidItemError(f"{where}.{field} {what}", param=f"{where}.{field}")

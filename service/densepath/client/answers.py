"""Reading and checking the answers of the service. An inconsistent answer is an error, never numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from densepath.client.exchange import Reply
from densepath.client.items import AnyItem, JsonItem, SpanItem, TokenItem
from densepath.client.plan import Options
from densepath.client.results import Float32, Int64, Score
from densepath.errors import (
    BY_CODE,
    AccessError,
    ConflictError,
    DeadlineExceededError,
    DensepathError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    NotFoundError,
    RequestTimeoutError,
    UnavailableError,
)
from densepath.wire import MEDIA_TYPE, unpack_answer

USAGE = ("prompt_tokens", "response_tokens", "cached_tokens")

#: For an error whose code is missing or unknown here. A gateway that cannot reach the service answers 502.
_BY_STATUS: dict[int, type[DensepathError]] = {
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    405: NotFoundError,
    408: RequestTimeoutError,
    409: ConflictError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: DeadlineExceededError,
}
_ARRAYS = {"logprobs": ("sft_logprobs", "reference_logprobs"), "returns": ("returns",)}
_ITEM_INDEX = re.compile(r"\bitems\[(\d+)\]")


@dataclass(frozen=True)
class Answer:
    """The scores of one request. Their indexes are those of the caller's list."""

    scores: tuple[Score, ...]
    model_version: str
    usage: dict[str, int]


def read_json(response: Reply) -> dict[str, Any]:
    """The JSON object of an answer. Raises the error that the answer carries."""
    raise_for_error(response)
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError):
        _malformed("it is not JSON")
    if not isinstance(answer, dict):
        _malformed("it is not a JSON object")
    return answer


def read_rewards(response: Reply, items: Sequence[AnyItem], options: Options) -> Answer:
    """The scores of the items of one request. Raises the error that the answer carries instead.

    Raises:
        InternalError: the answer is inconsistent (lengths, order or ids), or a value is not finite.
    """
    try:
        raise_for_error(response)
    except DensepathError as error:
        raise renumbered(error, [item.index for item in items]) from None
    if response.headers.get("content-type", "").partition(";")[0].strip() != MEDIA_TYPE:
        _malformed(f"its content type is not {MEDIA_TYPE}")
    try:
        arrays, fields = unpack_answer(response.content)
    except MalformedBodyError as error:
        _malformed(error.message)
    rows = _rows(arrays, len(items), options)
    entries = fields.get("items")
    version = fields.get("model_version")
    if not isinstance(entries, list) or len(entries) != len(items):
        _malformed(f"it does not have {len(items)} items")
    if not isinstance(version, str) or not version:
        _malformed("it names no model_version")
    scores = [_score(at, item, entries[at], rows, options) for at, item in enumerate(items)]
    return Answer(tuple(scores), version, _usage(fields.get("usage")))


def raise_for_error(response: Reply) -> None:
    """Raise the error that an answer carries: the class of its code, or of its status for an unknown code."""
    if response.status_code == 200:
        return
    try:
        detail = json.loads(response.content)["error"]
    except (ValueError, RecursionError, TypeError, KeyError):
        detail = None
    raise _error(detail, response.status_code, _retry_after(response))


def renumbered(error: DensepathError, indexes: Sequence[int]) -> DensepathError:
    """The same error, but `items[k]` of the request becomes `items[indexes[k]]` of the caller's list."""

    def caller(match: re.Match[str]) -> str:
        at = int(match[1])
        return f"items[{indexes[at]}]" if at < len(indexes) else match[0]

    param = None if error.param is None else _ITEM_INDEX.sub(caller, error.param)
    message = _ITEM_INDEX.sub(caller, error.message)
    return type(error)(message, param=param, retry_after=error.retry_after)


@dataclass(frozen=True)
class _Rows:
    offsets: npt.NDArray[np.int64]
    arrays: Mapping[str, Float32]

    def of(self, name: str, at: int) -> Float32 | None:
        array = self.arrays.get(name)
        return None if array is None else array[self.offsets[at] : self.offsets[at + 1]]

    def count(self, at: int) -> int:
        return int(self.offsets[at + 1] - self.offsets[at])


def _rows(arrays: Mapping[str, npt.NDArray[Any]], n_items: int, options: Options) -> _Rows:
    offsets, rewards = arrays.get("offsets"), arrays.get("rewards")
    if offsets is None or offsets.dtype != np.int64 or offsets.shape != (n_items + 1,):
        _malformed(f"its offsets are not int64 of length {n_items + 1}")
    if rewards is None or rewards.ndim != 1:
        _malformed("it has no flat rewards")
    if offsets[0] != 0 or offsets[-1] != len(rewards) or bool((offsets[1:] < offsets[:-1]).any()):
        _malformed("its offsets do not ascend from 0 to the number of rewards")
    asked = ["rewards"]
    if len(rewards):  # an answer without a scored token may omit the extras
        asked += [name for extra in options.include for name in _ARRAYS.get(extra, ())]
    for name in asked:
        array = arrays.get(name)
        if array is None or array.dtype != np.float32 or array.shape != rewards.shape:
            _malformed(f"its {name} are not float32 with one value per reward")
        if not bool(np.isfinite(array).all()):
            _malformed(f"its {name} hold a value that is not finite")
    return _Rows(offsets, {name: arrays[name] for name in asked})


def _score(at: int, item: AnyItem, entry: object, rows: _Rows, options: Options) -> Score:
    where = f"items[{item.index}]"
    if not isinstance(entry, dict) or entry.get("index") != at or entry.get("id") != item.id:
        _malformed(f"{where} has another index or id than the item that was sent")
    n_T = rows.count(at)
    if entry.get("status") == "error" and options.on_error == "item":
        if n_T:
            _malformed(f"{where} failed, but has rewards")
        error = renumbered(_error(entry.get("error"), 0, None), _sent_as(at, item.index))
        return Score(item.index, item.id, error=error)
    if entry.get("status") != "ok":
        _malformed(f"{where} has a status that this request does not allow")
    expected = _expected(item)
    if n_T == 0 or expected not in (None, n_T):
        _malformed(f"{where} has {n_T} rewards{'' if expected is None else f' for {expected} scored tokens'}")
    total, ended = _finite(entry.get("sum")), entry.get("ended")
    if total is None or not isinstance(ended, bool):
        _malformed(f"{where} has no finite sum, or no boolean ended")
    return Score(
        index=item.index,
        id=item.id,
        reward_T=rows.of("rewards", at),
        logp_sft_T=rows.of("sft_logprobs", at),
        logp_reference_T=rows.of("reference_logprobs", at),
        return_T=rows.of("returns", at),
        sum=total,
        ended=ended,
        **_details(item, entry, n_T, "tokens" in options.include),
    )


def _details(item: AnyItem, entry: Mapping[str, Any], n_T: int, tokens: bool) -> dict[str, Any]:
    """The parts of a score that are not one float per token, required where the contract promises them."""
    where, text = f"items[{item.index}]", isinstance(item, JsonItem)
    ids = _ints(entry.get("response_token_ids"), (n_T,), text or tokens, f"{where}.response_token_ids")
    span = isinstance(item, SpanItem)
    positions = _ints(entry.get("positions"), (n_T,), span, f"{where}.positions")
    offsets = _ints(entry.get("offsets"), (n_T, 2), text and tokens, f"{where}.offsets")
    if isinstance(item, SpanItem) and entry["positions"] != np.flatnonzero(item.response_mask).tolist():
        _malformed(f"{where}.positions are not those of the mask")
    strings = entry.get("tokens")
    if strings is not None or tokens:
        good = isinstance(strings, list) and len(strings) == n_T and all(type(s) is str for s in strings)
        if not good:
            _malformed(f"{where}.tokens are not {n_T} strings")
    return {
        "response_token_ids": ids,
        "positions": positions,
        "offsets": offsets,
        "tokens": None if strings is None else tuple(strings),
    }


def _ints(value: object, shape: tuple[int, ...], required: bool, where: str) -> Int64 | None:
    if value is None and not required:
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        _malformed(f"{where} is ragged")
    if array.dtype.kind != "i" or array.shape != shape:
        _malformed(f"{where} is not an integer array of shape {shape}")
    return array.astype(np.int64)


def _finite(value: Any) -> float | None:
    if type(value) not in (float, int):  # a bool is an instance of int, but not a sum
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _expected(item: AnyItem) -> int | None:
    if isinstance(item, TokenItem):
        return len(item.token_ids) - item.response_start
    if isinstance(item, SpanItem):
        return int(item.response_mask.sum(dtype=np.int64))
    return None


def _sent_as(at: int, index: int) -> list[int]:
    return [*range(at), index]


def _usage(usage: object) -> dict[str, int]:
    counts: dict[str, Any] = {name: usage.get(name) for name in USAGE} if isinstance(usage, dict) else {}
    if not counts or not all(type(count) is int and count >= 0 for count in counts.values()):
        _malformed("its usage does not count " + ", ".join(USAGE))
    return counts


def _error(detail: object, status: int, retry_after: int | None) -> DensepathError:
    known = detail if isinstance(detail, dict) else {}
    code, message, param = known.get("code"), known.get("message"), known.get("param")
    cls = BY_CODE.get(code) if isinstance(code, str) else None
    if cls is None:
        fallback = InvalidRequestError if 400 <= status < 500 else InternalError
        cls = _BY_STATUS.get(status, fallback)
    if not isinstance(message, str):
        message = f"the answer has status {status} and no error that the contract knows"
    return cls(message, param=param if isinstance(param, str) else None, retry_after=retry_after)


def _retry_after(response: Reply) -> int | None:
    """The seconds that Retry-After asks for, as a number or as a date. None: it says neither."""
    value = response.headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    until = _date(value)
    if until is None:
        return None
    # The service's own clock, where it is known: the two clocks may differ.
    now = _date(response.headers.get("date", "")) or datetime.now(UTC)
    return max(0, math.ceil((until - now).total_seconds()))


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _malformed(what: str) -> NoReturn:
    raise InternalError(f"the service's answer is malformed: {what}")

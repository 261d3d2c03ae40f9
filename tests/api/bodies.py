"""Requests, good and nearly good, in both encodings."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors.numpy import save

#: Stands wherever a request can hold text: no answer may repeat it.
CANARY = "c4n4ry"
JSON = "application/json"
SAFETENSORS = "application/x-safetensors"
REWARDS = "/v1/rewards"
GOOD = {"prompt_token_ids": [1, 10, 11], "response_token_ids": [12, 13, 2]}
SPANS = {"token_ids": [1, 10, 11, 12], "response_mask": [0, 1, 0, 1]}
TEXT = {"prompt": "the sum", "response": "five"}
CHAT = {"messages": [{"role": "user", "content": "the sum"}], "response": "five"}


def raw(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body


def body(*items: Any, **fields: Any) -> bytes:
    return json.dumps({"items": list(items), **fields}).encode()


def changed(form: dict[str, Any], **fields: Any) -> bytes:
    """A request with one item: a form with some fields changed, or left out where they are `...`."""
    item = {name: value for name, value in {"id": CANARY, **form, **fields}.items() if value is not ...}
    return body(item)


def written(text: str, *, where: str = "prompt_token_ids") -> bytes:
    """A request whose first id is this JSON text, which Python would not write."""
    item = changed(GOOD, **{where: ["HERE", 5]}).decode()
    return item.replace('"HERE"', text).encode()


def nested(depth: int) -> bytes:
    return b'{"items": ' + b"[" * depth + b"]" * depth + b"}"


def packed(request: Any = None, *, metadata: dict[str, str] | None = None, **tensors: Any) -> bytes:
    """A safetensors request: one good sequence, with tensors changed, or left out where they are None."""
    arrays: dict[str, Any] = {
        "token_ids": np.array([1, 10, 11, 12], np.int32),
        "offsets": np.array([0, 4]),
        "response_start": np.array([2]),
    } | tensors
    if metadata is None:
        metadata = {"request": json.dumps({"ids": [CANARY]} if request is None else request)}
    return save({name: array for name, array in arrays.items() if array is not None}, metadata=metadata)


def ids(*values: int, dtype: Any = np.int64) -> np.ndarray[Any, Any]:
    return np.array(values, dtype)

"""The `application/x-safetensors` form of requests and answers, for the client and the service.

One blob is one safetensors file: the arrays are tensors, and everything else is JSON under one metadata key.
Unpacking checks types and shapes, but not the meaning. An empty sequence, an unknown token id or a mask value
other than 0 and 1 is left to the service, which reports it for its item.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from densepath.errors import InvalidItemError, InvalidRequestError, MalformedBodyError

MEDIA_TYPE = "application/x-safetensors"
JSON_MEDIA_TYPE = "application/json"

_REQUEST_DTYPES: dict[str, tuple[str, ...]] = {
    "token_ids": ("I32", "I64"),
    "offsets": ("I64",),
    "response_start": ("I64",),
    "response_mask": ("U8",),
}
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")


@dataclass(frozen=True, eq=False)
class PackedRequest:
    """Concatenated sequences of token ids, and which of their tokens are scored.

    Exactly one of `response_start` and `response_mask` is set: all tokens from an index on are scored, or
    those under a mask.
    """

    token_ids: npt.NDArray[np.int32] | npt.NDArray[np.int64]
    """`[S]`: the token ids of all sequences; S is the sum of their lengths."""
    offsets: npt.NDArray[np.int64]
    """`[N + 1]`: sequence i is `token_ids[offsets[i] : offsets[i + 1]]`."""
    response_start: npt.NDArray[np.int64] | None
    """`[N]`: the index of the first scored token, within its own sequence."""
    response_mask: npt.NDArray[np.uint8] | None
    """`[S]`: 1 where a token is scored."""
    request: dict[str, object]
    """The other fields of the request, including `ids` (a list with one id per item)."""


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: list[int]
    data: bytes | bytearray

    def array(self) -> npt.NDArray[Any]:
        # The array holds a reference to its own copy of the bytes, so the blob may be freed first.
        flat: npt.NDArray[Any] = np.frombuffer(self.data, dtype=_NUMPY_DTYPES[self.dtype])
        return flat.reshape(self.shape)


def pack_request(packed: PackedRequest) -> bytes:
    """The blob of a request. Its arrays must have the dtypes and shapes that `PackedRequest` names."""
    arrays: dict[str, npt.NDArray[Any]] = {"token_ids": packed.token_ids, "offsets": packed.offsets}
    if packed.response_start is not None:
        arrays["response_start"] = packed.response_start
    if packed.response_mask is not None:
        arrays["response_mask"] = packed.response_mask
    return _pack(arrays, "request", packed.request)


def unpack_request(blob: bytes | bytearray | memoryview) -> PackedRequest:
    """The request in a blob. Types and shapes are checked.

    Raises:
        MalformedBodyError: the blob is not safetensors, or its metadata is not JSON or is nested too deep.
        InvalidItemError: `token_ids` are not integers.
        InvalidRequestError: a tensor is missing or unknown, or its dtype, rank or length is wrong.
    """
    tensors, request = _unpack(blob, "request")
    unknown = len(tensors.keys() - _REQUEST_DTYPES.keys())
    if unknown:
        _refuse(f"{unknown} tensors are unknown; the known tensors are {', '.join(_REQUEST_DTYPES)}")
    arrays = {name: _request_array(name, tensor) for name, tensor in tensors.items()}
    for name in ("token_ids", "offsets"):
        if name not in arrays:
            _refuse(f"tensor {name} is missing", name)
    start, mask = arrays.get("response_start"), arrays.get("response_mask")
    if (start is None) == (mask is None):
        _refuse("send exactly one of the tensors response_start and response_mask", "response_start")
    token_ids, offsets = arrays["token_ids"], arrays["offsets"]
    _check_offsets(offsets, len(token_ids))
    if start is not None and len(start) != len(offsets) - 1:
        _refuse(f"response_start has {len(start)} values for {len(offsets) - 1} sequences", "response_start")
    if mask is not None and len(mask) != len(token_ids):
        _refuse(f"response_mask has {len(mask)} values for {len(token_ids)} token ids", "response_mask")
    return PackedRequest(token_ids, offsets, start, mask, request)


def pack_answer(arrays: dict[str, npt.NDArray[Any]], response: dict[str, object]) -> bytes:
    """The blob of an answer: its arrays (float32, int64), and the rest of the JSON answer as metadata."""
    return _pack(arrays, "response", response)


def unpack_answer(
    blob: bytes | bytearray | memoryview,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, object]]:
    """The arrays of an answer and the rest of it.

    Raises:
        MalformedBodyError: the blob is not safetensors, its metadata is not a JSON object, or a dtype is not
            float32, int32, int64 or uint8.
    """
    tensors, response = _unpack(blob, "response")
    if any(tensor.dtype not in _NUMPY_DTYPES for tensor in tensors.values()):
        raise MalformedBodyError(f"a tensor has a dtype other than {', '.join(_NUMPY_DTYPES)}")
    try:
        return {name: tensor.array() for name, tensor in tensors.items()}, response
    except ValueError:  # numpy does not support a tensor's rank
        raise MalformedBodyError("a tensor has an impossible shape") from None


def _pack(arrays: dict[str, npt.NDArray[Any]], key: str, fields: dict[str, object]) -> bytes:
    # safetensors ignores strides and reads the memory from the first byte on.
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    blob: bytes = save(dense, metadata={key: json.dumps(fields, allow_nan=False)})
    return blob


def _unpack(blob: bytes | bytearray | memoryview, key: str) -> tuple[dict[str, _Tensor], dict[str, object]]:
    blob = bytes(blob)  # the deserializer takes nothing else; this does not copy an object of type bytes
    try:
        views = deserialize(blob)  # type: ignore[no-untyped-call]
    except SafetensorError:
        raise MalformedBodyError("the body is not a safetensors file") from None
    tensors = {name: _Tensor(view["dtype"], view["shape"], view["data"]) for name, view in views}
    return tensors, _json_object(_metadata(blob).get(key, "{}"), key)


def _metadata(blob: bytes) -> dict[str, str]:
    # The deserializer has checked the header, and returns everything in it except the metadata.
    length = int.from_bytes(blob[:8], "little")
    try:
        header = json.loads(blob[8 : 8 + length].decode("utf-8"), object_pairs_hook=_once)
    except ValueError:
        raise MalformedBodyError("the header of the safetensors file has the same key twice") from None
    metadata: dict[str, str] | None = header.get("__metadata__")
    return metadata or {}


def _json_object(text: str, key: str) -> dict[str, object]:
    try:
        fields = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError:
        raise MalformedBodyError(f"the JSON under the metadata key {key} is nested too deep") from None
    except ValueError:
        raise MalformedBodyError(
            f"the metadata key {key} does not hold JSON, or holds an object with the same key twice"
        ) from None
    if not isinstance(fields, dict):
        raise MalformedBodyError(f"the metadata key {key} must hold a JSON object")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("the same key twice")
    return fields


def _no_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _request_array(name: str, tensor: _Tensor) -> npt.NDArray[Any]:
    allowed = _REQUEST_DTYPES[name]
    if name == "token_ids" and tensor.dtype not in _INTEGERS:
        raise InvalidItemError("token_ids must be int32 or int64, not a float or bool dtype", param=name)
    if tensor.dtype not in allowed:
        _refuse(f"tensor {name} has a dtype other than {' or '.join(allowed)}", name)
    if len(tensor.shape) != 1:
        _refuse(f"tensor {name} has {len(tensor.shape)} dimensions; it must have 1", name)
    return tensor.array()


def _check_offsets(offsets: npt.NDArray[Any], total: int) -> None:
    if len(offsets) < 2:
        _refuse("offsets must have N + 1 values for N sequences, with at least one sequence", "offsets")
    if offsets[0] != 0 or offsets[-1] != total:
        _refuse(f"offsets must begin with 0 and end with the number of token ids, {total}", "offsets")
    if bool((offsets[1:] < offsets[:-1]).any()):
        _refuse("offsets must not descend", "offsets")


def _refuse(message: str, param: str | None = None) -> NoReturn:
    raise InvalidRequestError(message, param=param)

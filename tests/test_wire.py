from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from densepath.errors import InvalidItemError, InvalidRequestError, MalformedBodyError
from densepath.wire import PackedRequest, pack_answer, pack_request, unpack_answer, unpack_request

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
JSON_OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)


@st.composite
def packed_requests(draw: st.DrawFn) -> PackedRequest:
    lengths = draw(st.lists(st.integers(0, 20), min_size=1, max_size=8))
    total = sum(lengths)
    dtype = draw(st.sampled_from([np.int32, np.int64]))
    token_ids = draw(hnp.arrays(dtype, total))
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    masked = draw(st.booleans())
    start = None if masked else draw(hnp.arrays(np.int64, len(lengths)))
    mask = draw(hnp.arrays(np.uint8, total)) if masked else None
    return PackedRequest(token_ids, offsets, start, mask, draw(JSON_OBJECTS))


def same(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    return left.dtype == right.dtype and np.array_equal(left, right)


@given(packed_requests())
def test_a_request_comes_back_as_it_was(packed: PackedRequest) -> None:
    back = unpack_request(pack_request(packed))
    for name in ("token_ids", "offsets", "response_start", "response_mask"):
        assert same(getattr(back, name), getattr(packed, name)), name
    assert back.request == packed.request


@given(st.lists(st.integers(0, 9), max_size=6), JSON_OBJECTS, st.data())
def test_an_answer_comes_back_to_the_bit(lengths: list[int], response: dict[str, Any], data: Any) -> None:
    rewards = data.draw(hnp.arrays(np.float32, sum(lengths)))
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    arrays, fields = unpack_answer(pack_answer({"rewards": rewards, "offsets": offsets}, response))
    assert arrays["rewards"].tobytes() == rewards.tobytes()
    assert same(arrays["offsets"], offsets)
    assert fields == response


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_and_never_crash(blob: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        unpack_request(blob)


@given(packed_requests(), st.data())
def test_a_damaged_blob_is_refused_or_read_whole(packed: PackedRequest, data: Any) -> None:
    blob = bytearray(pack_request(packed))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    try:
        back = unpack_request(blob)
    except InvalidRequestError:
        return
    assert back.offsets[0] == 0
    assert back.offsets[-1] == len(back.token_ids)


def blob(request: str | None = "{}", **changes: Any) -> bytes:
    arrays = {
        "token_ids": np.arange(5, dtype=np.int32),
        "offsets": np.array([0, 3, 5], dtype=np.int64),
        "response_start": np.array([1, 1], dtype=np.int64),
    } | changes
    metadata = None if request is None else {"request": request}
    return save({name: array for name, array in arrays.items() if array is not None}, metadata)


def test_absent_metadata_is_an_empty_request() -> None:
    assert unpack_request(blob(request=None)).request == {}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_at_any_alignment_is_read(kind: type) -> None:
    shifted = memoryview(b"x" + blob())[1:]
    assert unpack_request(kind(shifted)).token_ids.tolist() == [0, 1, 2, 3, 4]


def test_arrays_outlive_their_blob() -> None:
    body = bytearray(blob())
    packed = unpack_request(body)
    body[:] = b"\xff" * len(body)
    assert packed.token_ids.tolist() == [0, 1, 2, 3, 4]


def test_strided_and_big_endian_arrays_are_packed_by_value() -> None:
    strided = np.arange(10, dtype=np.int64)[::2]
    packed = PackedRequest(strided, np.array([0, 5], ">i8"), np.array([1], np.int64), None, {})
    back = unpack_request(pack_request(packed))
    assert back.token_ids.tolist() == [0, 2, 4, 6, 8]
    assert back.offsets.tolist() == [0, 5]


def header(fields: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff" * 40,
        blob()[:-1],
        blob() + b"\0",
        (1 << 62).to_bytes(8, "little") + b"{}",
        header({"token_ids": tensor("I32", [1 << 62, 1 << 62], 4)}, b"0000"),
        header({"token_ids": tensor("I32", [2], 4)}, b"0000"),
        header({"__metadata__": {"request": 3}}),
        blob("{"),
        blob("[]"),
        blob("3"),
        blob('{"gamma": NaN}'),
        blob('{"gamma": ' + "9" * 5000 + "}"),
        blob('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    ],
)
def test_what_is_not_safetensors_or_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        unpack_request(body)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.bool_])
def test_token_ids_that_are_not_integers_are_an_invalid_item(dtype: type) -> None:
    with pytest.raises(InvalidItemError):
        unpack_request(blob(token_ids=np.ones(5, dtype)))


def test_bfloat16_token_ids_are_an_invalid_item() -> None:
    with pytest.raises(InvalidItemError):
        unpack_request(header({"token_ids": tensor("BF16", [2], 4)}, b"0000"))


INT64 = np.int64


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"token_ids": None}, "token_ids"),
        ({"offsets": None}, "offsets"),
        ({"surprise": np.zeros(1, np.int64)}, None),
        ({"response_start": None}, "response_start"),
        ({"response_mask": np.ones(5, np.uint8)}, "response_start"),
        ({"token_ids": np.ones(5, np.uint16)}, "token_ids"),
        ({"token_ids": np.ones((5, 1), np.int32)}, "token_ids"),
        ({"token_ids": np.ones((), np.int32)}, "token_ids"),
        ({"offsets": np.array([0, 3, 5], np.int32)}, "offsets"),
        ({"offsets": np.array([0.0, 3.0, 5.0])}, "offsets"),
        ({"offsets": np.array([[0, 3, 5]], INT64)}, "offsets"),
        ({"offsets": np.array([], INT64)}, "offsets"),
        ({"offsets": np.array([0], INT64), "token_ids": np.zeros(0, np.int32)}, "offsets"),
        ({"offsets": np.array([1, 3, 5], INT64)}, "offsets"),
        ({"offsets": np.array([0, 3, 4], INT64)}, "offsets"),
        ({"offsets": np.array([0, 3, 6], INT64)}, "offsets"),
        ({"offsets": np.array([0, 4, 3, 5], INT64)}, "offsets"),
        ({"offsets": np.array([0, -(2**63), 2**63 - 1, 5], INT64)}, "offsets"),
        ({"response_start": np.array([1], INT64)}, "response_start"),
        ({"response_start": np.array([1, 1], np.int32)}, "response_start"),
        ({"response_start": None, "response_mask": np.ones(4, np.uint8)}, "response_mask"),
        ({"response_start": None, "response_mask": np.ones(5, np.bool_)}, "response_mask"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(changes: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        unpack_request(blob(**changes))
    assert type(caught.value) is InvalidRequestError
    assert caught.value.param == param


def test_a_refusal_does_not_repeat_the_input() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        unpack_request(blob(canary_name=np.zeros(1, np.int64)))
    assert "canary" not in caught.value.message
    with pytest.raises(MalformedBodyError) as malformed:
        unpack_request(blob('{"canary'))
    assert "canary" not in malformed.value.message


def test_empty_sequences_are_left_to_the_service() -> None:
    packed = unpack_request(
        blob(offsets=np.array([0, 0, 5, 5], INT64), response_start=np.array([0, 1, 0], INT64))
    )
    assert packed.offsets.tolist() == [0, 0, 5, 5]


@pytest.mark.parametrize(
    "body", [b"", save({"rewards": np.zeros(2, np.float16)}), save({}, {"response": "[]"})]
)
def test_an_answer_that_is_not_one_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        unpack_answer(body)

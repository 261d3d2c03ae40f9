"""The table of bad requests: what is sent, and the status and code that the contract gives it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save

from api.bodies import (
    CANARY,
    CHAT,
    GOOD,
    JSON,
    REWARDS,
    SAFETENSORS,
    SPANS,
    TEXT,
    body,
    changed,
    ids,
    nested,
    packed,
    raw,
    written,
)


@dataclass(frozen=True)
class Bad:
    """One bad request."""

    name: str
    status: int
    code: str
    content: bytes = b""
    path: str = REWARDS
    method: str = "POST"
    content_type: str | None = JSON
    headers: dict[str, str] = field(default_factory=dict)
    param: str | None = None  # where given, the answer's must be this


def malformed() -> list[Bad]:
    deep_json = json.dumps({"ids": []}).replace("[]", "[" * 5000 + "]" * 5000)
    deep_header = b'{"token_ids":' + b"[" * 5000 + b"]" * 5000 + b"}"
    bodies: dict[str, str | bytes] = {
        "empty body": "",
        "only spaces": "  \n ",
        "not JSON": f"items={CANARY}",
        "JSON cut off": changed(TEXT)[:-4],
        "two JSON values": changed(TEXT) + changed(TEXT),
        "single quotes": f"{{'items': '{CANARY}'}}",
        "trailing comma": f'{{"model": "{CANARY}",}}',
        "a bare word": CANARY,
        "bad UTF-8": changed(TEXT, prompt="HERE").replace(b"HERE", b"\xff\xfe" + CANARY.encode()),
        "an overlong UTF-8 slash": changed(TEXT, prompt="HERE").replace(b"HERE", b"\xc0\xaf"),
        "UTF-16": changed(TEXT).decode().encode("utf-16"),
        "a lone surrogate": changed(TEXT, prompt="HERE").replace(b"HERE", rb"\ud800"),
        "a raw control character": changed(TEXT, prompt="HERE").replace(b"HERE", b"\x00"),
        "an unknown escape": changed(TEXT, prompt="HERE").replace(b"HERE", rb"\x41"),
        "nested 900 deep": nested(900),
        "nested 90000 deep": nested(90_000),
        "open brackets only": b"[" * 100_000,
        "a leading zero": written("01"),
        "a plus sign": written("+1"),
        "hexadecimal": written("0x10"),
        "safetensors called JSON": packed(),
    }
    blobs: dict[str, bytes] = {
        "packed: empty": b"",
        "packed: JSON called safetensors": changed(GOOD),
        "packed: header length beyond the body": struct.pack("<Q", 10_000) + b"{}",
        "packed: header length of 2^63": struct.pack("<Q", 2**63) + b"{}",
        "packed: header not JSON": struct.pack("<Q", 8) + b"c4n4ry!!",
        "packed: no tensors": save({}, metadata={}),
        "packed: header bad UTF-8": struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        "packed: header nested": struct.pack("<Q", len(deep_header)) + deep_header,
        "packed: data cut off": packed()[:-1],
        "packed: data too long": packed() + b"\x00",
        "packed: request not JSON": packed(metadata={"request": CANARY}),
        "packed: request with NaN": packed(metadata={"request": '{"gamma": NaN}'}),
        "packed: request a list": packed(metadata={"request": f'["{CANARY}"]'}),
        "packed: request nested": packed(metadata={"request": deep_json}),
        "packed: request with a key twice": packed(metadata={"request": '{"gamma": 1, "gamma": 0}'}),
        "packed: request with 5000 digits": packed(metadata={"request": '{"gamma": ' + "9" * 5000 + "}"}),
    }
    return [Bad(name, 400, "malformed_body", raw(content)) for name, content in bodies.items()] + [
        Bad(name, 400, "malformed_body", content, content_type=SAFETENSORS) for name, content in blobs.items()
    ]


def media() -> list[Bad]:
    kinds = {
        "no content type": None,
        "an empty content type": "",
        "a form": "application/x-www-form-urlencoded",
        "plain text": "text/plain",
        "a pickle": "application/python-pickle",
        "JSON's cousin": "application/vnd.api+json",
        "an unknown type": CANARY,
    }
    return [
        *(
            Bad(name, 415, "unsupported_media_type", changed(TEXT), content_type=kind)
            for name, kind in kinds.items()
        ),
        *(
            Bad(
                f"Content-Encoding {encoding}",
                415,
                "unsupported_media_type",
                b"\x1f\x8b" + CANARY.encode(),
                headers={"Content-Encoding": encoding},
            )
            for encoding in ("gzip", "deflate", "br", "zstd", "identity", CANARY)
        ),
        Bad("tokenize a form", 415, "unsupported_media_type", b"a=1", "/tokenize", content_type="text/plain"),
        Bad(
            "detokenize safetensors",
            415,
            "unsupported_media_type",
            packed(),
            "/detokenize",
            "POST",
            SAFETENSORS,
        ),
    ]


def routing() -> list[Bad]:
    unknown = [
        "/" + CANARY,
        "/v1",
        "/v1/rewards/",
        f"/v1/rewards/{CANARY}",
        "//v1/rewards",
        "/V1/REWARDS",
        f"/%2e%2e/{CANARY}",
        f"/{CANARY}%00%0a%ff",
        "/docs",
        "/redoc",
    ]
    return [
        *(Bad(f"route {path}", 404, "route_not_found", changed(TEXT), path) for path in unknown),
        Bad(
            "admin without an admin key",
            403,
            "admin_key_required",
            changed(TEXT),
            "/admin/pair",
            method="PUT",
        ),
        Bad("GET rewards", 405, "method_not_allowed", method="GET"),
        Bad("PUT rewards", 405, "method_not_allowed", changed(TEXT), method="PUT"),
        Bad("DELETE rewards", 405, "method_not_allowed", method="DELETE"),
        Bad("OPTIONS rewards", 405, "method_not_allowed", method="OPTIONS"),
        Bad("POST livez", 405, "method_not_allowed", changed(TEXT), "/livez"),
        Bad("POST pair", 405, "method_not_allowed", changed(TEXT), "/v1/pair"),
        Bad("GET tokenize", 405, "method_not_allowed", path="/tokenize", method="GET"),
    ]


def fields() -> list[Bad]:
    wrong: dict[str, bytes] = {
        "a list": f'["{CANARY}"]'.encode(),
        "a string": f'"{CANARY}"'.encode(),
        "null": b"null",
        "NaN": b"NaN",
        "an empty object": b"{}",
        "items null": b'{"items": null}',
        "items an object": b'{"items": {"prompt": "c4n4ry"}}',
        "items a string": b'{"items": "c4n4ry"}',
        "an unknown field": body(TEXT, **{CANARY: 1}),
        "another case of a field": body(TEXT, Include=[]),
        "include unknown": body(TEXT, include=[CANARY]),
        "include a string": body(TEXT, include="logprobs"),
        "include a number": body(TEXT, include=[1]),
        "include null": body(TEXT, include=None),
        "gamma over 1": body(TEXT, gamma=1.01),
        "gamma under 0": body(TEXT, gamma=-0.01),
        "gamma a string": body(TEXT, gamma="1"),
        "gamma true": body(TEXT, gamma=True),
        "gamma null": body(TEXT, gamma=None),
        "gamma NaN": body(TEXT, gamma=float("nan")),
        "gamma infinite": body(TEXT, gamma=float("inf")),
        "gamma 1e400": body(TEXT, gamma="HERE").replace(b'"HERE"', b"1e400"),
        "gamma of 4000 digits": body(TEXT, gamma="HERE").replace(b'"HERE"', b"9" * 4000),
        "on_error unknown": body(TEXT, on_error=CANARY),
        "on_error true": body(TEXT, on_error=True),
        "model a number": body(TEXT, model=7),
        "model a list": body(TEXT, model=[CANARY]),
        "model_version a number": body(TEXT, model_version=1.5),
        "an item a string": body(CANARY),
        "an item null": body(None),
        "an item a list": body([GOOD]),
        "an item without a form": body({}),
        "an item with an id only": body({"id": CANARY}),
        "an item with a response only": body({"response": CANARY}),
        "an item with another field": changed(TEXT, **{CANARY: CANARY}),
        "an item's id a number": changed(TEXT, id=7),
        "an item's id a list": changed(TEXT, id=[CANARY]),
    }
    named = {
        "items missing": (b"{}", "items"),
        "gamma over 1, named": (body(TEXT, gamma=2), "gamma"),
        "an item's field, named": (body(TEXT, {**TEXT, "append_eos": "yes"}), "items[1].append_eos"),
    }
    return [
        *(Bad(f"field: {name}", 422, "invalid_request", content) for name, content in wrong.items()),
        *(
            Bad(name, 422, "invalid_request", content, param=param)
            for name, (content, param) in named.items()
        ),
        Bad("another model", 404, "model_not_found", body(TEXT, model=CANARY), param="model"),
        Bad("an empty model name", 404, "model_not_found", body(TEXT, model="")),
        Bad("another version", 409, "model_version_mismatch", body(TEXT, model_version=CANARY)),
        Bad("no items", 422, "invalid_item", body(), param="items"),
        Bad("too many items", 422, "invalid_item", body(*[GOOD] * 9), param="items"),
        *(
            Bad(f"timeout {text!r}", 422, "invalid_request", body(GOOD), headers={"X-Request-Timeout": text})
            for text in ("nan", "-1", "0", "1e999", "inf", "-inf", "", CANARY, "1,5", "1s")
        ),
    ]


NOT_IDS = ["true", "2.0", '"3"', "NaN", "Infinity", "-Infinity", "1e400", "1e2", "null", "[]", "{}", "5.5"]
OUT_OF_RANGE = [
    "-1",
    "320",
    "384",
    "4294967296",
    "9223372036854775808",
    "-9223372036854775809",
    "9" * 40,
]


def changed_chat(content: Any) -> dict[str, Any]:
    return {**CHAT, "messages": [{"role": "user", "content": content}]}


def forms() -> list[Bad]:
    wrong_items = {
        "tokens: empty prompt": changed(GOOD, prompt_token_ids=[]),
        "tokens: empty response": changed(GOOD, response_token_ids=[]),
        "spans: empty": changed(SPANS, token_ids=[], response_mask=[]),
        "spans: mask shorter": changed(SPANS, response_mask=[0, 1]),
        "spans: mask longer": changed(SPANS, response_mask=[0, 1, 0, 1, 1]),
        "spans: mask of zeros": changed(SPANS, response_mask=[0, 0, 0, 0]),
        "spans: mask from the first": changed(SPANS, response_mask=[1, 1, 0, 0]),
        "spans: mask with 2": changed(SPANS, response_mask=[0, 1, 2, 0]),
        "spans: mask with -1": changed(SPANS, response_mask=[0, 1, -1, 0]),
        "spans: mask with a huge integer": changed(SPANS, response_mask=[0, 1, 10**30, 0]),
        "spans: mask of booleans": changed(SPANS, response_mask=[False, True, True, False]),
        "spans: mask of floats": changed(SPANS, response_mask=[0.0, 1.0, 0.0, 1.0]),
        "text: empty prompt": changed(TEXT, prompt=""),
        "text: empty response": changed(TEXT, response=""),
        "chat: no messages": changed(CHAT, messages=[]),
        "chat: empty response": changed(CHAT, response=""),
        "chat: a role that the template refuses": changed(CHAT, messages=[{"role": CANARY, "content": ""}]),
        "chat: content that the template can't join": changed(
            CHAT, messages=[{"role": "user", "content": {CANARY: 1}}]
        ),
        "chat: no content": changed(CHAT, messages=[{"role": "user"}]),
        "chat: null content": changed(CHAT, messages=[{"role": "user", "content": None}]),
        "chat: a picture": changed(
            CHAT,
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CANARY}}]}],
        ),
        "chat: a call of no function": changed(
            CHAT, messages=[{"role": "assistant", "content": "", "tool_calls": [CANARY]}]
        ),
        "chat: variables that the caller decides": changed(CHAT, chat_template_kwargs={"tokenize": CANARY}),
        "two forms: tokens and text": body({**GOOD, **TEXT}),
        "two forms: spans and chat": body({**SPANS, **CHAT}),
        "two forms: text and chat": body({**TEXT, **CHAT}),
        "two forms: tokens and spans": body({**GOOD, **SPANS}),
    }
    wrong_types = {
        "tokens: no response": changed(GOOD, response_token_ids=...),
        "tokens: no prompt": changed(GOOD, prompt_token_ids=...),
        "tokens: prompt a string": changed(GOOD, prompt_token_ids=CANARY),
        "tokens: prompt null": changed(GOOD, prompt_token_ids=None),
        "tokens: response an object": changed(GOOD, response_token_ids={CANARY: 1}),
        "tokens: append_eos": changed(GOOD, append_eos=True),
        "tokens: response text": changed(GOOD, response_token_ids=..., response=CANARY),
        "spans: no mask": changed(SPANS, response_mask=...),
        "spans: no ids": changed(SPANS, token_ids=...),
        "spans: mask a string": changed(SPANS, response_mask="0101"),
        "text: no response": changed(TEXT, response=...),
        "text: prompt a number": changed(TEXT, prompt=5),
        "text: prompt null": changed(TEXT, prompt=None),
        "text: response a list": changed(TEXT, response=[CANARY]),
        "text: append_eos 1": changed(TEXT, append_eos=1),
        "chat: no response": changed(CHAT, response=...),
        "chat: variables a list": changed(CHAT, chat_template_kwargs=[CANARY]),
        "text: variables of a template": changed(TEXT, chat_template_kwargs={}),
        "chat: messages a string": changed(CHAT, messages=CANARY),
        "chat: a message a string": changed(CHAT, messages=[CANARY]),
        "chat: no role": changed(CHAT, messages=[{"content": CANARY}]),
        "chat: role a number": changed(CHAT, messages=[{"role": 3, "content": CANARY}]),
    }
    long = {
        "tokens: context length + 1": changed(GOOD, response_token_ids=[5] * 62),
        "spans: context length + 1": changed(SPANS, token_ids=[5] * 65, response_mask=[0] * 64 + [1]),
        "text: context length + 1": changed(TEXT, response="Z" * 80),
        "chat: context length + 1": changed(CHAT, response="Z" * 80),
    }
    places = ["prompt_token_ids", "response_token_ids"]
    return [
        *(Bad(name, 422, "invalid_item", content) for name, content in wrong_items.items()),
        *(Bad(name, 422, "invalid_request", content) for name, content in wrong_types.items()),
        *(Bad(name, 422, "context_length_exceeded", content) for name, content in long.items()),
        *(
            Bad(f"{where} holds {text[:12]}", 422, "invalid_item", written(text, where=where))
            for text in NOT_IDS + OUT_OF_RANGE
            for where in places
        ),
        Bad("the index is named", 422, "invalid_item", body(GOOD, GOOD, {**GOOD, "prompt_token_ids": []}),
            param="items[2].prompt"),
        Bad("the part is named", 422, "invalid_item",
            body(GOOD, changed_chat([{"type": "text", "text": "a"}, {"type": CANARY}])),
            param="items[1].messages[0].content[1]"),
        Bad("more than the whole budget", 422, "invalid_request",
            body(*[{**GOOD, "response_token_ids": [5] * 60}] * 4)),
        Bad("over the byte limit", 413, "body_too_large", changed(TEXT, prompt=CANARY * 40_000)),
    ]  # fmt: skip


def blobs() -> list[Bad]:
    items = {
        "float32 ids": packed(token_ids=ids(1, 2, 3, 4, dtype=np.float32)),
        "bool ids": packed(token_ids=ids(1, 1, 0, 1, dtype=np.bool_)),
        "an id of -1": packed(token_ids=ids(1, 2, -1, 4)),
        "an id beyond the rows": packed(token_ids=ids(1, 2, 320, 4)),
        "an id of 2^62": packed(token_ids=ids(1, 2, 2**62, 4)),
        "an empty sequence": packed({}, offsets=ids(0, 0, 4), response_start=ids(0, 2)),
        "response_start 0": packed(response_start=ids(0)),
        "response_start at the end": packed(response_start=ids(4)),
        "response_start beyond the end": packed(response_start=ids(5)),
        "response_start below 0": packed(response_start=ids(-1)),
        "mask of zeros": packed(response_start=None, response_mask=ids(0, 0, 0, 0, dtype=np.uint8)),
        "mask from the first": packed(response_start=None, response_mask=ids(1, 0, 0, 0, dtype=np.uint8)),
        "mask with 255": packed(response_start=None, response_mask=ids(0, 255, 0, 0, dtype=np.uint8)),
        "too many": packed({}, offsets=ids(*[0] * 9, 4), response_start=ids(*[0] * 9)),
    }
    requests = {
        "no token_ids": packed(token_ids=None),
        "no offsets": packed(offsets=None),
        "neither start nor mask": packed(response_start=None),
        "both start and mask": packed(response_mask=ids(0, 0, 1, 1, dtype=np.uint8)),
        "an unknown tensor": packed(**{CANARY: ids(1)}),
        "int16 ids": packed(token_ids=ids(1, 2, 3, 4, dtype=np.int16)),
        "ids of two dimensions": packed(token_ids=ids(1, 2, 3, 4).reshape(2, 2)),
        "int32 offsets": packed(offsets=ids(0, 4, dtype=np.int32)),
        "one offset": packed(offsets=ids(0), response_start=ids()),
        "offsets from 1": packed(offsets=ids(1, 4)),
        "offsets that end early": packed(offsets=ids(0, 3)),
        "offsets that end late": packed(offsets=ids(0, 5)),
        "offsets that descend": packed({}, offsets=ids(0, 3, 1, 4), response_start=ids(1, 1, 1)),
        "offsets below 0": packed({}, offsets=ids(0, -2, 4), response_start=ids(1, 1)),
        "starts for another count": packed(response_start=ids(2, 2)),
        "mask of another length": packed(response_start=None, response_mask=ids(0, 1, dtype=np.uint8)),
        "int64 mask": packed(response_start=None, response_mask=ids(0, 1, 0, 1)),
        "ids for another count": packed({"ids": [CANARY, CANARY]}),
        "ids numbers": packed({"ids": [7]}),
        "ids a string": packed({"ids": CANARY}),
        "items in metadata": packed({"items": [TEXT]}),
        "an unknown field": packed({CANARY: 1}),
        "gamma over 1": packed({"gamma": 2}),
        "an id with a lone surrogate": packed(metadata={"request": '{"ids": ["\\ud800"]}'}),
    }  # fmt: skip
    others = [
        Bad("packed: another model", 404, "model_not_found", packed({"model": CANARY})),
        Bad("packed: another version", 409, "model_version_mismatch", packed({"model_version": CANARY})),
        Bad("packed: too long", 422, "context_length_exceeded",
            packed(token_ids=ids(*[5] * 65), offsets=ids(0, 65))),
    ]  # fmt: skip
    rows = [
        *(Bad(f"packed: {name}", 422, "invalid_item", content) for name, content in items.items()),
        *(Bad(f"packed: {name}", 422, "invalid_request", content) for name, content in requests.items()),
        *others,
    ]
    return [Bad(**{**vars(bad), "content_type": SAFETENSORS}) for bad in rows]


def tokenizing() -> list[Bad]:
    def at(path: str, name: str, code: str, value: Any, status: int = 422) -> Bad:
        return Bad(f"{path}: {name}", status, code, json.dumps(value).encode(), path)

    rows: list[tuple[str, str, str, Any]] = [
        ("/tokenize", "a list", "invalid_request", [CANARY]),
        ("/tokenize", "nothing", "invalid_request", {}),
        ("/tokenize", "prompt a number", "invalid_request", {"prompt": 3}),
        ("/tokenize", "an unknown field", "invalid_request", {"prompt": "a", CANARY: 1}),
        ("/tokenize", "prompt and messages", "invalid_request", {"prompt": CANARY, "messages": []}),
        ("/tokenize", "null content", "invalid_item", {"messages": [{"role": "user", "content": None}]}),
        ("/tokenize", "a refused role", "invalid_item", {"messages": [{"role": CANARY, "content": "a"}]}),
        ("/detokenize", "a string", "invalid_request", {"tokens": CANARY}),
        ("/detokenize", "true", "invalid_item", {"tokens": [True]}),
        ("/detokenize", "-1", "invalid_item", {"tokens": [-1]}),
        ("/detokenize", "an id beyond the rows", "invalid_item", {"tokens": [320]}),
        ("/detokenize", "a huge id", "invalid_item", {"tokens": [10**30]}),
    ]
    return [
        *(at(*row) for row in rows),
        at("/tokenize", "another model", "model_not_found", {"prompt": "a", "model": CANARY}, 404),
        at("/detokenize", "another model", "model_not_found", {"tokens": [1], "model": CANARY}, 404),
        Bad("/tokenize: not JSON", 400, "malformed_body", CANARY.encode(), "/tokenize"),
        Bad("/detokenize: nested", 400, "malformed_body", nested(900), "/detokenize"),
    ]


PARTS: list[Callable[[], list[Bad]]] = [malformed, media, routing, fields, forms, blobs, tokenizing]
BAD_REQUESTS = [bad for part in PARTS for bad in part()]

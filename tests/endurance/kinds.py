"""The kinds of requests of chaos and soak: good ones, bad ones, and clients that do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from api.bad_requests import BAD_REQUESTS
from api.running import STRICT_TEMPLATE
from checkpoints import make_tokenizer
from densepath.wire import MEDIA_TYPE
from endurance.traffic import Answer, ask, request
from endurance.truth import Case
from endurance.watched import NAN_ID, RAISE_ID

#: What the service is started with: the limits of the table of bad requests, but for its token budget.
LIMITS = ("--max-items", "8", "--max-body-bytes", "200000", "--max-model-len", "64", "--body-seconds", "2")
#: Of a request that is well formed: it is scored, it comes at a bad moment, or its deadline passes.
SCORED = frozenset({200, 429, 503, 504})
#: A refusal may come before the fault of a request is seen.
BUSY = frozenset({429, 503})
#: The service is not in the mood for this row: it depends on a smaller budget.
OF_A_SMALL_BUDGET = "more than the whole budget"


@dataclass(frozen=True)
class Kind:
    """A request, the statuses that it may get, and a check of its 200 that returns the largest difference."""

    name: str
    sent: bytes
    statuses: frozenset[int]
    check: Callable[[bytes], float] | None = None


def strict_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose template refuses unknown roles, as the table of bad requests expects."""
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.chat_template = STRICT_TEMPLATE
    return tokenizer


Deck = list[tuple[float, Sequence[Kind]]]


def good(cases: Sequence[Case], headers: dict[str, str]) -> list[Kind]:
    """Cases in both encodings; they are told apart by the content type of the answer."""
    packed = headers | {"Accept": MEDIA_TYPE}
    return [
        kind
        for case in cases
        for kind in (
            Kind("json", request("/v1/rewards", case.content, headers=headers), SCORED, case.difference),
            Kind(
                "safetensors",
                request("/v1/rewards", case.packed, content_type=MEDIA_TYPE, headers=packed),
                SCORED,
                case.packed_difference,
            ),
        )
    ]


def compatible(headers: dict[str, str]) -> list[Kind]:
    """The routes of other servers, and the small ones."""
    ids = [1, 10, 11, 12]
    bodies = {
        "/v1/completions": {"model": "sft", "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 2},
        "/generate": {
            "input_ids": ids,
            "return_logprob": True,
            "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 0},
        },
        "/inference/v1/generate": {
            "token_ids": ids,
            "sampling_params": {"max_tokens": 1, "prompt_logprobs": 0},
        },
        "/get_reward": {"query": ["the sum is five"], "prompts": ["the sum"], "labels": [""]},
        "/tokenize": {"prompt": "the sum is five"},
        "/detokenize": {"tokens": ids},
    }
    posts = [
        Kind(path, request(path, json.dumps(body).encode(), headers=headers), SCORED)
        for path, body in bodies.items()
    ]
    reads = ("/livez", "/metrics", "/v1/pair", "/v1/models", "/version", "/openapi.json")
    return posts + [
        Kind(path, request(path, method="GET", content_type=None, headers=headers), SCORED) for path in reads
    ]


def bad(headers: dict[str, str], *, admin: bool = True) -> list[Kind]:
    """Every row of the table of bad requests, with the status that the contract gives it."""
    return [
        Kind(
            row.name,
            request(
                row.path,
                row.content,
                method=row.method,
                content_type=row.content_type,
                headers=headers | row.headers,
            ),
            BUSY | {row.status},
        )
        for row in BAD_REQUESTS
        if row.name != OF_A_SMALL_BUDGET and (admin or not row.path.startswith("/admin"))
    ]


def failing(headers: dict[str, str]) -> list[Kind]:
    """Sequences on which the fake engine fails, and deadlines that are too short."""
    items = {
        "not finite": [{"prompt_token_ids": [1], "response_token_ids": [5, NAN_ID]}],
        "the engine raises": [{"prompt_token_ids": [1], "response_token_ids": [5, RAISE_ID]}],
    }
    contents = {name: json.dumps({"items": each}).encode() for name, each in items.items()}
    short = headers | {"X-Request-Timeout": "0.001"}
    fine = json.dumps({"items": [{"prompt_token_ids": [1], "response_token_ids": [5]}] * 8}).encode()
    return [
        *(
            Kind(name, request("/v1/rewards", content, headers=headers), BUSY | {500})
            for name, content in contents.items()
        ),
        Kind("a short deadline", request("/v1/rewards", fine, headers=short), SCORED),
    ]


def refused(cases: Sequence[Case]) -> list[Kind]:
    """No key, and a wrong one."""
    content = cases[0].content
    return [
        Kind("no key", request("/v1/rewards", content), frozenset({401})),
        Kind(
            "a wrong key",
            request("/v1/rewards", content, headers={"Authorization": "Bearer no"}),
            frozenset({401}),
        ),
    ]


async def send(kind: Kind, port: int, request_id: str) -> tuple[Answer, float]:
    """Send a request with this id, and check its answer. Returns the largest difference, 0 without a check.

    Raises AssertionError for an answer of another request or with another status, and what `ask` raises.
    """
    named = kind.sent.replace(b"\r\n", f"\r\nX-Request-Id: {request_id}\r\n".encode(), 1)
    answer = await ask(port, named)
    assert answer.headers.get("x-request-id") == request_id, f"{kind.name}: the answer of another request"
    assert answer.status in kind.statuses, f"{kind.name}: {answer.status} {answer.body[:300]!r}"
    difference = kind.check(answer.body) if kind.check and answer.status == 200 else 0.0
    return answer, difference


async def hang_up(sent: bytes, port: int, rng: random.Random) -> None:
    """Send a part of a request or all of it, and close or reset the connection without an answer."""
    part = sent[: rng.choice([rng.randrange(len(sent)), len(sent)])]
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(rng.choice([0, 0.002, 0.01, 0.05]))
    finally:
        if rng.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def drip(sent: bytes, port: int) -> int:
    """Send all but the last byte of a request. Returns the status of the answer that comes all the same."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent[:-1])
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        return int(head.split()[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_slowly(sent: bytes, port: int, rng: random.Random) -> None:
    """Ask for an answer, and read only a few bytes of it before the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    try:
        writer.write(sent)
        for _ in range(rng.randrange(1, 6)):
            await reader.read(64)
            await asyncio.sleep(rng.random() * 0.2)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

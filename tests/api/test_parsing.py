"""Parsing: off the event loop, of bounded size, and over when nobody wants its result."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest

from api.bodies import GOOD
from api.running import CONTEXT_LENGTH, Running, make_service, running
from checkpoints import make_tokenizer
from densepath.api import body as parsing
from densepath.api import json_values
from densepath.api.json_values import MOST_VALUES
from densepath.errors import ContextLengthExceededError, DeadlineExceededError
from densepath.pair.pair import Pair
from densepath.sequences import Tokenizer

SCORE = {"model": "sft", "max_tokens": 1, "prompt_logprobs": 0}
NONE = {"max_new_tokens": 0}
LONG = "!?" * 100_000
BODIES = {
    "/v1/rewards": {"items": [{"prompt": "a", "response": LONG}]},
    "/v1/completions": {**SCORE, "prompt": LONG},
    "/get_reward": {"query": ["a" + LONG], "prompts": ["a"]},
    "/generate": {"return_logprob": True, "sampling_params": NONE, "text": LONG},
    "/tokenize": {"prompt": LONG},
    "/inference/v1/generate": {
        "token_ids": [1] * 1000,
        "sampling_params": {"max_tokens": 0, "prompt_logprobs": 0},
    },
    "/detokenize": {"tokens": [1, -1]},
}


@pytest.fixture(scope="module")
def large(pair: Pair) -> Iterator[Running]:
    with running(make_service(pair)) as service:
        yield service


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    large: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenise(*_: object, **__: object) -> None:
        pytest.fail("a text was tokenised that cannot fit")

    chat = {"items": [{"messages": [{"role": "user", "content": LONG}], "response": "b"}]}
    with monkeypatch.context() as patched:
        patched.setattr(type(large.tokenizer._fast), "__call__", tokenise)
        for path, content in [*BODIES.items(), ("/v1/rewards", chat)]:
            answer = large.client.post(path, json=content)
            assert answer.status_code in (400, 422), (path, answer.text)
            if path != "/detokenize":
                assert str(CONTEXT_LENGTH) in answer.json()["error"]["message"], answer.text
    large.idle()


def test_the_longest_text_that_fits_is_not_refused() -> None:
    tokenizer = Tokenizer(make_tokenizer())
    longest = max((token for token in make_tokenizer().get_vocab() if "|" not in token), key=len)
    text = make_tokenizer().convert_tokens_to_string([longest]) * CONTEXT_LENGTH
    tokenizer.check_text(text, CONTEXT_LENGTH)
    assert len(text.encode()) <= tokenizer.longest_token * CONTEXT_LENGTH
    with pytest.raises(ContextLengthExceededError):
        tokenizer.check_text("a" * (tokenizer.longest_token * CONTEXT_LENGTH + 1), CONTEXT_LENGTH)


@pytest.mark.parametrize("path", BODIES)
def test_row_22_no_route_parses_on_the_event_loop(
    path: str, large: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    parse = parsing.jiter.from_json

    def parse_and_tell(content: bytes, **options: bool) -> object:
        names.append(threading.current_thread().name)
        return parse(content, **options)

    monkeypatch.setattr(parsing.jiter, "from_json", parse_and_tell)
    large.client.post(path, json=BODIES[path])
    [name] = names
    assert name.startswith("parse")


def test_a_long_list_of_wrong_elements_is_one_error(large: Running) -> None:
    wrong = ["a"] * 200_000
    for path, content in (
        ("/v1/completions", {**SCORE, "prompt": [1, *wrong]}),
        ("/v1/rewards", {"items": [{"prompt_token_ids": wrong, "response_token_ids": [1]}]}),
        ("/detokenize", {"tokens": wrong}),
    ):
        answer = large.client.post(path, json=content)
        assert answer.status_code in (400, 422)
        assert len(answer.content) < 1000


def test_too_many_values_are_refused_before_the_parse(
    large: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object, **__: object) -> None:
        pytest.fail("a body with too many values was parsed")

    monkeypatch.setattr(parsing.jiter, "from_json", parse)
    for path in BODIES:
        answer = large.client.post(
            path, content=b'{"a":[' + b"[1]," * MOST_VALUES, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422)
        assert str(MOST_VALUES) in answer.json()["error"]["message"]


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_punctuation_in_strings_is_no_value(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "_CHUNK", chunk)
    monkeypatch.setattr(json_values, "MOST_VALUES", 7)
    texts = ["a,b[{:", '"', '\\",', "\\", '\\\\",,']  # with the list: five marks
    assert not json_values.has_too_many_values(json.dumps(texts).encode())
    assert json_values.has_too_many_values(json.dumps([*texts, 1, 2]).encode())


def test_a_parse_that_nobody_wants_ends_and_one_that_waits_never_begins(pair: Pair) -> None:
    service, begun, go_on = make_service(pair), threading.Event(), threading.Event()
    seen: list[int] = []

    def parse(_: bytes) -> None:
        begun.set()
        go_on.wait(20)
        for element in parsing.wanted([1, 2, 3]):
            seen.append(element)

    def never(_: bytes) -> None:
        seen.append(-1)

    async def main() -> None:
        content = b" " * (parsing.LARGE_BODY_BYTES + 1)  # one at a time
        first = asyncio.create_task(parsing.in_pool(service, parse, content))
        await asyncio.to_thread(begun.wait, 20)
        second = asyncio.create_task(parsing.in_pool(service, never, content))
        await asyncio.sleep(0)
        assert await parsing.in_pool(service, len, b"abc") == 3  # small ones do not wait for it
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        go_on.set()
        await asyncio.to_thread(service.large_bodies.shutdown)

    asyncio.run(main())
    assert seen == []


def test_wanted_says_why_it_ends() -> None:
    event = threading.Event()
    token = parsing._unwanted.set(event)
    elements = parsing.wanted([1, 2])
    assert next(elements) == 1
    event.set()
    with pytest.raises(DeadlineExceededError):
        next(elements)
    parsing._unwanted.reset(token)


def test_a_good_request_is_still_right(large: Running) -> None:
    assert large.score(GOOD).status_code == 200

from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import count, pairwise
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from densepath.client import AsyncClient, Client
from densepath.client.aio import IN_FLIGHT
from densepath.errors import (
    BodyTooLargeError,
    InternalError,
    InvalidItemError,
    InvalidRequestError,
    ModelVersionMismatchError,
)
from densepath.wire import JSON_MEDIA_TYPE, MEDIA_TYPE

TOKENS = {"id": "a", "prompt_token_ids": [1, 5], "response_token_ids": [7, 9, 2]}
SPANS = {"id": "b", "token_ids": [1, 3, 4, 5], "response_mask": [0, 1, 0, 1]}
TEXT = {"id": "c", "prompt": "Hi", "response": "né", "append_eos": True}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "response": "no"}


def tokens(n: int, length: int = 1) -> dict[str, Any]:
    return {"prompt_token_ids": [1], "response_token_ids": [n] * length}


def sevenths(*ids: int) -> list[float]:
    return [float(np.float32(i / 7)) for i in ids]


def test_all_four_forms_come_back_in_order(client: Any, service: Any) -> None:
    scores = client.score([CHAT, TOKENS, TEXT, SPANS, TOKENS | {"id": "z"}])
    assert [score.index for score in scores] == [0, 1, 2, 3, 4]
    assert [score.id for score in scores] == [None, "a", "c", "b", "z"]
    assert scores[1].reward_T.dtype == np.float32
    assert scores[1].reward_T.tolist() == sevenths(7, 9, 2)
    assert scores[1].ended
    assert scores[3].reward_T.tolist() == sevenths(3, 5)
    assert scores[3].positions.tolist() == [1, 3]
    assert not scores[3].ended
    assert scores[2].response_token_ids.tolist() == [ord("n"), ord("é"), 2]
    assert scores[0].reward_T.tolist() == sevenths(ord("n"), ord("o"))
    assert scores.model_version == "v1"
    assert scores.usage == {"prompt_tokens": 5, "response_tokens": 13, "cached_tokens": 0}
    sent = sorted(request.headers["content-type"] for request in service.scored())
    assert sent == sorted([JSON_MEDIA_TYPE, MEDIA_TYPE, MEDIA_TYPE])


def test_arrays_are_sent_as_lists_are(client: Any, service: Any) -> None:
    client.score(
        [{"prompt_token_ids": np.array([1, 5], np.uint16), "response_token_ids": np.array([7, 9, 2])}]
    )
    client.score([{"token_ids": np.arange(4), "response_mask": np.array([False, True, False, True])}])
    assert service.batches[0][0]["response_token_ids"] == [7, 9, 2]
    assert service.batches[1][0]["response_mask"] == [0, 1, 0, 1]


def test_torch_tensors_are_sent_as_lists_are(client: Any, service: Any) -> None:
    client.score(
        [
            {
                "prompt_token_ids": torch.tensor([1, 5], dtype=torch.int32),
                "response_token_ids": torch.tensor([7, 9, 2]),
            }
        ]
    )
    mask = torch.tensor([False, True, False, True])
    client.score([{"token_ids": torch.arange(4), "response_mask": mask}])
    client.score([{"token_ids": torch.arange(4), "response_mask": mask.long()}])
    assert service.batches[0][0]["prompt_token_ids"] == [1, 5]
    assert service.batches[0][0]["response_token_ids"] == [7, 9, 2]
    assert [batch[0]["response_mask"] for batch in service.batches[1:]] == [[0, 1, 0, 1]] * 2


class OnGpu(torch.Tensor):
    """A tensor that numpy cannot read where it is, as one on a GPU."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def detach(self) -> Any:
        return self

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_a_tensor_on_another_device_is_brought_here(client: Any, service: Any) -> None:
    ids, mask = torch.tensor([1, 5, 7]).as_subclass(OnGpu), torch.tensor([0, 1, 1]).bool().as_subclass(OnGpu)
    client.score([{"token_ids": ids, "response_mask": mask}])
    assert service.batches[0][0] == {"token_ids": [1, 5, 7], "response_mask": [0, 1, 1], "id": None}


def test_padded_torch_is_padded_on_a_device(client: Any, service: Any) -> None:
    scores = client.score([TOKENS, tokens(3)])
    (reward_N_T, mask_N_T), expected = scores.padded_torch(), scores.padded()
    assert (reward_N_T.dtype, mask_N_T.dtype) == (torch.float32, torch.bool)
    assert reward_N_T.tolist() == expected[0].tolist()
    assert mask_N_T.tolist() == expected[1].tolist()
    assert {tensor.device.type for tensor in scores.padded_torch(device="meta")} == {"meta"}


def test_progress_counts_items_as_their_answers_come(client: Any, service: Any) -> None:
    service.limits["max_items"] = 2
    seen: list[tuple[int, int]] = []
    items = [tokens(1), {"what": 1}, tokens(2), CHAT, tokens(3)]
    client.score(items, on_error="item", progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (1, 5)
    assert seen[-1] == (5, 5)
    assert sorted(b - a for (a, _), (b, _) in pairwise(seen)) == [1, 1, 2]


def test_extras_come_when_they_are_asked_for(client: Any, service: Any) -> None:
    plain = client.score([TOKENS])[0]
    assert plain.logp_sft_T is plain.logp_reference_T is plain.return_T is plain.tokens is None
    full = client.score([TOKENS, TEXT], include=["logprobs", "returns", "tokens"], gamma=0.5)
    assert np.allclose(full[0].logp_sft_T - full[0].logp_reference_T, full[0].reward_T, atol=1e-6)
    assert full[0].return_T.tolist() == (full[0].reward_T / 2).tolist()
    assert full[0].tokens == ("\x07", "\t", "\x02")
    assert full[0].response_token_ids.tolist() == [7, 9, 2]
    assert full[0].offsets is None
    assert full[1].offsets.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_padded_has_no_number_for_a_failure(client: Any, service: Any) -> None:
    scores = client.score(
        [TOKENS, {"prompt_token_ids": [], "response_token_ids": [4]}, SPANS], on_error="item"
    )
    reward_N_T, mask_N_T = scores.padded()
    assert reward_N_T.dtype == np.float32
    assert mask_N_T.tolist() == [[True, True, True], [False, False, False], [True, True, False]]
    assert np.isnan(reward_N_T[1]).all()
    assert np.isfinite(reward_N_T[[0, 2]]).all()
    assert reward_N_T[mask_N_T].tolist() == sevenths(7, 9, 2, 3, 5)


def test_bad_items_fail_alone_and_keep_their_places(client: Any, service: Any) -> None:
    service.limits["max_items"] = 2
    items = [
        tokens(1),
        {"what": 1},
        tokens(2),
        tokens(3),
        {"prompt_token_ids": [], "response_token_ids": [4]},
    ]
    scores = client.score(items, on_error="item")
    assert [score.error is None for score in scores] == [True, False, True, True, False]
    for index in (1, 4):
        failed = scores[index]
        assert isinstance(failed.error, InvalidItemError)
        assert failed.error.param == f"items[{index}]"
        assert failed.error.message.startswith(f"items[{index}]")
        assert failed.reward_T is failed.sum is failed.ended is None
    assert scores[3].reward_T.tolist() == sevenths(3)


def test_a_failure_names_the_index_in_the_callers_list(client: Any, service: Any) -> None:
    service.limits["max_items"] = 2
    items = [tokens(1), tokens(2), CHAT, tokens(3), {"prompt_token_ids": [], "response_token_ids": [4]}]
    with pytest.raises(InvalidItemError, match=r"items\[4\]: the prompt") as caught:
        client.score(items)
    assert caught.value.param == "items[4]"


def test_only_refused_items_need_no_request(client: Any, service: Any) -> None:
    scores = client.score([{"what": 1}], on_error="item")
    assert scores.model_version == "v1"
    assert scores.padded()[0].shape == (1, 0)
    assert service.scored() == []


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"what": 1},
        7,
        TOKENS | {"prompt": "two forms"},
        TOKENS | {"append_eos": True},
        TOKENS | {"id": 3},
        TOKENS | {"response_token_ids": [1.0]},
        TOKENS | {"response_token_ids": [True]},
        TOKENS | {"response_token_ids": [2, False]},
        TOKENS | {"response_token_ids": ["3"]},
        TOKENS | {"response_token_ids": [float("nan")]},
        TOKENS | {"response_token_ids": [1 << 70]},
        TOKENS | {"response_token_ids": [[1]]},
        TOKENS | {"response_token_ids": np.ones((1, 1), int)},
        TOKENS | {"response_token_ids": np.ones(2)},
        TOKENS | {"response_token_ids": "12"},
        TOKENS | {"response_token_ids": torch.ones(2)},
        TOKENS | {"response_token_ids": torch.ones(2, dtype=torch.bfloat16)},
        TOKENS | {"response_token_ids": torch.ones(2, dtype=torch.bool)},
        TOKENS | {"response_token_ids": torch.ones((1, 1), dtype=torch.long)},
        TOKENS | {"prompt_token_ids": None},
        SPANS | {"response_mask": [0, 1]},
        SPANS | {"response_mask": [0, 1, 2, 0]},
        SPANS | {"response_mask": torch.ones(4)},
        TEXT | {"response": 3},
        TEXT | {"append_eos": 1},
        TEXT | {"response": "\ud800"},
        CHAT | {"messages": "Hi"},
        CHAT | {"messages": [{"content": float("nan")}]},
        CHAT | {"messages": [object()]},
        CHAT | {"chat_template_kwargs": []},
    ],
)
def test_what_is_no_item_is_refused_before_anything_is_sent(client: Any, service: Any, item: Any) -> None:
    with pytest.raises(InvalidItemError, match=r"items\[1\]") as caught:
        client.score([TOKENS, item])
    assert caught.value.param.startswith("items[1]")
    assert service.requests == []


@pytest.mark.parametrize(
    "options",
    [{"include": ["reward"]}, {"gamma": 1.5}, {"gamma": float("nan")}, {"on_error": "skip"}]
    + [{"deadline": seconds} for seconds in (0, -1, float("nan"), float("inf"))],
)
def test_options_outside_the_contract_are_refused(client: Any, service: Any, options: Any) -> None:
    with pytest.raises(InvalidRequestError):
        client.score([TOKENS], **options)
    with pytest.raises(InvalidRequestError):
        client.score([])
    assert service.requests == []


def test_a_big_batch_is_split_by_items(client: Any, service: Any) -> None:
    service.limits["max_items"] = 3
    scores = client.score([tokens(n) for n in range(1, 11)])
    assert [score.reward_T.tolist() for score in scores] == [sevenths(n) for n in range(1, 11)]
    assert sorted(len(batch) for batch in service.batches) == [1, 3, 3, 3]
    assert len(service.requests) == 1 + 4  # the limits are asked for once


def test_a_big_batch_is_split_by_tokens(connect: Any, service: Any) -> None:
    service.limits["max_queued_tokens"] = 100
    items = [tokens(n, length=20) for n in range(12)]
    scores = connect(service).score(items)
    assert [score.reward_T[0] for score in scores] == [np.float32(n / 7) for n in range(12)]
    assert max(sum(1 + 20 for _ in batch) for batch in service.batches) <= 100
    assert len(service.batches) > 1


@pytest.mark.parametrize("form", ["tokens", "spans", "text"])
def test_a_big_batch_is_split_by_bytes(client: Any, service: Any, form: str) -> None:
    limit = service.limits["max_body_bytes"] = 20_000
    items = {
        "tokens": [tokens(n, length=300) for n in range(40)],
        "spans": [{"token_ids": [1] * 301, "response_mask": [0] + [1] * 300} for _ in range(40)],
        "text": [{"prompt": "p", "response": '\u4e2d"' * 200, "id": "\U0001f600" * 9} for _ in range(40)],
    }[form]
    items = [item | {"id": "\U0001f600" * 20} for item in items]
    scores = client.score(items)
    assert len(scores) == 40
    assert len(service.scored()) > 2
    assert max(len(request.content) for request in service.scored()) <= limit


def test_an_item_over_the_byte_limit_fails_alone(client: Any, service: Any) -> None:
    service.limits["max_body_bytes"] = 20_000
    with pytest.raises(BodyTooLargeError, match=r"items\[1\]"):
        client.score([tokens(1), tokens(2, length=5000)])
    scores = client.score([tokens(1), tokens(2, length=5000), tokens(3)], on_error="item")
    assert isinstance(scores[1].error, BodyTooLargeError)
    assert scores[2].reward_T.tolist() == sevenths(3)


def test_row_46_after_a_swap_between_chunks_one_version_scores_all(client: Any, service: Any) -> None:
    service.limits["max_items"] = 1

    def swap(arrays: Any, rest: Any) -> None:
        service.version = "v2"

    service.alter = swap
    scores = client.score([tokens(1), tokens(2)])
    assert scores.model_version == "v2"
    assert [score.index for score in scores] == [0, 1]
    assert len(service.batches) == 3


def test_swaps_without_an_end_are_a_mismatch(client: Any, service: Any, clock: Any) -> None:
    service.limits["max_items"] = 1
    versions = count(2)

    def swap(arrays: Any, rest: Any) -> None:
        service.version = f"v{next(versions)}"

    service.alter = swap
    with pytest.raises(ModelVersionMismatchError):
        client.score([tokens(1), tokens(2), tokens(3)])


def test_row_46_the_first_version_is_pinned(connect: Any, service: Any) -> None:
    client = connect(service, pin=True)
    client.score([TOKENS])
    service.version = "v2"
    with pytest.raises(ModelVersionMismatchError):
        client.score([TOKENS])
    assert client.score([TOKENS], model_version="v2").model_version == "v2"
    service.version = "v1"
    assert client.score([TOKENS]).model_version == "v1"


def test_without_pin_a_swap_is_followed(client: Any, service: Any) -> None:
    client.score([TOKENS])
    service.version = "v2"
    assert client.score([TOKENS]).model_version == "v2"
    with pytest.raises(ModelVersionMismatchError):
        client.score([TOKENS], model_version="v1")


def test_row_46_another_version_than_the_one_asked_for_is_never_believed(client: Any, service: Any) -> None:
    service.alter = lambda arrays, rest: rest.update(model_version="v9")
    with pytest.raises(ModelVersionMismatchError):
        client.score([TOKENS], model_version="v1")


def test_the_small_routes(connect: Any, client: Any, service: Any) -> None:
    assert client.pair()["version"] == "v1"
    assert client.tokenize("ab") == [97, 98]
    assert client.ready()
    assert not connect(lambda request: httpx.Response(503)).ready()

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    assert not connect(refuse).ready()


def test_row_42_the_key_is_sent_and_not_shown(connect: Any, service: Any) -> None:
    client = connect(service, api_key="canary")
    client.score([TOKENS])
    assert {request.headers["authorization"] for request in service.requests} == {"Bearer canary"}
    assert {request.headers["accept-encoding"] for request in service.requests} == {"identity"}
    with pytest.raises(InvalidRequestError) as caught:
        Client("http://service", api_key="canary\n")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "service:8000", "ftp://service", "http://", "/v1", "http://a?b=c"])
def test_a_base_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        Client(url)


@pytest.mark.parametrize("limits", [None, {}, {"max_items": 1}, dict.fromkeys(("max_items",), 0)])
def test_a_pair_without_limits_is_an_error(client: Any, service: Any, limits: Any) -> None:
    service.limits = limits
    with pytest.raises(InternalError):
        client.score([TOKENS])


async def test_a_bounded_number_of_chunks_is_under_way(service: Any) -> None:
    service.limits["max_items"] = 1
    under_way = most = 0
    full = asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        if request.url.path == "/v1/rewards":
            under_way += 1
            most = max(most, under_way)
            if under_way == IN_FLIGHT:
                full.set()
            await full.wait()
            under_way -= 1
        return service(request)

    async with AsyncClient("http://service", transport=httpx.MockTransport(handle)) as client:
        scores = await client.score([tokens(n) for n in range(1, 30)])
    assert [score.reward_T.tolist() for score in scores] == [sevenths(n) for n in range(1, 30)]
    assert most == IN_FLIGHT


async def test_a_failure_cancels_the_chunks_under_way(service: Any) -> None:
    service.limits["max_items"] = 1
    cancelled = 0

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal cancelled
        if request.url.path == "/v1/rewards" and len(service.scored()) > 0:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled += 1
        return service(request)

    async with AsyncClient("http://service", transport=httpx.MockTransport(handle)) as client:
        with pytest.raises(InvalidItemError):
            await client.score([{"prompt_token_ids": [], "response_token_ids": [4]}, *map(tokens, range(9))])
    assert cancelled >= IN_FLIGHT - 1
    assert len(service.scored()) == 1


def test_clients_close_with_their_block(service: Any) -> None:
    with Client("http://service", transport=httpx.MockTransport(service)) as client:
        client.score([TOKENS])
    with pytest.raises(RuntimeError, match="closed"):
        client.score([TOKENS])


HEAVY = ["torch", "fastapi", "starlette", "pydantic", "pyarrow", "transformers", "vllm", "typer"]


@pytest.mark.parametrize("module", ["densepath", "densepath.client", "densepath.wire"])
def test_importing_the_client_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_of_the_package() -> None:
    import densepath
    from densepath import client

    assert densepath.__all__ == ["AsyncClient", "Client", "Score", "Scores", "__version__"]
    for name in client.__all__:
        assert getattr(densepath, name) is getattr(client, name)
    assert densepath.__version__[0].isdigit()
    with pytest.raises(AttributeError):
        densepath.nothing  # noqa: B018

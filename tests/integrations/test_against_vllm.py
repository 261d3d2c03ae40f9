"""The compatible routes against a stock vLLM server of the SFT model: field for field, number for number."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import forked
from live import STARTED_WITHIN, free_port, serving

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TOLERANCE = 1e-5
CONTEXT = 256
#: Of vLLM alone: what only generation, media or another scheduler would fill.
NOT_HERE = {
    *("routed_experts", "service_tier", "kv_transfer_params", "ec_transfer_params", "metrics"),
    *("prompt_tokens_details", "completion_tokens_details", "prompt_token_id_logprobs"),
    *("mm_placeholders", "sampling_mask", "weight_versions"),
}
#: Different in every answer, or on every server.
OWN = {"id", "request_id", "created", "system_fingerprint"}


@contextmanager
def stock_vllm(sft: Path, log: Path) -> Iterator[str]:
    """vLLM's own server. Eager: compiling takes a minute on a CPU."""
    port = free_port()
    options = (
        f"--served-model-name sft --port {port} --dtype float32 --enforce-eager --enable-scale-out "
        f"--max-model-len {CONTEXT} --max-logprobs 128 --kv-cache-memory-bytes {32 << 20}"
    )
    server = "vllm.entrypoints.openai.api_server"
    command = [sys.executable, "-m", server, "--model", str(sft), *options.split()]
    with log.open("wb") as output:
        process = forked.Popen(command, stdout=output, stderr=output, env=dict(os.environ))
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + STARTED_WITHIN
    try:
        while not answers(url):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)  # between two looks at the condition
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def both(pair_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URLs of vLLM and of densepath."""
    logs = tmp_path_factory.mktemp("logs")
    options = ("--sft", pair_dirs[0], "--reference", pair_dirs[1], "--max-model-len", str(CONTEXT))
    with (
        stock_vllm(pair_dirs[0], logs / "vllm") as theirs,
        serving(*options, "--kv-cache-memory-bytes", str(32 << 20), log=logs / "densepath") as ours,
    ):
        yield theirs, ours


IDS = [1, 50, 60, 70, 80, 90]
PADDED = [310, 319]  # the tokenizer has 300 ids, and the embedding 320 rows
PARTS = [{"type": "text", "text": "the"}, {"type": "text", "text": ""}, {"type": "text", "text": "sum"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
GREEDY = {"model": "sft", "max_tokens": 1, "temperature": 0}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "echo": {"prompt": "the sum of two", "echo": True, "logprobs": 2},
    "echo alone": {"prompt": "the sum of two", "echo": True, "logprobs": 2, "max_tokens": 0},
    "echo of ids": {"prompt": IDS, "echo": True, "logprobs": 0},
    "echo without special tokens": {"prompt": "a", "echo": True, "logprobs": 1, "add_special_tokens": False},
    "split characters": {"prompt": "naïve ☕ 👩‍👧 é", "echo": True, "logprobs": 5},
    "tokens as ids": {"prompt": IDS, "echo": True, "logprobs": 2, "return_tokens_as_token_ids": True},
    "prompt log-probabilities": {"prompt": [IDS, IDS[:2], [1, *IDS]], "prompt_logprobs": 3},
    "the token's own alone": {"prompt": IDS, "prompt_logprobs": 0, "return_token_ids": True},
    "both kinds": {"prompt": IDS, "prompt_logprobs": 4, "logprobs": 1, "echo": True},
    "several texts": {"prompt": ["the sum", "five"], "prompt_logprobs": 1},
    "padded ids": {"prompt": [*IDS, *PADDED, 74], "prompt_logprobs": 3, "logprobs": 0, "echo": True},
}  # fmt: skip
SAMPLING = {"max_tokens": 1, "temperature": 0}
GENERATE: dict[str, dict[str, Any]] = {
    "prompt log-probabilities": {"token_ids": IDS, "sampling_params": {**SAMPLING, "prompt_logprobs": 2}},
    "and the next token's": {
        "token_ids": IDS,
        "request_id": "a",
        "return_token_ids": True,
        "sampling_params": {**SAMPLING, "prompt_logprobs": 0, "logprobs": 2},
    },
}
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("/tokenize", {"model": "sft", "prompt": "the sum ☕", "return_token_strs": True}),
    ("/tokenize", {"messages": [{"role": "user", "content": "the sum"}], "model": "sft"}),
    ("/tokenize", {"messages": [{"role": "user", "content": PARTS}], "model": "sft"}),
    (
        "/tokenize",
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}], "model": "sft"},
    ),
    (
        "/tokenize",
        {
            "messages": [{"role": "user", "content": "a"}],
            "chat_template_kwargs": {"bos_token": "<|user|>"},
            "model": "sft",
        },
    ),
    ("/detokenize", {"model": "sft", "tokens": IDS}),
    ("/detokenize", {"model": "sft", "tokens": [*IDS, *PADDED]}),
]


def compare(theirs: Any, ours: Any, where: str = "") -> float:
    """The largest difference of two numbers; every field and every text must be the same."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        assert theirs.keys() - NOT_HERE == ours.keys() - NOT_HERE, where
        return max(
            [
                0.0,
                *(
                    compare(v, ours[k], f"{where}.{k}")
                    for k, v in theirs.items()
                    if k in ours and k not in OWN
                ),
            ]
        )
    if isinstance(theirs, list):
        assert len(theirs) == len(ours), where
        return max(
            [
                0.0,
                *(compare(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(theirs, ours, strict=True))),
            ]
        )
    if isinstance(theirs, float):
        return abs(theirs - ours)
    assert theirs == ours, where
    return 0.0


def ask(both: tuple[str, str], path: str, body: dict[str, Any]) -> tuple[Any, Any]:
    theirs, ours = (httpx.post(f"{url}{path}", json=body, timeout=60) for url in both)
    assert (theirs.status_code, ours.status_code) == (200, 200), (theirs.text, ours.text)
    return theirs.json(), ours.json()


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions(name: str, both: tuple[str, str], say_difference: Callable[[str, float], None]) -> None:
    theirs, ours = ask(both, "/v1/completions", {**GREEDY, **COMPLETIONS[name]})
    if name == "echo alone":  # vLLM makes a token all the same, and counts it
        assert theirs.pop("usage")["completion_tokens"] == 1
        assert ours.pop("usage")["completion_tokens"] == 0
    difference = compare(theirs, ours)
    say_difference(f"stock vLLM, /v1/completions, {name}", difference)
    assert difference <= TOLERANCE


@pytest.mark.parametrize("name", GENERATE)
def test_token_in(name: str, both: tuple[str, str], say_difference: Callable[[str, float], None]) -> None:
    difference = compare(*ask(both, "/inference/v1/generate", {"model": "sft", **GENERATE[name]}))
    say_difference(f"stock vLLM, /inference/v1/generate, {name}", difference)
    assert difference <= TOLERANCE


@pytest.mark.parametrize(("path", "body"), SMALL)
def test_tokenizing(path: str, body: dict[str, Any], both: tuple[str, str]) -> None:
    assert compare(*ask(both, path, body)) == 0


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {**GREEDY, "prompt": [5] * (CONTEXT + 1), "prompt_logprobs": 0}),
    ("/v1/completions", {**GREEDY, "prompt": [5, 99_999], "prompt_logprobs": 0}),
    ("/v1/completions", {**GREEDY, "prompt": [], "prompt_logprobs": 0}),
    ("/v1/completions", {**GREEDY, "prompt": "a", "prompt_logprobs": 1000}),
    ("/v1/completions", {**GREEDY, "model": "other", "prompt": "a", "prompt_logprobs": 0}),
    (
        "/inference/v1/generate",
        {"model": "other", "token_ids": IDS, "sampling_params": {"prompt_logprobs": 0}},
    ),
    ("/inference/v1/generate", {"model": "sft", "token_ids": [], "sampling_params": {"prompt_logprobs": 0}}),
    (
        "/inference/v1/generate",
        {"model": "sft", "token_ids": [-1], "sampling_params": {"prompt_logprobs": 0}},
    ),
]


@pytest.mark.parametrize(("path", "body"), REFUSED)
def test_what_both_refuse_has_one_status_and_shape(
    path: str, body: dict[str, Any], both: tuple[str, str]
) -> None:
    theirs, ours = (httpx.post(f"{url}{path}", json=body, timeout=60) for url in both)
    assert theirs.status_code == ours.status_code
    assert theirs.json()["error"].keys() == ours.json()["error"].keys()
    if path == "/inference/v1/generate":
        assert theirs.json()["error"]["code"] == ours.json()["error"]["code"]

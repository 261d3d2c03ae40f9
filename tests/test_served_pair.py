"""The whole thing: `densepath serve` with the real vLLM engine in its own processes, over real HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from densepath import Client
from densepath.commands.pairs import load_tokenizer
from densepath.engine.transformers import TransformersScorer
from densepath.pair.pair import load_pair
from densepath.sequences import Sequence, from_mask, from_response
from densepath.wire import JSON_MEDIA_TYPE, MEDIA_TYPE, PackedRequest, pack_request, unpack_answer
from live import serving, start, stop, wait_ready

pytestmark = pytest.mark.engine

TOLERANCE = 2e-5
SMALL = ("--kv-cache-memory-bytes", str(32 << 20), "--max-model-len", "256")
CHAT = [{"role": "user", "content": "What is the sum of two and three?"}]
PROMPT_IDS, RESPONSE_IDS = list(range(6, 90)), list(range(40, 77))
MASK = [0] * 84 + [int(i % 5 > 1) for i in range(37)]
ITEMS: dict[str, dict[str, Any]] = {
    "tokens": {"prompt_token_ids": PROMPT_IDS, "response_token_ids": RESPONSE_IDS},
    "spans": {"token_ids": PROMPT_IDS + RESPONSE_IDS, "response_mask": MASK},
    "text": {"prompt": "the capital of France", "response": " is Paris, naïve café ☕", "append_eos": True},
    "chat": {"messages": CHAT, "response": "the answer is five.", "append_eos": True},
}
INCLUDE = ["logprobs", "returns", "tokens"]


@pytest.fixture(scope="module")
def url(pair_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sft, reference = pair_dirs
    log = tmp_path_factory.mktemp("served") / "log"
    with serving("--sft", sft, "--reference", reference, *SMALL, log=log, fresh=True) as url:
        yield url


@pytest.fixture(scope="module")
def sequences(pair_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sequence]:
    tokenizer = load_tokenizer(load_pair(*pair_dirs, cache_dir=tmp_path_factory.mktemp("cache")))
    text, chat = ITEMS["text"], ITEMS["chat"]
    return {
        "tokens": from_response(PROMPT_IDS, RESPONSE_IDS),
        "spans": from_mask(PROMPT_IDS + RESPONSE_IDS, MASK),
        "text": tokenizer.from_text(text["prompt"], text["response"], append_eos=True),
        "chat": tokenizer.from_chat(CHAT, chat["response"], append_eos=True),
    }


def ask(url: str, item: dict[str, Any], accept: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One JSON request; the item's arrays, and the rest of the answer."""
    body = {"items": [item], "include": INCLUDE, "gamma": 0.5}
    answer = httpx.post(f"{url}/v1/rewards", json=body, headers={"Accept": accept}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == accept
    return arrays_of(answer)


def arrays_of(answer: httpx.Response) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    names = ("rewards", "sft_logprobs", "reference_logprobs", "returns")
    if answer.headers["content-type"] == MEDIA_TYPE:
        arrays, rest = unpack_answer(answer.content)
        assert arrays.pop("offsets").tolist() == [0, len(arrays["rewards"])]
        return arrays, rest
    rest = json.loads(answer.content, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (item,) = rest["items"]
    return {name: np.array(item.pop(name), dtype=np.float32) for name in names}, rest


@pytest.mark.parametrize("form", ITEMS)
def test_every_form_in_both_encodings(
    form: str,
    url: str,
    sequences: dict[str, Sequence],
    pair_dirs: tuple[Path, Path],
    say_difference: Callable[[str, float], None],
) -> None:
    oracle = TransformersScorer(*pair_dirs, context_length=256)
    oracle.load()
    want = oracle.score_now(sequences[form])
    ask(url, ITEMS[form], JSON_MEDIA_TYPE)  # from here on the prefix cache is in one state
    as_json, rest = ask(url, ITEMS[form], JSON_MEDIA_TYPE)
    as_tensors, other_rest = ask(url, ITEMS[form], MEDIA_TYPE)

    for name, array in as_json.items():
        assert array.tobytes() == as_tensors[name].tobytes(), f"{name} differs between the encodings"
    for each in (rest, other_rest):
        each.pop("id"), each.pop("created")
    assert rest == other_rest
    difference = max(
        np.abs(as_json["sft_logprobs"] - want.logp_sft_T).max(),
        np.abs(as_json["reference_logprobs"] - want.logp_reference_T).max(),
    )
    say_difference(f"served over HTTP, {form} form", float(difference))
    assert difference <= TOLERANCE
    np.testing.assert_array_equal(as_json["rewards"], as_json["sft_logprobs"] - as_json["reference_logprobs"])
    (item,) = rest["items"]
    assert item["response_token_ids"] == sequences[form].scored_ids_T.tolist()
    assert item["ended"] == (form in ("text", "chat"))


@pytest.mark.parametrize("form", ["tokens", "spans"])
def test_safetensors_request_equals_json_request(form: str, url: str) -> None:
    ids = np.array(PROMPT_IDS + RESPONSE_IDS, dtype=np.int32)
    packed = PackedRequest(
        token_ids=ids,
        offsets=np.array([0, len(ids)]),
        response_start=np.array([len(PROMPT_IDS)]) if form == "tokens" else None,
        response_mask=np.array(MASK, dtype=np.uint8) if form == "spans" else None,
        request={"include": INCLUDE, "gamma": 0.5},
    )
    headers = {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE}
    ask(url, ITEMS[form], JSON_MEDIA_TYPE)
    as_json, _ = ask(url, ITEMS[form], JSON_MEDIA_TYPE)
    answer = httpx.post(f"{url}/v1/rewards", content=pack_request(packed), headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    as_tensors, _ = arrays_of(answer)
    for name, array in as_json.items():
        assert array.tobytes() == as_tensors[name].tobytes(), f"{name} differs between the encodings"


def test_rollouts_share_their_prompt(url: str) -> None:
    rng = np.random.default_rng(5)
    prompt = rng.integers(0, 320, 130).tolist()
    items = [
        {"prompt_token_ids": prompt, "response_token_ids": rng.integers(0, 320, 20).tolist()}
        for _ in range(8)
    ]
    with Client(url) as client:
        scores = client.score(items, include=("logprobs",))
        again = client.score(items, include=("logprobs",))
    reward_N_T, mask_N_T = again.padded()
    assert reward_N_T.shape == mask_N_T.shape == (8, 20)
    assert again.usage["cached_tokens"] >= 8 * 128 - 8 * 32, "four blocks of 32 precede the first scored row"
    first_N_T, _ = scores.padded()
    assert np.abs(first_N_T - reward_N_T).max() <= TOLERANCE


def test_row_16_context_length_to_the_token(url: str) -> None:
    exact = {"items": [{"prompt_token_ids": [7], "response_token_ids": [8] * 255}]}
    over = {"items": [{"prompt_token_ids": [7], "response_token_ids": [8] * 256}]}
    assert httpx.post(f"{url}/v1/rewards", json=exact, timeout=60).status_code == 200
    refused = httpx.post(f"{url}/v1/rewards", json=over)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "context_length_exceeded")
    assert "256" in refused.json()["error"]["message"]
    assert "257" in refused.json()["error"]["message"]


def test_row_26_kill_9_leaves_no_process_and_a_restart_scores_the_same(
    pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    options = ("--sft", pair_dirs[0], "--reference", pair_dirs[1], *SMALL)
    log = tmp_path / "log"
    process, url = start(*options, log=log, fresh=True)
    wait_ready(process, url, log)
    before, _ = ask(url, ITEMS["tokens"], JSON_MEDIA_TYPE)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "the engine has processes of its own"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, orphans = psutil.wait_procs(children, timeout=30)
    assert not orphans, "an engine outlived its service"

    process, url = start(*options, log=log)
    try:
        wait_ready(process, url, log)
        after, _ = ask(url, ITEMS["tokens"], JSON_MEDIA_TYPE)
        for name, array in before.items():
            assert array.tobytes() == after[name].tobytes(), name
        assert stop(process) == 0
    finally:
        process.kill()
        process.wait()


def test_rows_20_21_25_a_stopped_and_a_killed_engine_are_replaced_and_a_stopped_one_delays_no_shutdown(
    pair_dirs: tuple[Path, Path], tmp_path: Path, say_seconds: Callable[[str, float], None]
) -> None:
    log = tmp_path / "log"
    options = ("--sft", pair_dirs[0], "--reference", pair_dirs[1], *SMALL)
    bounds = ("--hang-seconds", "6", "--drain-seconds", "2")
    process, url = start(*options, *bounds, log=log)
    with ThreadPoolExecutor(8) as pool:
        try:
            wait_ready(process, url, log)
            before, _ = ask(url, ITEMS["tokens"], JSON_MEDIA_TYPE)
            for number, name in ((signal.SIGSTOP, "SIGSTOP"), (signal.SIGKILL, "SIGKILL")):
                engine = engine_of(process)
                gone = [engine, *engine.children(recursive=True)]
                at = time.monotonic()
                engine.send_signal(number)
                waiting = [pool.submit(post, url) for _ in range(8)]
                for answer in waiting:
                    assert answer.result().status_code == 503, answer.result().text
                    assert answer.result().json()["error"]["code"] == "engine_unavailable"
                    assert int(answer.result().headers["retry-after"]) > 0
                say_seconds(f"{name} of the engine until the last waiting request was answered", at)
                assert httpx.get(f"{url}/readyz").status_code == 503
                assert httpx.get(f"{url}/livez").status_code == 200
                wait_ready(process, url, log)
                say_seconds(f"{name} of the engine until it is ready again", at)
                assert not psutil.wait_procs(gone, timeout=0)[1], "the engine before is gone"
                after, _ = ask(url, ITEMS["tokens"], JSON_MEDIA_TYPE)
                for array, values in before.items():
                    assert values.tobytes() == after[array].tobytes(), array
            metrics = httpx.get(f"{url}/metrics").text
            assert 'densepath_engine_restarts_total{result="ok"} 2.0' in metrics
            assert "densepath_engine_up 1.0" in metrics
            assert httpx.get(f"{url}/v1/pair").json()["verified"]["verified"] is True

            gone = psutil.Process(process.pid).children(recursive=True)
            engine_of(process).send_signal(signal.SIGSTOP)
            last = pool.submit(post, url)
            wait_until(lambda: "densepath_running_sequences 1.0" in httpx.get(f"{url}/metrics").text)
            at = time.monotonic()
            assert stop(process) == 0
            say_seconds("SIGTERM with a stopped engine until the end, --drain-seconds 2", at)
            assert last.result().json()["error"]["code"] == "draining"
            assert not psutil.wait_procs(gone, timeout=30)[1], "no process is left"
        finally:
            process.kill()
            process.wait()


def engine_of(process: Any) -> psutil.Process:
    """The engine's process of a service."""
    [engine] = [p for p in psutil.Process(process.pid).children() if "EngineCore" in " ".join(p.cmdline())]
    return engine


def post(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/rewards", json={"items": [ITEMS["tokens"]]}, timeout=60)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between two looks at the condition


@pytest.fixture
def say_seconds(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Print how long something took since then. Nothing is asserted: other tests run at the same time."""

    def say(what: str, since: float) -> None:
        record_property(what, time.monotonic() - since)
        print(f"{what}: {time.monotonic() - since:.1f} s")

    return say


def test_the_verdict_is_shown(url: str) -> None:
    verified = httpx.get(f"{url}/v1/pair").json()["verified"]
    assert verified["verified"] is True
    assert verified["reason"] is None
    assert verified["against"].startswith("transformers ")
    for what in ("sft", "reference", "reward"):
        assert 0 < verified[what]["mean"] <= verified[what]["largest"] <= TOLERANCE
    assert verified["limit"] == 1e-3
    assert verified["probes"] > 5
    metrics = httpx.get(f"{url}/metrics").text
    assert re.search(r'^densepath_pair_info\{.*verified="yes".*\} 1.0$', metrics, re.MULTILINE)
    (noise,) = re.findall(r"^densepath_score_noise (\S+)$", metrics, re.MULTILINE)
    assert float(noise) == verified["noise"] <= TOLERANCE

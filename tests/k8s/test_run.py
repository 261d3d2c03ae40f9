"""What the overlays start, as plain processes: the service answers and drains, two pods train by it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from densepath import Client
from k8s.manifests import container, find, needs_kubectl, pod
from k8s.running import arguments, job, place, variables
from live import free_port, wait_ready
from trainer.talkers import make_talker

pytestmark = [needs_kubectl, pytest.mark.engine]

KEY = "a key of this test"
#: A trainer's settings that make it small.
SMALL = {
    "DENSEPATH_PROMPTS_PER_STEP": "4",
    "DENSEPATH_MAX_NEW_TOKENS": "8",
    "DENSEPATH_SAVE_EVERY": "1",
    "DENSEPATH_ROLLOUT_ENGINE": "transformers",
}
STARTED_WITHIN = 200  # seconds: two imports of torch beside the service, on two busy cores


@dataclass(frozen=True)
class Served:
    """The cpu overlay's container."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    root: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("root")
    for seed, name in enumerate(("sft", "reference"), start=1):
        make_talker(place("cpu", "pair", root) / name, seed=seed)
    (place("cpu", "keys", root) / "api-keys").write_text(f"# One key a line.\n{KEY}\n")
    log, port = root / "log", free_port()
    given = {
        "DENSEPATH_HOST": "127.0.0.1",
        "DENSEPATH_PORT": str(port),
        "DENSEPATH_KV_CACHE_MEMORY_BYTES": str(64 << 20),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(place("cpu", "cache", root)),
    }
    command = [sys.executable, "-m", "densepath", *arguments("cpu", root)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=os.environ | variables("cpu", root) | given, stdout=output, stderr=output
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_ready(process, url, log)
        yield Served(process, url, log, root)
    finally:
        process.kill()
        process.wait()


def test_the_service_asks_for_a_key_and_shows_what_replicas_are_counted_by(served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/pair").status_code == 401
    with Client(served.url, api_key=KEY) as client:
        assert client.pair()["model"] == "default"
    (metric,) = find("cpu", "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert f"\n{metric['pods']['metric']['name']} 0.0" in httpx.get(f"{served.url}/metrics").text


def write_prompts(root: Path) -> None:
    rows = [{"prompt": f"the sum of {n} and {n % 7} is", "answer": str(n + n % 7)} for n in range(8)]
    for name in ("prompts.jsonl", "held-out.jsonl"):
        (place("trainer", "pair", root) / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def steps(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def fails_the_job(status: int) -> bool:
    rules = find("trainer", "Job")["spec"]["podFailurePolicy"]["rules"]
    (rule,) = (each for each in rules if each["action"] == "FailJob")
    return status in rule["onExitCodes"]["values"]


def test_a_lost_pod_ends_the_others_and_the_job_goes_on(served: Served) -> None:
    write_prompts(served.root)
    place("trainer", "runs", served.root)
    run = Path(variables("trainer", served.root)["DENSEPATH_RUN"])
    with job(served.root, KEY, served.url, **SMALL, DENSEPATH_STEPS="10000") as (first, second):
        deadline = time.monotonic() + STARTED_WITHIN
        while len(steps(run)) < 2:
            assert time.monotonic() < deadline, first.said()
            assert first.process.poll() is None, first.said()
            time.sleep(0.1)  # between two looks at the condition
        second.kill()
        status = first.process.wait(timeout=60)
        assert status != 0
        assert not fails_the_job(status), first.said()
    done = len(steps(run))
    with job(served.root, KEY, served.url, **SMALL, DENSEPATH_STEPS=str(done + 1)) as pods:
        assert [each.process.wait(timeout=STARTED_WITHIN) for each in pods] == [0, 0], pods[0].said()
        assert "resuming after step" in pods[0].said()
    assert [row["step"] for row in steps(run)] == list(range(1, done + 2))
    assert (run / "final" / "model.safetensors").exists()


def test_the_job_sees_what_no_restart_mends(served: Served) -> None:
    """torchrun alone would end with 1, whatever its workers end with."""
    write_prompts(served.root)
    other = {"DENSEPATH_RUN": str(served.root / "other")}
    with job(served.root, "another key", served.url, **SMALL, **other) as pods:
        statuses = [each.process.wait(timeout=STARTED_WITHIN) for each in pods]
        assert any(map(fails_the_job, statuses)), statuses
        assert "send a valid key" in pods[0].said() + pods[1].said()


def test_row_24_what_is_in_flight_at_sigterm_is_answered(served: Served) -> None:
    """The last of this file: it stops the service."""
    ids = [1 + n % 140 for n in range(900)]
    items = [{"prompt_token_ids": [n + 1, *ids[:100]], "response_token_ids": ids[100:]} for n in range(200)]
    answers: list[int] = []

    def ask() -> None:
        with Client(served.url, api_key=KEY) as client:
            answers.append(len(client.score(items)))

    thread = Thread(target=ask)
    thread.start()
    while "densepath_queued_tokens 0.0" in httpx.get(f"{served.url}/metrics").text and thread.is_alive():
        time.sleep(0.01)  # between two looks at the condition
    assert thread.is_alive(), "answered before it could be interrupted"
    served.process.send_signal(signal.SIGTERM)
    before = container("cpu")["lifecycle"]["preStop"]["sleep"]["seconds"]
    left = pod("cpu")["terminationGracePeriodSeconds"] - before
    assert served.process.wait(timeout=left) == 0, served.log.read_text()[-3000:]
    thread.join()
    assert answers == [200]

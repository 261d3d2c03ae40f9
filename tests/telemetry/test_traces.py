"""Traces at a real OTLP collector, with a collector that is away, and off: then no SDK is loaded."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from api.bodies import CANARY, CHAT, GOOD, TEXT
from api.running import Running, make_service, running
from densepath.engine.fake import FakeScorer
from densepath.errors import InvalidRequestError
from densepath.pair.pair import Pair
from densepath.telemetry.logs import configure_logs
from densepath.telemetry.otlp import CLOSE_SECONDS, Collected
from densepath.telemetry.traces import VARIABLES, Traces, open_traces
from live import free_port, start, stop, wait_ready
from telemetry.collector import Collector, collecting, names, plain

STAGES = ["read", "parse", "score", "answer"]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, ERROR = 2, 2  # SpanKind and StatusCode of the protocol
NAN_ID = 77


@contextmanager
def traced(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, Collector]]:
    """A service whose traces go to a collector."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # ms
        scorer = FakeScorer(64, non_finite_after_id=NAN_ID)
        service = make_service(pair, scorer=scorer, traces=open_traces())
        try:
            with running(service) as served:
                yield served, collector
        finally:
            service.traces.close()


def one_request(collector: Collector) -> tuple[Any, list[Any]]:
    """The span of the request, and the others in the order of their starts."""
    spans = collector.until(lambda spans: any(span.kind == SERVER for span in spans))
    [root] = [span for span in spans if span.kind == SERVER]
    spans.remove(root)
    return root, sorted(spans, key=lambda span: span.start_time_unix_nano)


def test_a_request_is_a_span_with_a_child_for_each_stage(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs()
    with traced(pair, monkeypatch) as (served, collector):
        answer = served.client.post(
            "/v1/rewards",
            json={"items": [{**TEXT, "id": CANARY}, {**CHAT, "response": CANARY}]},
            headers={
                "X-Request-Id": "mine",
                "traceparent": f"00-{TRACE}-{PARENT}-01",
                "tracestate": f"vendor={CANARY}",
                "User-Agent": CANARY,
            },
        )
        root, stages = one_request(collector)
    assert answer.status_code == 200
    assert root.name == "POST /v1/rewards"
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert plain(root.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/rewards",
        "http.response.status_code": 200,
        "densepath.request_id": "mine",
    }
    assert [span.name for span in stages] == STAGES
    for before, span in zip([None, *stages], stages, strict=False):
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        assert span.start_time_unix_nano >= (before or root).start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
        if before:
            assert before.end_time_unix_nano <= span.start_time_unix_nano, "one stage after the other"
    read, _, score, made = (plain(span.attributes) for span in stages)
    assert read == {"densepath.bytes": len(answer.request.content)}
    usage = answer.json()["usage"]
    tokens = usage["prompt_tokens"] + usage["response_tokens"]
    assert score == {"densepath.items": 2, "densepath.tokens": tokens}
    assert made == {"densepath.bytes": len(answer.content)}
    assert {resource["service.name"] for resource in collector.resources} == {"densepath"}
    assert not [body for body in collector.bodies if CANARY.encode() in body]
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"request"' in line]
    assert [line["trace_id"] for line in logged] == [TRACE]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", {"query": ["the sum five"], "prompts": ["the sum"]}),
        ("/v1/completions", {"model": "sft", "prompt": "the sum", "max_tokens": 0, "prompt_logprobs": 0}),
        (
            "/inference/v1/generate",
            {"token_ids": [1, 10, 11], "sampling_params": {"max_tokens": 1, "prompt_logprobs": 0}},
        ),
        (
            "/generate",
            {
                "text": "the sum",
                "sampling_params": {"max_new_tokens": 0},
                "return_logprob": True,
                "logprob_start_len": 0,
            },
        ),
    ],
)
def test_the_compatible_routes_have_the_same_stages(
    path: str, body: dict[str, Any], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(pair, monkeypatch) as (served, collector):
        answer = served.client.post(path, json=body)
        root, stages = one_request(collector)
    assert answer.status_code == 200, answer.text
    assert root.name == f"POST {path}"
    assert not root.parent_span_id
    assert [span.name for span in stages] == STAGES
    assert {span.parent_span_id for span in stages} == {root.span_id}


@pytest.mark.parametrize(
    ("item", "code", "status"),
    [
        ({**GOOD, "token_ids": [1]}, "invalid_item", 0),
        ({**GOOD, "response_token_ids": [5, NAN_ID]}, "non_finite_score", ERROR),
    ],
)
def test_an_error_is_its_code_and_only_the_service_s_faults_are_failures(
    item: dict[str, Any], code: str, status: int, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(pair, monkeypatch) as (served, collector):
        answer = served.score(item)
        root, stages = one_request(collector)
    attributes = plain(root.attributes)
    assert attributes["http.response.status_code"] == answer.status_code
    assert attributes["error.type"] == code
    assert root.status.code == status
    if status == ERROR:
        assert stages[-1].name == "score"
        assert plain(stages[-1].attributes)["error.type"] == code
        assert stages[-1].status.code == ERROR
    for span in (root, *stages):
        assert not span.events, "an exception's words and its traceback stay in the log"
        assert not span.status.message


def test_a_stage_that_a_deadline_ends_is_cancelled(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(pair, monkeypatch) as (served, collector):
        served.scorer.gate = asyncio.Event()
        late = {"X-Request-Timeout": "0.05"}
        assert served.client.post("/v1/rewards", json={"items": [GOOD]}, headers=late).status_code == 504
        root, stages = one_request(collector)
    assert plain(root.attributes)["error.type"] == "deadline_exceeded"
    assert root.status.code == ERROR
    assert stages[-1].name == "score"
    assert plain(stages[-1].attributes)["error.type"] == "cancelled"
    assert stages[-1].status.code == 0
    assert stages[-1].end_time_unix_nano <= root.end_time_unix_nano


def test_what_fits_no_route_and_probes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(pair, monkeypatch) as (served, collector):
        served.client.get("/livez")
        served.client.get("/metrics")
        served.client.get(f"/{CANARY}", headers={"traceparent": f"00-{CANARY}"})
        root, stages = one_request(collector)
    assert root.name == "GET"
    assert "http.route" not in plain(root.attributes)
    assert plain(root.attributes)["error.type"] == "route_not_found"
    assert stages == []
    assert not [body for body in collector.bodies if CANARY.encode() in body]


def test_a_collector_that_never_answers_holds_nothing_up(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        collected = Collected(OTLPSpanExporter(url, timeout=60))
        service = make_service(pair, traces=Traces(collected.tracer, collected.close))
        with running(service) as served:
            assert served.score(GOOD).status_code == 200
        began = time.monotonic()
        service.traces.close()
        assert time.monotonic() - began < CLOSE_SECONDS + 1


def serve_fake(pair_dirs: tuple[Path, Path], log: Path, env: dict[str, str]) -> None:
    """One scored request at a process that is then stopped."""
    sft, reference = pair_dirs
    options = ("--sft", sft, "--reference", reference, "--engine", "fake")
    process, url = start(*options, log=log, env=env)
    try:
        wait_ready(process, url, log)
        assert httpx.post(f"{url}/v1/rewards", json={"items": [GOOD]}).status_code == 200
        assert stop(process) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_process_that_ends_sends_what_is_left(pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    with collecting() as collector:
        # The batch waits for a minute: what arrives was sent at the end.
        env = {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_SERVICE_NAME": "rewards"}
        serve_fake(pair_dirs, tmp_path / "log", env | {VARIABLES[1]: f"{collector.url}/v1/traces"})
        assert sorted(names(collector.spans)) == sorted(["POST /v1/rewards", *STAGES])
        assert collector.resources[0]["service.name"] == "rewards"


def test_a_collector_that_is_away_is_one_line(pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    env = {VARIABLES[0]: f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"}
    serve_fake(pair_dirs, tmp_path / "log", env | {"OTEL_BSP_SCHEDULE_DELAY": "20"})
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("traces_are_not_accepted") == 1
    assert set(events) == {"phase", "ready", "request", "draining", "traces_are_not_accepted"}


@pytest.mark.parametrize(
    "missing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_traces_that_are_asked_for_and_not_installed_are_an_error(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "densepath.telemetry.otlp")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setenv(VARIABLES[1], "http://collector:4318/v1/traces")
    with pytest.raises(InvalidRequestError, match=rf"{VARIABLES[1]} asks for .*install densepath\[otel\]"):
        open_traces()


def test_a_variable_that_makes_no_sense_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[0], "http://collector:4318")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000")  # over the queue's size
    with pytest.raises(InvalidRequestError, match="OpenTelemetry rejects one of its environment"):
        open_traces()


def finish_python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_collector_no_exporter_and_no_sdk_is_loaded() -> None:
    serving = """
import sys
import densepath.engine.fake, densepath.commands.serve
from densepath.api.app import create_app
from densepath.api.server import serve
from densepath.telemetry.traces import open_traces
open_traces()
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    assert finish_python(serving, **dict.fromkeys(VARIABLES, "")).strip() == "[]"  # empty is unset


def test_traces_that_are_off_put_no_trace_into_the_log(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs()
    with running(make_service(pair)) as served:
        header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert served.client.post("/v1/rewards", json={"items": [GOOD]}, headers=header).status_code == 200
    [line] = [line for line in capsys.readouterr().err.splitlines() if '"request"' in line]
    assert "trace_id" not in json.loads(line)


def test_vllm_s_own_tracing_stays_off() -> None:
    workers = """
import densepath.engine.vllm.environment
from vllm.tracing import is_tracing_available, maybe_init_worker_tracer
assert is_tracing_available()
print(maybe_init_worker_tracer("vllm.worker", "worker", "one"))
"""
    assert finish_python(workers, **{VARIABLES[1]: "http://127.0.0.1:9/v1/traces"}).strip() == "None"

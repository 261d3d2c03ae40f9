"""The contract's metrics: their names, their values, and that no client can make a new series."""

from __future__ import annotations

import random
import shutil
import string
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from api.bodies import GOOD
from api.running import Running, make_service, running
from densepath.config import Limits
from densepath.errors import BY_CODE
from densepath.pair.pair import Pair
from densepath.telemetry.metrics import TOKEN_EDGES, ArrayHistogram
from promtool import check_metrics

NAMES = {
    "densepath_http_requests_total": {"route", "method", "status"},
    "densepath_http_request_duration_seconds_bucket": {"route", "le"},
    "densepath_tokens_total": {"kind"},
    "densepath_sequence_tokens_bucket": {"kind", "le"},
    "densepath_queued_tokens": set(),
    "densepath_max_queued_tokens": set(),
    "densepath_running_sequences": set(),
    "densepath_rejections_total": {"code"},
    "densepath_token_reward_bucket": {"le"},
    "densepath_sequence_reward_bucket": {"le"},
    "densepath_pair_info": {"model", "version", "verified"},
    "densepath_score_noise": set(),
    "densepath_engine_up": set(),
    "densepath_engine_restarts_total": {"result"},
    "densepath_phase": {"phase"},
}

SCORES = {"return_logprob": True, "logprob_start_len": 0, "sampling_params": {"max_new_tokens": 0}}


@pytest.fixture
def served(pair: Pair) -> Iterator[Running]:
    with running(make_service(pair)) as service:
        yield service


def series(served: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = served.client.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_contract_s_names_are_there_with_their_labels(served: Running) -> None:
    served.score(GOOD)
    served.score()
    found = {(name, frozenset(key for key, _ in labels)) for name, labels in series(served)}
    assert {(name, frozenset(labels)) for name, labels in NAMES.items()} <= found
    assert not [name for name, _ in found if name.endswith("_created")]
    assert all(name.startswith("densepath_") for name, _ in found)


def test_what_rates_and_alerts_look_for_begins_at_0(served: Running) -> None:
    found = series(served)
    for kind in ("prompt", "cached", "response"):
        assert found["densepath_tokens_total", frozenset({("kind", kind)})] == 0
    codes = {dict(labels)["code"] for name, labels in found if name == "densepath_rejections_total"}
    assert codes == set(BY_CODE)
    assert found["densepath_max_queued_tokens", frozenset()] == Limits().max_queued_tokens


@pytest.mark.skipif(shutil.which("promtool") is None, reason="make test-tools installs it")
def test_promtool_finds_nothing_to_mend(served: Running) -> None:
    served.score(GOOD)
    served.score()
    check_metrics(served.client.get("/metrics").text)


def test_values_count_what_was_answered(served: Running, pair: Pair) -> None:
    [item] = served.score(GOOD).json()["items"]
    served.score(GOOD, {}, {**GOOD, "response_token_ids": []}, on_error="item")
    served.score()
    served.idle()  # a request is counted after its answer is sent
    assert served.metric("densepath_tokens_total", kind="prompt") == 6
    assert served.metric("densepath_tokens_total", kind="response") == 6
    assert served.metric("densepath_tokens_total", kind="cached") == 0
    served.client.post("/generate", json={"input_ids": [1, 10, 11, 12, 13, 14], **SCORES})
    served.idle()
    for kind, few, all_of_them in (("prompt", 3, 3), ("response", 2, 3)):
        for le, count in (("4.0", few), ("8.0", all_of_them)):
            assert served.metric("densepath_sequence_tokens_bucket", kind=kind, le=le) == count
        assert served.metric("densepath_sequence_tokens_count", kind=kind) == 3
    assert served.metric("densepath_pair_info", model="default", version=pair.version, verified="no") == 1
    assert served.metric("densepath_rejections_total", code="invalid_item") == 2
    assert served.metric("densepath_rejections_total", code="invalid_request") == 1
    labels = {"route": "/v1/rewards", "method": "POST"}
    assert served.metric("densepath_http_requests_total", status="200", **labels) == 2
    assert served.metric("densepath_http_requests_total", status="422", **labels) == 1
    assert served.metric("densepath_http_request_duration_seconds_count", route="/v1/rewards") == 3
    assert served.metric("densepath_token_reward_count") == 6
    assert served.metric("densepath_sequence_reward_count") == 2
    below = sum(2 for reward in item["rewards"] if reward <= 0)
    assert served.metric("densepath_token_reward_bucket", le="0.0") == below


def test_row_41_no_client_can_make_a_new_series(served: Running) -> None:
    def provoke(odd: str) -> None:
        served.client.post(f"/{odd}", json={})
        served.client.get(f"/v1/{odd}/x")
        served.client.request(odd.upper(), "/livez")
        served.client.request("PROPFIND", f"/{odd}")
        served.client.request("PUT", "/livez")
        served.score(GOOD, model=odd)
        served.client.get("/livez", headers={"X-Request-Id": odd, "Authorization": f"Bearer {odd}"})

    chance = random.Random(0)
    provoke("first")
    series(served)  # makes its own route's
    before = series(served).keys()
    for _ in range(200):
        provoke("".join(chance.choices(string.ascii_lowercase, k=9)))
    assert series(served).keys() == before


def test_an_array_histogram_counts_as_prometheus_does() -> None:
    registry = CollectorRegistry()
    histogram = ArrayHistogram("h", "a histogram", TOKEN_EDGES, registry)
    values = np.array([-11, -10, -0.05, 0, 0.1, 9.99, 10, 11], np.float32)
    histogram.observe(values)
    histogram.observe(np.zeros((2, 3), np.float32))
    for edge in TOKEN_EDGES:
        want = int((values <= np.float32(edge)).sum()) + 6 * (edge >= 0)
        if edge != 0.1:  # float32 0.1 lies above 0.1
            assert registry.get_sample_value("h_bucket", {"le": str(edge)}) == want, edge
    assert registry.get_sample_value("h_count") == registry.get_sample_value("h_bucket", {"le": "+Inf"}) == 14

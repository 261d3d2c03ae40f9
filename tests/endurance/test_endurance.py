"""The programs of `make endurance`, for seconds, with the fake engine. No time or memory is judged here."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from endurance import chaos, load, soak
from endurance.service import Watched, watched
from endurance.truth import by_fake, draw, make_cases


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("endurance")
    with watched(folder, *soak.options(folder)) as running:
        yield running


def test_row_01_load(service: Watched) -> None:
    cases = make_cases(draw(10, items=3, seed=1, prompt=30, response=30), by_fake)
    found = load.run(service, cases, clients=60, seconds=1, seed=1, headers=soak.HEADERS, timed=False)
    assert found.broken == []


def test_chaos(service: Watched) -> None:
    pair = httpx.get(f"http://127.0.0.1:{service.port}/v1/pair", headers=soak.HEADERS).json()
    cases = make_cases(draw(10, items=3, seed=1, prompt=30, response=30), by_fake)
    wild = chaos.Chaos(
        service, {pair["version"]: cases}, targets=(), faults=(), seconds=2, seed=1, key=soak.KEY
    )
    found = chaos.run(service, wild, timed=False)
    assert found.broken == []


def test_row_51_soak(service: Watched) -> None:
    assert soak.run(service, requests=400, seed=1, timed=False).broken == []

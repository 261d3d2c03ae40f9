"""What is refused by the request line and the headers alone, and what a probe may ask."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from api.bodies import GOOD, body, changed
from api.running import Running, make_service, running
from densepath.api.app import create_app
from densepath.api.edge import LOOPBACK_HOSTS, OPEN_ROUTES, allowed_hosts
from densepath.commands.welcome import welcome
from densepath.pair.pair import Pair

EVIL = (
    "rebound.example",
    "localhost.rebound.example",
    "127.0.0.1.rebound.example",
    "[::2]",
    "a:b",
    "",
    "x@localhost",
)


@pytest.fixture(scope="module")
def local(pair: Pair) -> Iterator[Running]:
    """A service that answers to the names of this machine alone."""
    with running(make_service(pair), hosts=LOOPBACK_HOSTS) as service:
        yield service


def test_without_keys_only_the_names_of_this_machine_are_answered() -> None:
    assert allowed_hosts(None, guarded=False) == LOOPBACK_HOSTS
    assert allowed_hosts(None, guarded=True) == ()
    assert allowed_hosts(" a.example, [::1] ,", guarded=False) == (*LOOPBACK_HOSTS, "a.example", "::1")
    assert allowed_hosts("a.example,*", guarded=False) == ()


async def test_the_welcome_of_the_demo_is_answered(pair: Pair) -> None:
    service, said = make_service(pair), StringIO()
    app = create_app(service, engine="fake", allowed_hosts=allowed_hosts("a.example", guarded=False))
    await service.lifecycle.start()
    await welcome(app, service, "http://0.0.0.0:8000", Console(file=said), needs_key=False)
    assert "The rewards of a right answer and of one with a wrong letter" in said.getvalue()


def test_another_host_is_refused(local: Running) -> None:
    for host in EVIL:
        for path in ("/v1/pair", "/", "/nowhere"):
            answer = local.client.get(path, headers={"Host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request"), host
            assert answer.json()["error"]["param"] == "Host"
            assert not host or host not in answer.text
        for path in OPEN_ROUTES:
            assert local.client.get(path, headers={"Host": host}).status_code == 200
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "localhost."):
        assert local.client.get("/v1/pair", headers={"Host": host}).status_code == 200


def test_a_method_that_a_route_does_not_take_is_answered_with_those_that_it_takes(served: Running) -> None:
    for method, path, allow in (
        ("GET", "/v1/rewards", "POST"),
        ("OPTIONS", "/v1/rewards", "POST"),
        ("DELETE", "/v1/pair", "GET"),
        ("POST", "/livez", "GET, HEAD"),
        ("PUT", "/readyz", "GET, HEAD"),
    ):
        answer = served.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    assert "allow" not in served.client.get("/nowhere").headers


@pytest.mark.parametrize("path", sorted(OPEN_ROUTES))
def test_head_of_a_probe_answers_as_get_without_a_body(path: str, served: Running) -> None:
    got, head = served.client.get(path), served.client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert served.client.get("/livez").json() == {"status": "alive"}  # the connection goes on


@pytest.mark.parametrize(
    "content",
    [
        body(GOOD, gamma=1.0).replace(b'"gamma"', b'"items": [], "gamma"'),
        changed(GOOD).replace(b'"id"', b'"prompt_token_ids": [1], "id"'),
        b'{"items": [], "items": []}',
        rb'{"items": [], "\u0069tems": []}',
    ],
)
def test_row_13_a_key_twice_is_refused(content: bytes, served: Running) -> None:
    answer = served.client.post("/v1/rewards", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")
    assert "the same key twice" in answer.json()["error"]["message"]

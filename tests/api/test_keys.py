"""Keys: every route is guarded but the open four, and a key is nowhere to be read."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.bodies import GOOD
from api.running import Running, make_service, read_all, running
from densepath.api.keys import ApiKeys, Guard
from densepath.config import Limits
from densepath.errors import AccessError, InvalidRequestError
from densepath.pair.pair import Pair

KEY, OTHER, ADMIN = "k3y-of-the-trainer", "schlüssel-à", "k3y-of-the-operator"
ADMIN_ROUTES = ("/admin", "/admin/", "/admin/pair", "/admin/selftest", "/admin/nothing", "/%61dmin/pair")
OPEN = ("/livez", "/readyz", "/health", "/metrics")
BASIC = 'Basic realm="densepath", charset="UTF-8"'
UNKNOWN = ("/", "/docs", "/livez/", "/LIVEZ", "//livez", "/livez/../v1/pair", "/metrics2")


@pytest.fixture(scope="module")
def guarded(pair: Pair) -> Iterator[Running]:
    with running(make_service(pair), keys=(KEY, OTHER)) as served:
        yield served


@pytest.fixture(scope="module")
def administered(pair: Pair) -> Iterator[Running]:
    with running(make_service(pair), keys=(KEY, OTHER), admin_keys=(ADMIN,)) as served:
        yield served


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(password: str, user: str = "") -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def routes(guarded: Running) -> list[tuple[str, str]]:
    """Every route but those of /admin, which have their own tests."""
    document = guarded.client.get("/openapi.json", headers=bearer(KEY)).json()
    found = [
        (method, path)
        for path, item in document["paths"].items()
        for method in item
        if not path.startswith("/admin/")
    ]
    return [*found, ("get", "/openapi.json"), *(("post", path) for path in UNKNOWN)]


def test_row_33_every_route_but_the_open_ones_needs_a_key(guarded: Running) -> None:
    for method, path in routes(guarded):
        answer = guarded.client.request(method, path, json={} if method == "post" else None)
        if path in OPEN:
            assert answer.status_code == 200
            continue
        # The compatible routes have their originals' shapes: only the message is everywhere.
        assert answer.status_code == 401, path
        assert "Authorization: Bearer KEY" in answer.json()["error"]["message"], path
        asks = ["Bearer", BASIC] if answer.request.url.path == "/" else ["Bearer"]
        assert answer.headers.get_list("www-authenticate") == asks
        with_key = guarded.client.request(
            method, path, json={} if method == "post" else None, headers=bearer(KEY)
        )
        assert with_key.status_code not in (401, 403, 500)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer wrong",
        b"Bearer " + KEY[:-1].encode(),
        b"Bearer " + KEY.encode() + b"x",
        b"Bearer " + KEY.upper().encode(),
        b"Bearer " + b"x" * 40_000,
        "Bearer schlüssel".encode(),
        b"Bearer \xff\xfe\x80",
        b"Basic",
        b"Basic " + KEY.encode(),
        b"Basic %%%",
        b"Basic " + base64.b64encode(KEY.encode()),  # no colon
        b"Basic " + base64.b64encode(KEY.encode() + b":"),  # the key as the user
        b"Basic " + base64.b64encode(b":" + KEY.encode())[:-1],
        b"Basic " + base64.b64encode(b"a:b:" + KEY.encode()),
        b"Basic " + base64.b64encode(b":" + KEY.encode() + b" "),
        b"Basic " + base64.b64encode(b":"),
        b"Basic " + base64.b64encode(b":\xff\xfe\x80"),
        b"Basic " + base64.b64encode(b":" + b"x" * 40_000),
        b"Basic \xff\xfe\x80",
        "Basic schlüssel".encode(),
        b"Bearer" + KEY.encode(),
        b"Bearer,\t" + KEY.encode(),
        KEY.encode(),
    ],
)
def test_row_33_a_wrong_key_is_refused(value: bytes, guarded: Running) -> None:
    for path in ("/v1/pair", "/nowhere"):
        answer = guarded.client.get(path, headers=[(b"Authorization", value)])
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("key", [KEY, OTHER])
def test_a_right_key_is_taken(scheme: str, key: str, guarded: Running) -> None:
    headers = [(b"Authorization", f"{scheme} {key}".encode())]
    assert guarded.client.post("/v1/rewards", json={"items": [GOOD]}, headers=headers).status_code == 200


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
@pytest.mark.parametrize("user", ["", "anyone", "schlüssel"])
@pytest.mark.parametrize("key", [KEY, OTHER])
def test_a_right_key_is_taken_as_the_password_of_a_browser(
    scheme: str, user: str, key: str, guarded: Running
) -> None:
    value = basic(key, user)["Authorization"].replace("Basic", scheme)
    headers = {"Authorization": value}
    assert guarded.client.get("/", headers=headers).headers["content-type"].startswith("text/html")
    assert guarded.client.post("/v1/rewards", json={"items": [GOOD]}, headers=headers).status_code == 200


def test_only_the_playground_makes_a_browser_ask(guarded: Running) -> None:
    for path in ("/", "/playground/main.js", "/playground/examples", "/playground/nothing"):
        answer = guarded.client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers.get_list("www-authenticate") == ["Bearer", BASIC]
    for path in ("/v1/pair", "/openapi.json", "/playground", "/playgroundx", "/nowhere"):
        assert guarded.client.get(path).headers.get_list("www-authenticate") == ["Bearer"]


def test_a_browsers_password_is_of_no_use_to_another_site(guarded: Running) -> None:
    headers = {**basic(KEY), "Origin": "https://elsewhere.example"}
    preflight = guarded.client.request(
        "OPTIONS",
        "/v1/rewards",
        headers={**headers, "Access-Control-Request-Method": "POST"},
    )
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        sent = guarded.client.post(
            "/v1/rewards", content=b'{"items": []}', headers={**headers, "Content-Type": kind}
        )
        assert sent.status_code == 415
        assert not [name for name in sent.headers if name.startswith("access-control")]
    assert guarded.client.post("/admin/selftest", headers=headers).status_code == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"])
def test_row_33_every_route_in_every_method(method: str, administered: Running, guarded: Running) -> None:
    paths = {path for _, path in routes(administered)} | {"/playground/examples", "/playground/main.js"}

    def status(served: Running, path: str, headers: dict[str, str]) -> int:
        return served.client.request(method, path, headers=headers).status_code

    passed = (200, 404, 405, 415, 422)
    wrong = (bearer("wrong"), basic("wrong"), {})
    for path in paths - {*ADMIN_ROUTES, *OPEN}:
        assert {status(administered, path, sent) for sent in (*wrong, basic(ADMIN))} == {401}, path
        for sent in (bearer(KEY), bearer(ADMIN), basic(KEY)):
            assert status(administered, path, sent) in passed, path
    for path in OPEN:
        for sent in (*wrong, basic(ADMIN), bearer(KEY), bearer(ADMIN)):
            assert status(administered, path, sent) in (200, 405), path
    for path in ADMIN_ROUTES:
        for sent in (*wrong, basic(KEY), basic(ADMIN)):
            assert status(administered, path, sent) == 401, path
            assert status(guarded, path, sent) == 403, path
        assert status(administered, path, bearer(KEY)) == status(guarded, path, bearer(KEY)) == 403, path
        assert status(administered, path, bearer(ADMIN)) in passed, path


def test_why_an_admin_route_is_refused(administered: Running, guarded: Running) -> None:
    for served, headers, code in (
        (administered, bearer(KEY), "admin_key_required"),
        (administered, {}, "invalid_api_key"),
        (administered, basic(ADMIN), "invalid_api_key"),
        (guarded, bearer(KEY), "admin_key_required"),
        (guarded, {}, "admin_key_required"),
    ):
        answer = served.client.put("/admin/pair", headers=headers)
        assert answer.json()["error"]["code"] == code
        assert (answer.status_code == 401) == ("www-authenticate" in answer.headers)
        assert BASIC not in answer.headers.get_list("www-authenticate")


def test_an_admin_key_alone_leaves_the_other_routes_open(pair: Pair) -> None:
    with running(make_service(pair), admin_keys=(ADMIN,)) as served:
        assert served.client.get("/v1/pair").status_code == 200
        assert served.client.put("/admin/pair").status_code == 401


def test_a_refused_body_is_not_read(guarded: Running) -> None:
    with guarded.connect() as raw:
        raw.sendall(
            b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \r\n"
            b"Connection: close\r\nContent-Length: 100\r\n\r\n"
        )
        assert read_all(raw).startswith(b"HTTP/1.1 401")


def test_row_42_a_key_is_nowhere_to_be_read(guarded: Running, capfd: pytest.CaptureFixture[str]) -> None:
    received = ""
    for method, path in routes(guarded):
        for value in (f"Bearer {KEY}", KEY, f"Basic {KEY}", basic(KEY)["Authorization"]):
            answer = guarded.client.request(
                method, path, json={KEY: KEY} if method == "post" else None, headers={"Authorization": value}
            )
            received += answer.text + str(answer.headers)
    written = capfd.readouterr()
    assert "request_id" in written.out + written.err
    assert KEY not in received + written.out + written.err
    assert KEY not in repr(guarded.service)


def test_a_key_file_has_one_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the trainer\n\n  one  \r\ntwo\n  # three\n#four\nschlüssel\n", encoding="utf-8")
    keys = ApiKeys.from_file(file)
    assert [keys.accept(key.encode()) for key in ("one", "two", "schlüssel")] == [True] * 3
    for key in ("", "#four", "# three", "three", "# the trainer", "  one  "):
        assert not keys.accept(key.encode())
    assert not ApiKeys.from_file(None)


def test_keys_follow_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("densepath.api.keys.time.monotonic", lambda: now)
    file = tmp_path / "keys"
    file.write_text("one\n")
    keys = ApiKeys.from_file(file)

    def accepted() -> list[str]:
        nonlocal now
        now += 60
        keys.accept(b"")
        return [key for key in ("one", "two", "three") if keys.accept(key.encode())]

    assert accepted() == ["one"]
    file.write_text("two\nthree\n")
    assert accepted() == ["two", "three"]
    for broken in ("", "# none\n", None):
        file.unlink() if broken is None else file.write_text(broken)
        capfd.readouterr()
        assert accepted() == accepted() == ["two", "three"]
        written = capfd.readouterr()
        assert (written.out + written.err).count("keys_kept") == 1
    new = tmp_path / "new"
    new.write_text("one\n")
    new.rename(file)
    assert accepted() == ["one"]
    file.write_text("three\n")
    keys.reload()
    assert keys.accept(b"three")
    assert not keys.accept(b"one")


def test_an_empty_key_file_is_an_error_and_not_an_open_door(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n\n")
    with pytest.raises(ValueError, match="has no key"):
        ApiKeys.from_file(file)
    with pytest.raises(InvalidRequestError, match="missing: there is no such file"):
        ApiKeys.from_file(tmp_path / "missing")
    with pytest.raises(InvalidRequestError, match="it is a directory"):
        ApiKeys.from_file(tmp_path)
    file.write_bytes(b"k\xff\n")
    with pytest.raises(InvalidRequestError, match="keys is not UTF-8 text"):
        ApiKeys.from_file(file)


def test_row_34_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(
        "densepath.api.keys.hmac.compare_digest", lambda a, b: compared.append((a, b)) or real(a, b)
    )
    guard = Guard(ApiKeys(["one", "two", "three"]), ApiKeys(["four", "five"]))
    for sent in ("one", "three", "four", "six"):
        for path in ("/v1/pair", "/admin/pair"):
            compared.clear()
            with contextlib.suppress(AccessError):
                guard.check(path, f"Bearer {sent}")
            assert len(compared) == 5
    assert all(len(a) == len(b) == 32 for a, b in compared)


def test_row_01_a_key_has_its_quota_of_tokens(pair: Pair) -> None:
    item = {"prompt_token_ids": [7, 8], "response_token_ids": [9]}
    with running(
        make_service(pair, limits=Limits(key_tokens_per_minute=2)), keys=(KEY, "another"), admin_keys=(ADMIN,)
    ) as served:

        def ask(key: str, path: str = "/v1/rewards", **body: object) -> httpx.Response:
            return served.client.post(path, json=body or {"items": [item]}, headers=bearer(key))

        assert ask(KEY).status_code == 200
        refused = ask(KEY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
        assert 29 <= int(refused.headers["retry-after"]) <= 30
        completions = {"model": "sft", "prompt": [7, 8, 9], "max_tokens": 0, "echo": True, "logprobs": 1}
        assert ask(KEY, "/v1/completions", **completions).status_code == 429
        assert (
            served.client.post("/v1/rewards", json={"items": [item]}, headers=basic(KEY)).status_code == 429
        )
        assert served.client.get("/v1/pair", headers=bearer(KEY)).status_code == 200
        assert ask("another").status_code == 200
        assert all(ask(ADMIN).status_code == 200 for _ in range(3))

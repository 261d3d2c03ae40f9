"""The playground's page and files: whole, from the package only, and nothing on it from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from api.running import Running, make_service, running
from densepath.demo.playground import playground_examples
from densepath.demo.task import Example, example
from densepath.pair.pair import Pair

EXAMPLES = tuple(example(operation, "planet") for operation in ("sort", "copy", "upper"))
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STATIC = {file.name: file.read_bytes() for file in (files("densepath.api.playground") / "static").iterdir()}
PATHS = ("/", "/playground/examples", *(f"/playground/{name}" for name in STATIC if name != "index.html"))


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Running]:
    with running(make_service(pair), examples=playground_examples(EXAMPLES)) as served:
        yield served


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_the_strict_headers(path: str, served: Running) -> None:
    answer = served.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-cache"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/playground/main.js", "text/javascript; charset=utf-8"),
        ("/playground/page.css", "text/css; charset=utf-8"),
        ("/playground/icon.svg", "image/svg+xml"),
        ("/playground/examples", "application/json"),
    ],
)
def test_each_file_has_its_type(path: str, kind: str, served: Running) -> None:
    assert served.client.get(path).headers["content-type"] == kind


def test_an_unchanged_file_is_not_sent_again(served: Running) -> None:
    first = served.client.get("/playground/main.js")
    assert first.content == STATIC["main.js"]
    again = served.client.get("/playground/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = served.client.get("/playground/main.js", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground",
        "/playground/index.html",
        "/playground/routes.py",
        "/playground/../routes.py",
        "/playground/..%2froutes.py",
        "/playground/%2e%2e/routes.py",
        "/playground//etc/passwd",
        "/playground/%2fetc%2fpasswd",
        "/playground/main.js%00",
        "/index.html",
    ],
)
def test_only_known_names_are_answered(path: str, served: Running) -> None:
    answer = served.speak(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"route_not_found" in answer


def test_the_page_names_no_other_place_and_has_nothing_inline() -> None:
    page = STATIC["index.html"].decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", page)
    for name, content in STATIC.items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")  # a name, and no address
        assert "//" not in re.sub(r"(^|\s)//[ -~]*", "", text) or "://" not in text, name
        assert "innerHTML" not in text, name
        assert "eval(" not in text, name
        assert "localStorage" not in text, name


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r'"playground/([\w.]+)"', STATIC["index.html"].decode()))
    for name, content in STATIC.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([\w.]+)"', content.decode()))
    assert named | {"index.html"} == set(STATIC)


def test_examples_have_a_right_response_and_one_with_a_wrong_letter(served: Running) -> None:
    found: list[dict[str, Any]] = served.client.get("/playground/examples").json()
    assert [each["messages"][0]["content"] for each in found] == [
        "copy: planet",
        "sort: planet",
        "upper: planet",
    ]
    for each in found:
        assert Example(tuple(each["messages"]), each["response"]) in EXAMPLES
        pairs = zip(each["response"], each["wrong"], strict=True)
        assert sum(right != wrong for right, wrong in pairs) == 1
    assert served.client.get("/playground/examples").json() == found


def test_a_pair_of_ones_own_has_no_examples(pair: Pair) -> None:
    with running(make_service(pair)) as served:
        assert served.client.get("/playground/examples").json() == []


def test_the_page_is_for_people_and_not_in_the_document(served: Running) -> None:
    paths = served.client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/playground")]


def test_its_requests_are_counted_under_their_template(served: Running) -> None:
    served.client.get("/playground/main.js")
    labels = {"route": "/playground/{name}", "method": "GET", "status": "200"}
    assert served.metric("densepath_http_requests_total", **labels) >= 1
    assert not served.metric("densepath_http_requests_total", **{**labels, "route": "/playground/main.js"})

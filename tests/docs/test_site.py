"""The site is built strictly and quietly, asks nobody for anything, and renders what is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from chromium import CHROMIUM, LACKING, launch
from docs.blocks import ROOT

#: What a browser loads by itself; links that a reader follows are none of them.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
ELSEWHERE = re.compile(r"(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, which says nothing but that."""
    directory = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", directory],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
    assert (said, done.stdout) == ([], "")
    return directory


class Page(HTMLParser):
    """What a page loads, and the text of its paragraphs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.paragraphs: list[str] = []
        self._in = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") != "canonical":
            self.loaded.append(values.get(LOADED[tag]) or "")
        if tag == "p":
            self.paragraphs.append("")
        self._in = tag == "p" or (self._in and tag not in {"pre", "ul", "ol", "table"})

    def handle_endtag(self, tag: str) -> None:
        self._in = self._in and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._in:
            self.paragraphs[-1] += data


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert [(page.name, what) for page in pages for what in Page(page).loaded if ELSEWHERE.match(what)] == []
    styles = {style: style.read_text("utf-8") for style in site.rglob("*.css")}
    assert styles
    assert [
        s.name for s, text in styles.items() if re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", text)
    ] == []


def test_lists_and_tables_are_rendered_as_such(site: Path) -> None:
    """Python-Markdown wants an empty line before them, which GitHub does not."""
    raw = re.compile(r"^(?:[-*] |\d+\. |\||#+ )", re.M)
    found = [
        (page.relative_to(site).as_posix(), text[:80])
        for page in site.rglob("*.html")
        for text in Page(page).paragraphs
        if raw.search(text)
    ]
    assert found == []


def test_no_edit_link_and_both_palettes(site: Path) -> None:
    html = (site / "index.html").read_text("utf-8")
    assert 'data-md-color-scheme="slate"' in html
    assert 'data-md-color-scheme="default"' in html
    assert "Edit this page" not in html


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason=LACKING)
def test_a_browser_asks_nobody_else_and_the_search_finds(url: str) -> None:
    asked: list[str] = []
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{url}/index.html")
        page.get_by_role("textbox", name="Search").press_sequentially("checkpoint")  # it listens to keys
        page.locator(".md-search-result__item").first.wait_for()
        page.goto(f"{url}/operations/index.html")
        browser.close()
    assert [address for address in asked if not address.startswith(url)] == []
    assert faults == []

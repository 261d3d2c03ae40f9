"""A real Chromium; a page that fails its test by any error, violation or request elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from browser.playground import Playground
from chromium import CHROMIUM, LACKING, launch

#: Chromium itself reports a failed request on the console; tests of errors expect it, and only it.
FAILED_REQUEST = "Failed to load resource"
_VIOLATIONS = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) =>
      window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""

OpenPage = Callable[..., Playground]


@pytest.fixture(scope="module")  # while it is open no other loop runs in this thread, so no async test can
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip(LACKING)
    with sync_playwright() as playwright:
        yield launch(playwright)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open a service's playground in a context of its own; `failures` is whether requests may fail."""
    with ExitStack() as stack:

        def opened(url: str, *, failures: bool = False, path: str = "", **options: Any) -> Playground:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            stack.callback(context.close)
            context.add_init_script(_VIOLATIONS)
            page = context.new_page()
            page.set_default_timeout(15_000)
            stack.callback(_watch(page, url, failures))
            page.goto(f"{url}/{path}")
            return Playground(page, url)

        yield opened


def _watch(page: Page, url: str, failures: bool) -> Callable[[], None]:
    """Collect what must not happen; called at the end of the test, the answer fails it."""
    wrong: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if not (failures and message.text.startswith(FAILED_REQUEST)):
            wrong.append(f"console {message.type}: {message.text}")

    def on_request(request: Request) -> None:
        if not request.url.startswith((f"{url}/", "data:")):
            wrong.append(f"a request elsewhere: {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: wrong.append(f"page error: {error}"))
    page.on("request", on_request)

    def check() -> None:
        violations = page.evaluate("window.violations")
        assert not wrong + violations, wrong + violations

    return check

"""The Chromium of this machine, and how the tests start it: it has no window and calls nobody."""

from __future__ import annotations

import shutil

from playwright.sync_api import Browser, Playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
#: Why a test that needs it is skipped.
LACKING = "there is no Chromium here: make test-tools installs it"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def launch(playwright: Playwright) -> Browser:
    """Start it."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)

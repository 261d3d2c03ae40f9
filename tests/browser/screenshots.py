"""The README's pictures of the playground: python tests/browser/screenshots.py URL-OF-A-DEMO [DIRECTORY]."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

sys.path.append(str(Path(__file__).parents[1]))
from chromium import launch

IMAGES = Path(__file__).parents[2] / "docs" / "images"
#: Both start from the example that the page opens with.
WIDE = {"viewport": {"width": 1280, "height": 900}, "device_scale_factor": 1.5, "color_scheme": "light"}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "color_scheme": "dark",
    "is_mobile": True,
    "has_touch": True,
}


def compared(browser: Browser, url: str, path: Path) -> None:
    """A right answer beside one with a wrong letter."""
    page = browser.new_page(**WIDE)  # type: ignore[arg-type]
    page.goto(url)
    expect(page.locator("#difference")).to_be_visible()
    page.screenshot(path=path, full_page=True)


def edited(browser: Browser, url: str, path: Path) -> None:
    """A token that is being edited, on a phone in the dark."""
    page = browser.new_page(**PHONE)  # type: ignore[arg-type]
    page.goto(url)
    expect(page.locator("#difference")).to_be_visible()
    changed = page.locator("[aria-labelledby=title-A] .token.changed").first
    changed.dblclick()
    page.locator(".editor").fill("x")
    page.locator(".tools").evaluate("tools => tools.scrollIntoView({ block: 'start' })")
    page.screenshot(path=path)


def main(url: str, directory: Path) -> None:
    """Take both."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        compared(browser, url, directory / "playground.png")
        edited(browser, url, directory / "playground-dark.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else IMAGES)

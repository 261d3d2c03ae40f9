"""The playground as a test reads and works it, and what the API says to compare it with."""

from __future__ import annotations

import re
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, expect

INCLUDE = ["logprobs", "returns", "tokens"]
FIELDS = {
    "reward": "rewards",
    "return": "returns",
    "sft": "sft_logprobs",
    "reference": "reference_logprobs",
}


class Playground:
    """One open page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    @property
    def status(self) -> Locator:
        return self.page.locator("#status")

    @property
    def problem(self) -> Locator:
        return self.page.locator("#problem")

    @property
    def details(self) -> Locator:
        return self.page.locator("#details")

    def card(self, name: str) -> Locator:
        return self.page.get_by_role("article", name=f"Response {name}")

    def tokens(self, name: str) -> Locator:
        return self.card(name).locator(".token")

    def token(self, name: str, index: int) -> Locator:
        return self.tokens(name).nth(index)

    def figure(self, name: str, of: Locator | None = None) -> str:
        """Sum, mean, … of a card or of the difference."""
        return str((of or self.card("A")).locator(f".figures .{name} dd").inner_text())

    def detail(self, name: str) -> str:
        return str(self.details.locator(f".{name} dd").inner_text())

    def fill(self, prompt: str, *responses: str, form: str = "Chat") -> None:
        """Type a prompt and one or two responses."""
        page = self.page
        page.get_by_text(form, exact=True).click()
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_label("Response A", exact=True).fill(responses[0])
        if page.get_by_role("button", name="Remove response B").is_visible():
            page.get_by_role("button", name="Remove response B").click()
        if len(responses) > 1:
            page.get_by_role("button", name="Compare with another response").click()
            page.get_by_label("Response B", exact=True).fill(responses[1])

    def score(self) -> None:
        """Press Score, and wait for the answer."""
        self.page.get_by_role("button", name="Score").click()
        self.scored()

    def scored(self) -> None:
        """Wait until nothing is being scored any more, and something is shown."""
        expect(self.page.locator("#results")).to_be_visible()
        expect(self.page.locator("#results")).to_have_attribute("aria-busy", "false")
        expect(self.status).to_have_text(re.compile("^Response A"))

    def choose(self, value: str) -> None:
        """Press one of the four values."""
        self.page.locator(f"#values input[value={value}] + span").click()

    def edit(self, name: str, index: int, text: str, *, key: str = "Enter") -> None:
        """Replace a token in place, by the keyboard."""
        self.token(name, index).focus()
        self.page.keyboard.press(key)
        editor = self.page.locator(".editor")
        expect(editor).to_be_focused()
        editor.fill(text)
        self.page.keyboard.press("Enter")
        self.scored()

    def open_file(self, name: str, content: str | bytes) -> None:
        """Choose a file, as the button's dialogue does."""
        data = content.encode() if isinstance(content, str) else content
        files = {"name": name, "mimeType": "application/jsonl", "buffer": data}
        self.page.locator("#file-input").set_input_files(files)  # type: ignore[arg-type]

    def column(self, name: str) -> list[str]:
        """The number below each token."""
        return list(self.tokens(name).locator("small").all_inner_texts())

    def changed(self, name: str) -> list[int]:
        """The places of the tokens that are marked as changed."""
        marked = self.tokens(name).evaluate_all(
            "all => all.flatMap((t, i) => t.classList.contains('changed') ? [i] : [])"
        )
        return list(marked)


def ask(url: str, *items: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """The items of the API's own answer."""
    body = {"items": items, "include": INCLUDE, "on_error": "item"}
    answer = httpx.post(f"{url}/v1/rewards", json=body, timeout=60, **options)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def chat(prompt: str, response: str, *, append_eos: bool = True) -> dict[str, Any]:
    """An item as the form makes it."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "response": response,
        "append_eos": append_eos,
    }


def signed(value: float, digits: int = 3) -> str:
    """A number as the page writes rewards and returns."""
    return f"{value:+.{digits}f}".replace("-", "−")


def plain(value: float, digits: int = 3) -> str:
    """A number as the page writes log-probabilities."""
    return f"{value:.{digits}f}".replace("-", "−")

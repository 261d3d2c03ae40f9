"""A service with keys, and texts of every kind: the fake engine behind a real tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from browser.conftest import OpenPage
from browser.playground import Playground, ask, chat, plain, signed
from live import serving

KEY, LIMIT = "k3y-of-a-person", 4000
CREDENTIALS = {"username": "", "password": KEY}


@pytest.fixture(scope="module")
def guarded(pair_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service of a tiny pair that wants a key and takes small bodies."""
    root = tmp_path_factory.mktemp("guarded")
    (root / "keys").write_text(f"{KEY}\n")
    sft, reference = pair_dirs
    options = ("--sft", sft, "--reference", reference, "--engine", "fake")
    limits = ("--api-key-file", root / "keys", "--max-body-bytes", str(LIMIT))
    with serving(*options, *limits, log=root / "log") as url:
        yield url
    assert KEY not in (root / "log").read_text()


def opened(guarded: str, open_page: OpenPage, **options: bool) -> Playground:
    page = open_page(guarded, http_credentials=CREDENTIALS, **options)
    expect(page.page.locator("#pair code")).not_to_be_empty()
    return page


def test_a_browser_is_asked_for_the_key_and_sends_it_with_every_request(
    guarded: str, open_page: OpenPage
) -> None:
    page = opened(guarded, open_page)
    expect(page.page.locator("#empty")).to_be_visible()  # no demo, so no example
    expect(page.page.get_by_label("Example")).to_be_hidden()
    page.fill("the sum", "is five")
    page.score()
    bearer = {"Authorization": f"Bearer {KEY}"}
    [result] = ask(guarded, chat("the sum", "is five"), headers=bearer)
    assert page.column("A") == [signed(reward, 2) for reward in result["rewards"]]
    held = page.page.evaluate(
        "JSON.stringify([document.documentElement.outerHTML, document.cookie, localStorage, sessionStorage])"
    )
    assert KEY not in held


def test_a_wrong_key_opens_nothing(guarded: str, open_page: OpenPage) -> None:
    page = open_page(guarded, failures=True, http_credentials={"username": "", "password": "wrong"})
    assert "invalid_api_key" in page.page.content()
    assert page.page.locator("#ask").count() == 0


def test_a_key_that_is_taken_away_is_said(guarded: str, open_page: OpenPage) -> None:
    page = opened(guarded, open_page, failures=True)
    page.fill("the sum", "is five")
    page.page.route(
        "**/v1/rewards",
        lambda route: route.continue_(headers={**route.request.headers, "authorization": "Bearer old"}),
    )
    page.page.get_by_role("button", name="Score").click()
    expect(page.problem).to_contain_text("invalid_api_key · status 401 · request ")
    expect(page.problem).to_contain_text("Reload the page to give a key.")


def test_an_error_of_the_whole_request(guarded: str, open_page: OpenPage) -> None:
    page = opened(guarded, open_page, failures=True)
    page.fill("the sum", "is five")
    page.score()
    page.fill("the sum", "x" * LIMIT)
    page.page.get_by_role("button", name="Score").click()
    expect(page.problem).to_contain_text(f"the body is over this service's limit of {LIMIT} bytes")
    expect(page.problem).to_contain_text("body_too_large · status 413 · request ")
    expect(page.page.locator("#results")).to_be_hidden()  # what was shown is of another response


HTML = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
FAMILY = "\U0001f468‍\U0001f469‍\U0001f467"


@pytest.mark.parametrize(
    "text",
    [
        f"{FAMILY} \U0001f600!",
        "مرحبا بالعالم",
        "café naïve",
        "two\n\nlines\tand  spaces ",
        HTML,
        "‮reversed‬​",
        "<|user|> a",
    ],
    ids=["emoji", "right to left", "combining", "white space", "html", "invisible", "special"],
)
def test_any_text_is_shown_and_none_is_interpreted(text: str, guarded: str, open_page: OpenPage) -> None:
    page = opened(guarded, open_page)
    page.fill(text, text, text + "x")
    page.score()
    [result] = ask(guarded, chat(text, text), headers={"Authorization": f"Bearer {KEY}"})
    tokens = result["tokens"]
    assert page.tokens("A").count() == len(tokens)
    shown = page.tokens("A").locator(".text").all_inner_texts()
    for token, seen in zip(tokens, shown, strict=True):
        assert seen.strip()  # white space too has something to see
        if token.isalnum():
            assert seen == token
    assert page.card("A").locator("br").count() == sum("\n" in token for token in tokens)
    assert page.page.title() == "densepath playground"
    assert page.card("A").locator("img, script").count() == 0
    special = page.card("A").locator(".token.special").count()
    assert special == 1 + text.count("<|user|>")


def test_an_edit_counts_unicode_characters(guarded: str, open_page: OpenPage) -> None:
    page = opened(guarded, open_page)
    text = "\U0001f600\U0001f468‍\U0001f469 the sum"
    page.fill("a prompt", text)
    page.score()
    [result] = ask(guarded, chat("a prompt", text), headers={"Authorization": f"Bearer {KEY}"})
    at = next(
        i for i, (start, end) in enumerate(result["offsets"]) if text[start:end].strip() in ("sum", "um", "s")
    )
    start, end = result["offsets"][at]
    page.token("A", at).dblclick()
    expect(page.page.locator(".editor")).to_have_value(text[start:end])
    page.page.locator(".editor").fill("\U0001f389")
    page.page.keyboard.press("Enter")
    expected = text[:start] + "\U0001f389" + text[end:]
    expect(page.page.get_by_label("Response B", exact=True)).to_have_value(expected)
    page.scored()
    [other] = ask(guarded, chat("a prompt", expected), headers={"Authorization": f"Bearer {KEY}"})
    assert page.figure("sum", page.card("B")) == signed(other["sum"])
    page.choose("sft")
    assert page.column("B") == [plain(number, 2) for number in other["sft_logprobs"]]


def test_a_new_line_is_edited_into_a_token_and_kept(guarded: str, open_page: OpenPage) -> None:
    page = opened(guarded, open_page)
    page.fill("a prompt", "one\ntwo")
    page.score()
    at = page.tokens("A").locator(".text").all_inner_texts().index("↵")
    page.token("A", at).dblclick()
    editor = page.page.locator(".editor")
    expect(editor).to_have_value("\n")
    page.page.keyboard.press("End")
    page.page.keyboard.press("Shift+Enter")
    page.page.keyboard.press("Enter")
    expect(page.page.get_by_label("Response B", exact=True)).to_have_value("one\n\ntwo")
    page.scored()


def test_without_a_chat_template_there_is_text_only(guarded: str, open_page: OpenPage) -> None:
    page = opened(guarded, open_page)
    pair = httpx.get(f"{guarded}/v1/pair", headers={"Authorization": f"Bearer {KEY}"}).json()
    pair["chat_template_fingerprint"] = None
    page.page.route("**/v1/pair", lambda route: route.fulfill(json=pair))
    page.page.reload()
    expect(page.page.get_by_label("Text", exact=True)).to_be_checked()
    expect(page.page.get_by_label("Chat", exact=True)).to_be_disabled()

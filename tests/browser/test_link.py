"""A link holds the state, after the #: nothing of it reaches the service but by scoring."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from browser.conftest import OpenPage
from browser.playground import Playground, ask, signed
from live import Demo

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


def copied(page: Playground) -> str:
    page.page.get_by_role("button", name="Copy link").click()
    expect(page.status).to_have_text("The link is copied.")
    link = str(page.page.evaluate("navigator.clipboard.readText()"))
    assert link == page.page.url
    assert urlsplit(link).query == ""
    return link


def reopened(demo: Demo, open_page: OpenPage, link: str) -> Playground:
    page = open_page(demo.url, path=f"#{urlsplit(link).fragment}")
    page.scored()
    return page


def test_a_link_restores_everything(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url, permissions=["clipboard-read", "clipboard-write"])
    page.scored()
    page.fill("copy: a & b = #%?\n\U0001f600 é", "vel\tvet ", "veqvet+", form="Text")
    page.page.get_by_label("Append the end-of-sequence token").uncheck()
    page.score()
    page.choose("return")
    page.token("B", 3).focus()
    link = copied(page)
    fields = parse_qs(urlsplit(link).fragment, keep_blank_values=True)
    assert {key: value for key, [value] in fields.items()} == {
        "form": "text",
        "prompt": "copy: a & b = #%?\n\U0001f600 é",
        "a": "vel\tvet ",
        "b": "veqvet+",
        "eos": "0",
        "value": "return",
        "token": "B4",
    }
    again = reopened(demo, open_page, link)
    for label in ("Prompt", "Response A", "Response B"):
        expected = page.page.get_by_label(label, exact=True).input_value()
        expect(again.page.get_by_label(label, exact=True)).to_have_value(expected)
    expect(again.page.get_by_label("Append the end-of-sequence token")).not_to_be_checked()
    expect(again.page.get_by_label("Return (γ = 1)")).to_be_checked()
    expect(again.details).to_contain_text("token 4 of ")
    assert again.column("A") == page.column("A")
    assert again.column("B") == page.column("B")


def test_a_conversation_is_kept_whole(demo: Demo, open_page: OpenPage) -> None:
    messages = [
        {"role": "user", "content": "copy: velvet"},
        {"role": "assistant", "content": "velvet"},
        {"role": "user", "content": "copy: walnut"},
    ]
    item: dict[str, Any] = {"messages": messages, "response": "walnut", "append_eos": True}
    [result] = ask(demo.url, item)
    page = open_page(demo.url, permissions=["clipboard-read", "clipboard-write"])
    page.scored()
    page.open_file("one.jsonl", json.dumps(item))
    expect(page.page.locator("#prompt-shown li")).to_have_count(3)
    page.scored()
    again = reopened(demo, open_page, copied(page))
    expect(again.page.locator("#conversation li")).to_have_count(3)
    expect(again.page.locator("#conversation")).to_contain_text("copy: walnut")
    assert again.figure("sum") == signed(result["sum"])
    again.page.get_by_role("button", name="Write a prompt instead").click()
    expect(again.page.get_by_label("Prompt", exact=True)).to_be_focused()


def test_an_item_of_ids_and_a_line_that_no_link_can_hold(demo: Demo, open_page: OpenPage) -> None:
    item: dict[str, Any] = {"prompt_token_ids": [1, 90, 74], "response_token_ids": [89, 74, 2]}
    [result] = ask(demo.url, item)
    page = open_page(demo.url, permissions=["clipboard-read", "clipboard-write"])
    page.scored()
    page.open_file("ids.jsonl", f'{json.dumps(item)}\n{{"rewards": [0.5]}}\n')
    expect(page.tokens("A")).to_have_count(3)
    page.scored()
    again = reopened(demo, open_page, copied(page))
    assert again.figure("sum") == signed(result["sum"])
    page.page.get_by_role("button", name="Next line").click()
    expect(page.tokens("A")).to_have_count(1)
    page.page.get_by_role("button", name="Copy link").click()
    expect(page.status).to_contain_text("no link can hold it")


def test_a_link_is_opened_in_an_open_page_and_a_cut_one_is_refused(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.page.evaluate("location.hash = 'form=chat&prompt=copy: velvet&a=velvet&eos=1'")
    expect(page.page.get_by_label("Response A", exact=True)).to_have_value("velvet")
    expect(page.card("B")).to_have_count(0)
    page.page.evaluate("""location.hash = 'item={"prompt_token'""")
    expect(page.problem).to_contain_text("This link cannot be read")


def test_without_a_clipboard_the_link_is_in_the_address_bar(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.page.get_by_role("button", name="Copy link").click()
    expect(page.status).to_have_text("The link is in the address bar.")
    assert "a=badger" in page.page.url

"""What the page shows is what POST /v1/rewards answers: tokens, numbers, strips, differences, edits."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from browser.conftest import OpenPage
from browser.playground import FIELDS, Playground, ask, chat, plain, signed
from live import Demo

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

PROMPT, RIGHT, WRONG = "copy: velvet", "velvet", "veqvet"
AT = 2  # the wrong letter's token: the demo's tokenizer has one for each letter


def numbers(result: dict[str, Any], value: str, digits: int = 3) -> list[str]:
    write = signed if value in ("reward", "return") else plain
    return [write(number, digits) for number in result[FIELDS[value]]]


def compared(page: Playground) -> None:
    page.fill(PROMPT, RIGHT, WRONG)
    page.score()


def test_it_opens_with_a_right_answer_beside_a_wrong_one(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    [first, *_] = httpx.get(f"{demo.url}/playground/examples").json()
    prompt = first["messages"][0]["content"]
    right, wrong = ask(demo.url, chat(prompt, first["response"]), chat(prompt, first["wrong"]))
    assert page.page.get_by_label("Prompt", exact=True).input_value() == prompt
    assert page.column("A") == numbers(right, "reward", 2)
    assert page.column("B") == numbers(wrong, "reward", 2)
    [at] = page.changed("B")
    assert wrong["rewards"][at] < right["rewards"][at]  # the paper's figure
    assert page.detail("reward") == signed(wrong["rewards"][at], 4)


def test_another_example_is_picked(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    examples = httpx.get(f"{demo.url}/playground/examples").json()
    page.page.get_by_label("Example").select_option(str(len(examples) - 1))
    expect(page.page.get_by_label("Response B", exact=True)).to_have_value(examples[-1]["wrong"])
    page.scored()
    [wrong] = ask(demo.url, chat(examples[-1]["messages"][0]["content"], examples[-1]["wrong"]))
    expect(page.tokens("B").locator(".text")).to_have_text(wrong["tokens"])


@pytest.mark.parametrize(("form", "append_eos"), [("Chat", True), ("Text", False)])
def test_what_is_shown_is_what_the_api_answers(
    form: str, append_eos: bool, demo: Demo, open_page: OpenPage
) -> None:
    page = open_page(demo.url)
    page.scored()
    page.fill(PROMPT, RIGHT, form=form)
    page.page.get_by_label("Append the end-of-sequence token").set_checked(append_eos)
    page.score()
    text = {"prompt": PROMPT, "response": RIGHT, "append_eos": append_eos}
    [result] = ask(demo.url, text if form == "Text" else chat(PROMPT, RIGHT, append_eos=append_eos))
    count = len(result["rewards"])
    expect(page.tokens("A").locator(".text")).to_have_text(result["tokens"])
    assert page.figure("sum") == signed(result["sum"])
    assert page.figure("mean") == signed(result["sum"] / count)
    assert page.figure("count") == str(count)
    assert page.figure("ended") == ("yes" if append_eos else "no")
    assert page.page.locator(".token.special").count() == int(append_eos)
    assert page.card("B").count() == 0
    expect(page.page.locator("#difference")).to_be_hidden()
    for value in FIELDS:
        page.choose(value)
        assert page.column("A") == numbers(result, value, 2)
    for index in range(count):
        label = page.token("A", index).get_attribute("aria-label") or ""
        assert f"id {result['response_token_ids'][index]}," in label
        for value in FIELDS:
            assert numbers(result, value)[index] in label
    pair = httpx.get(f"{demo.url}/v1/pair").json()
    expect(page.page.locator("#pair")).to_contain_text(f"{pair['model']} {pair['version']}")
    assert pair["verified"]["verified"]
    expect(page.page.locator("#verified")).to_contain_text(pair["verified"]["against"])


def test_hover_and_focus_show_a_token_in_the_panel_and_on_the_strip(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    compared(page)
    right, _ = ask(demo.url, chat(PROMPT, RIGHT), chat(PROMPT, WRONG))
    place = page.details.bounding_box()
    page.token("A", 1).click()
    expect(page.details).to_contain_text("token 2 of 7")
    for index in (0, 4):
        page.token("A", index).hover()
        expect(page.details).to_contain_text(f"token {index + 1} of 7")
        assert page.detail("id") == str(right["response_token_ids"][index])
        for value in FIELDS:
            assert page.detail(value) == numbers(right, value, 4)[index]
        expect(page.card("A").locator("svg .cursor")).to_have_attribute("x", str(index))
        expect(page.card("B").locator("svg .cursor")).to_have_attribute("x", str(index))  # its counterpart
    assert page.details.bounding_box() == place  # nothing moves under the pointer
    page.page.get_by_role("heading", name="densepath").hover()
    expect(page.details).to_contain_text("token 2 of 7")  # back to the one that was chosen


def test_arrow_keys_home_and_end_go_from_token_to_token(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    compared(page)
    page.token("A", 0).focus()
    last = page.tokens("A").count() - 1
    steps = [("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("End", last), ("ArrowRight", last)]
    for key, at in [*steps, ("Home", 0), ("ArrowUp", 0)]:
        page.page.keyboard.press(key)
        expect(page.token("A", at)).to_be_focused()
        expect(page.details).to_contain_text(f"token {at + 1} of {last + 1}")
        assert page.tokens("A").locator("xpath=self::*[@tabindex='0']").count() == 1


def test_the_strip_has_a_bar_a_token_and_leads_to_it(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    compared(page)
    _, wrong = ask(demo.url, chat(PROMPT, RIGHT), chat(PROMPT, WRONG))
    strip = page.card("B").locator("svg")
    bars = strip.locator(".value").evaluate_all(
        "all => all.map(b => [+b.getAttribute('y'), +b.getAttribute('height'), b.style.fill])"
    )
    assert len(bars) == len(wrong["rewards"])
    back = page.tokens("B").evaluate_all("all => all.map(t => t.style.backgroundColor)")
    for (y, height, fill), reward, token in zip(bars, wrong["rewards"], back, strict=True):
        assert y + height == pytest.approx(50) if reward > 0 else y == 50  # up, or down
        assert fill == token
    box = strip.bounding_box()
    assert box is not None
    page.page.mouse.move(box["x"] + box["width"] * 2.5 / len(bars), box["y"] + 20)
    expect(page.details).to_contain_text("B")
    expect(page.details).to_contain_text("token 3 of 7")
    page.page.mouse.down()
    page.page.mouse.up()
    expect(page.token("B", 2)).to_be_focused()


def test_one_scale_for_both_symmetric_about_0(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    compared(page)
    ends = page.page.locator("#legend .ends").first
    low, zero, high = ends.locator("span").all_inner_texts()
    assert (zero, high) == ("0", low.replace("−", "+") + " nats")
    right, wrong = ask(demo.url, chat(PROMPT, RIGHT), chat(PROMPT, WRONG))
    assert float(high.removesuffix(" nats")) >= max(map(abs, right["rewards"] + wrong["rewards"]))
    page.choose("sft")
    low, high = ends.locator("span").all_inner_texts()
    assert high == "0 nats"
    assert float(low.replace("−", "-")) <= min(right["sft_logprobs"] + wrong["sft_logprobs"])


def test_the_difference_of_two_responses(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    compared(page)
    right, wrong = ask(demo.url, chat(PROMPT, RIGHT), chat(PROMPT, WRONG))
    assert right["response_token_ids"][:AT] == wrong["response_token_ids"][:AT]
    assert page.changed("A") == page.changed("B") == [AT]
    card = page.page.locator("#difference")
    assert page.figure("sum", card) == signed(wrong["sum"] - right["sum"])
    assert page.figure("mean", card) == signed(wrong["sum"] / 7 - right["sum"] / 7)
    by_token = [b - a for a, b in zip(right["rewards"], wrong["rewards"], strict=True)]
    for part in (by_token[:AT], by_token[AT : AT + 1], by_token[AT + 1 :]):
        expect(card.locator(".where")).to_contain_text(signed(sum(part)))
    assert card.locator("svg .value").count() == 6
    assert card.locator("svg .changed").count() == 1
    page.token("B", AT + 1).focus()
    assert page.detail("across") == signed(by_token[AT + 1], 4)
    page.token("A", AT + 1).focus()
    assert page.detail("across") == signed(by_token[AT + 1], 4)
    page.token("B", AT).focus()
    assert page.detail("across") == "changed"


def test_responses_of_other_lengths_are_aligned_at_both_ends(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.fill(PROMPT, "velvet", "velxyzet")
    page.score()
    assert page.changed("A") == [3]
    assert page.changed("B") == [3, 4, 5]
    a, b = ask(demo.url, chat(PROMPT, "velvet"), chat(PROMPT, "velxyzet"))
    page.token("B", 6).focus()
    assert page.detail("across") == signed(b["rewards"][6] - a["rewards"][4], 4)
    expect(page.token("A", 4)).to_have_class("token active counterpart")
    page.page.get_by_role("button", name="Remove response B").click()
    page.score()
    assert page.card("B").count() == 0
    assert page.changed("A") == []


def test_a_token_is_edited_in_place_and_the_reward_falls_there(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.fill(PROMPT, RIGHT)
    page.score()
    before = page.column("A")
    page.edit("A", AT, "q")
    expect(page.token("B", AT)).to_be_focused()
    right, wrong = ask(demo.url, chat(PROMPT, RIGHT), chat(PROMPT, WRONG))
    assert page.column("A") == before == numbers(right, "reward", 2)
    assert page.column("B") == numbers(wrong, "reward", 2)
    assert page.changed("B") == [AT]
    shown = float(page.detail("reward").replace("−", "-"))
    assert shown < right["rewards"][AT] - 0.5
    assert page.page.get_by_label("Response B", exact=True).input_value() == WRONG
    page.edit("B", 0, "w", key="F2")  # an edit of B replaces B, beside the same A
    expect(page.page.get_by_label("Response B", exact=True)).to_have_value("weqvet")
    expect(page.token("B", 0)).to_be_focused()
    assert page.changed("B") == [0, 1, 2]
    assert page.column("A") == before


def test_an_edit_is_left_with_escape_and_without_a_change(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.fill(PROMPT, RIGHT)
    page.score()
    asked: list[str] = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.token("A", 1).dblclick()
    editor = page.page.locator(".editor")
    expect(editor).to_have_value("e")
    editor.fill("zzz")
    page.page.keyboard.press("Escape")
    expect(editor).to_have_count(0)
    expect(page.token("A", 1)).to_be_focused()
    page.page.get_by_role("button", name="Edit this token").click()
    expect(editor).to_be_focused()
    page.page.keyboard.press("Enter")
    expect(page.token("A", 1)).to_be_focused()
    assert page.card("B").count() == 0
    assert asked == []


def test_an_end_of_sequence_token_cannot_be_edited(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.fill(PROMPT, RIGHT)
    page.score()
    page.token("A", 6).focus()
    page.page.keyboard.press("Enter")
    expect(page.status).to_contain_text("nothing to edit")
    assert page.page.locator(".editor").count() == 0

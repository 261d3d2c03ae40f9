"""For everybody: keyboard, phone, dark, reduced motion, and what axe finds."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from browser.conftest import OpenPage
from browser.playground import Playground
from live import Demo

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def assert_accessible(page: Playground) -> None:
    found = Axe().run(page.page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme: str, demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url, color_scheme=scheme)
    page.scored()
    assert_accessible(page)  # two responses and their difference
    page.choose("sft")
    page.token("A", 1).dblclick()
    expect(page.page.locator(".editor")).to_be_focused()
    assert_accessible(page)
    page.page.keyboard.press("Escape")
    page.fill("", "x", "y", form="Text")
    page.score()
    assert_accessible(page)  # errors in both cards
    page.open_file("a.jsonl", '{"id": "a", "rewards": [1.0, -1.0]}\n{bad\n')
    expect(page.page.locator("#of")).to_have_text("of 2")
    expect(page.tokens("A")).to_have_count(2)
    assert_accessible(page)
    page.page.get_by_role("button", name="Next line").click()
    expect(page.problem).to_contain_text("Line 2 is not JSON.")
    assert_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_horizontal_scroll(scheme: str, demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url, color_scheme=scheme, **PHONE)
    page.scored()
    width = "document.documentElement.scrollWidth"
    assert page.page.evaluate(width) == 360
    a, b = page.card("A").bounding_box(), page.card("B").bounding_box()
    assert a is not None
    assert b is not None
    assert a["x"] == b["x"]
    assert a["y"] + a["height"] <= b["y"]  # below each other
    assert_accessible(page)
    page.token("B", 0).tap()
    expect(page.details).to_contain_text("token 1 of")
    expect(page.details).to_be_in_viewport()
    page.page.get_by_role("button", name="Edit this token").tap()
    expect(page.page.locator(".editor")).to_be_focused()
    page.page.keyboard.press("Escape")
    page.fill("copy: " + "x" * 200, "w" * 150)
    page.score()
    assert page.page.evaluate(width) == 360
    page.open_file(f"{'n' * 90}.jsonl", '{"id": "a", "rewards": [1.0], "tokens": ["' + "t" * 300 + '"]}\n')
    expect(page.tokens("A")).to_have_count(1)
    assert page.page.evaluate(width) == 360


def test_text_reads_well_on_every_shade(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    worst = page.page.evaluate(
        """async () => {
          const { colour, inkOn, HUES } = await import("./playground/scale.js");
          const light = ([r, g, b]) => {
            const [x, y, z] = [r, g, b].map((c) => c / 255)
              .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * x + 0.7152 * y + 0.0722 * z;
          };
          const contrast = (a, b) => {
            const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
            return (high + 0.05) / (low + 0.05);
          };
          const ink = { "#000": [0, 0, 0], "#fff": [255, 255, 255] };
          let least = 99;
          for (const dark of [false, true])
            for (const diverging of [false, true])
              for (let step = -500; step <= 500; step += 1) {
                const back = colour({ end: 1, cut: false, diverging, dark }, step / 500);
                least = Math.min(least, contrast(back, ink[inkOn(back)]));
              }
          const ends = Object.values(HUES).map((hues) => contrast(hues.positive, hues.paper));
          return { least, ends };
        }"""
    )
    assert worst["least"] >= 4.5
    assert min(worst["ends"]) >= 3  # the full colour stands out from the paper


def test_the_page_follows_the_scheme_while_it_is_open(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.page.evaluate(background)
    fill = page.token("A", 0).evaluate("token => token.style.backgroundColor")
    page.page.emulate_media(color_scheme="dark")
    expect(page.page.locator("body")).not_to_have_css("background-color", light)
    expect(page.token("A", 0)).not_to_have_css("background-color", fill)


def test_nothing_moves_for_who_wants_no_motion(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url, reduced_motion="reduce")
    page.scored()
    held: list[Any] = []
    page.page.route("**/v1/rewards", lambda route: held.append(route))
    page.page.get_by_role("button", name="Score").click()
    expect(page.page.get_by_role("button", name="Scoring…")).to_be_visible()
    animations = "document.getAnimations().length"
    assert page.page.evaluate(animations) == 0
    page.page.emulate_media(reduced_motion="no-preference")
    page.page.wait_for_function(f"{animations} === 1")
    held[0].continue_()
    page.scored()


def test_everything_is_done_by_keyboard(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    keyboard = page.page.keyboard
    page.page.get_by_label("Prompt", exact=True).focus()
    keyboard.press("Control+A")
    keyboard.type("copy: velvet")
    for text in ("velvet", "veqvet"):
        while not page.page.evaluate("document.activeElement.id.startsWith('response-')"):
            keyboard.press("Tab")
        keyboard.press("Control+A")
        keyboard.type(text)
        keyboard.press("Tab")
    page.page.get_by_label("Response A", exact=True).focus()
    keyboard.press("Control+Enter")
    page.scored()

    def tab_to(selector: str) -> None:
        for _ in range(30):
            if page.page.evaluate("(s) => document.activeElement.matches(s)", selector):
                break
            keyboard.press("Tab")
        focused = page.page.locator(selector).and_(page.page.locator(":focus"))
        expect(focused).to_have_count(1)
        outline = (
            "f => [f, f.nextElementSibling].some(e => e && getComputedStyle(e).outlineStyle === 'solid')"
        )
        assert focused.evaluate(outline)  # the focus is to be seen

    tab_to("#values input")
    keyboard.press("ArrowRight")
    expect(page.page.get_by_label("Return (γ = 1)")).to_be_checked()
    tab_to(".token")
    tab_to("[aria-labelledby=title-B] .token")
    expect(page.token("B", 2)).to_be_focused()  # the one that is looked at: what changed
    keyboard.press("Enter")
    keyboard.type("l")
    keyboard.press("Enter")
    page.scored()
    assert page.changed("B") == []
    expect(page.page.locator("#difference")).to_contain_text("Both have the same token ids.")
    tab_to("#edit")


def test_the_page_is_under_the_strict_policy(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    with page.page.expect_response(f"{demo.url}/") as answered:
        page.page.reload()
    policy = answered.value.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    page.scored()

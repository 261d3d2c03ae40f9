"""A JSONL file, line by line: results as they are, items by the service, faults in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from browser.conftest import OpenPage
from browser.playground import Playground, ask, chat, plain, signed
from live import Demo

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

MESSAGES = [{"role": "user", "content": "copy: velvet"}]
ITEMS: list[dict[str, Any]] = [
    {**chat("copy: velvet", "velvet"), "id": "a"},
    {"prompt": "copy: velvet", "response": "veqvet", "id": "b"},
    {"prompt_token_ids": [1, 90, 74], "response_token_ids": [89, 74, 83, 2], "id": "c"},
    {"token_ids": [1, 90, 74, 83, 84, 2], "response_mask": [0, 0, 1, 0, 1, 1], "id": "d"},
    {"prompt": "", "response": "x", "id": "e"},
]


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def go(page: Playground, number: int, text: str) -> None:
    page.page.get_by_label("Line of the file").fill(str(number))
    page.page.keyboard.press("Enter")
    expect(page.page.locator("#line")).to_have_text(text)


def test_results_of_densepath_score_are_shown_as_they_are(
    demo: Demo, open_page: OpenPage, tmp_path: Path
) -> None:
    (tmp_path / "items.jsonl").write_text(lines(*ITEMS))
    include = [word for name in ("tokens", "logprobs", "returns") for word in ("--include", name)]
    command = ["score", str(tmp_path / "items.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--url", demo.url]
    subprocess.run([sys.executable, "-m", "densepath", *command, *include], check=False, timeout=120)
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(results) == len(ITEMS)

    page = open_page(demo.url)
    page.scored()
    asked: list[str] = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.open_file("out.jsonl", (tmp_path / "out.jsonl").read_bytes())
    expect(page.page.locator("#of")).to_have_text("of 5")
    for number, result in enumerate(results[:4], 1):
        expect(page.page.locator("#line")).to_have_text(f"Line {number} · id {result['id']}")
        expect(page.tokens("A").locator(".text")).to_have_text(result["tokens"])
        assert page.column("A") == [signed(reward, 2) for reward in result["rewards"]]
        assert page.figure("sum") == signed(result["sum"])
        assert page.figure("ended") == ("yes" if result["ended"] else "no")
        page.token("A", 1).focus()
        assert page.detail("sft") == plain(result["sft_logprobs"][1], 4)
        assert page.detail("return") == signed(result["returns"][1], 4)
        page.page.keyboard.press("PageDown")
    expect(page.card("A")).to_contain_text("Not scored")
    expect(page.card("A")).to_contain_text(results[4]["error"]["message"])
    expect(page.card("A")).to_contain_text("invalid_item")
    assert page.tokens("A").count() == 0
    assert page.page.locator("#results .figures:visible").count() == 0  # a failed score is never a number
    assert asked == []  # nothing is sent anywhere


def test_items_are_scored_when_they_are_looked_at(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    bodies: list[Any] = []
    page.page.on("request", lambda request: bodies.append(json.loads(request.post_data or "null")))
    page.open_file("items.jsonl", lines(*ITEMS))
    expected = ask(demo.url, *ITEMS)
    for item, result in zip(ITEMS[:4], expected, strict=False):
        expect(page.page.locator("#line")).to_contain_text(f"id {item['id']}")
        expect(page.tokens("A").locator(".text")).to_have_text(result["tokens"])
        page.scored()
        assert page.figure("sum") == signed(result["sum"])
        shown = page.page.locator("#prompt-shown")
        expect(shown).to_contain_text("copy: velvet" if "response" in item else "token ids")
        page.page.get_by_role("button", name="Next line").click()
    expect(page.card("A")).to_contain_text(expected[4]["error"]["message"].removeprefix("items[4]: "))
    assert [body["items"] for body in bodies] == [[item] for item in ITEMS]


def test_paging(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    results = [{"id": f"r{n}", "status": "ok", "rewards": [n / 100], "sum": n / 100} for n in range(340)]
    page.open_file("many.jsonl", "\n" + lines(*results))  # a blank first line is none
    expect(page.page.locator("#of")).to_have_text("of 340")
    expect(page.page.locator("#line")).to_have_text("Line 2 · id r0")
    go(page, 12, "Line 13 · id r11")
    for name, number in [("Next", 12), ("Previous", 11), ("Last", 339), ("First", 0)]:
        page.page.get_by_role("button", name=f"{name} line").click()
        expect(page.page.locator("#line")).to_have_text(f"Line {number + 2} · id r{number}")
    page.page.locator("body").press("]")
    expect(page.page.locator("#line")).to_have_text("Line 3 · id r1")
    page.page.locator("body").press("[")
    expect(page.page.locator("#line")).to_have_text("Line 2 · id r0")
    go(page, 999, "Line 341 · id r339")
    assert page.figure("sum") == "+3.390"
    notes = page.page.locator("#notes")
    for words in ("no token texts", "no log-probabilities", "no returns"):
        expect(notes).to_contain_text(words)
    page.choose("sft")
    assert page.column("A") == [""]  # and no 0
    page.token("A", 0).focus()
    assert page.detail("sft") == "not given"
    page.page.get_by_role("button", name="Close the file").click()
    expect(page.page.get_by_label("Prompt", exact=True)).to_be_focused()


def test_a_line_that_cannot_be_shown_says_which_and_why(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    content = [
        "{not JSON",
        "[1, 2]",
        '{"status": "ok", "rewards": [1, null]}',
        '{"status": "ok", "rewards": [NaN]}',
        '{"rewards": [1.0], "sft_logprobs": [1, 2]}',
        '{"status": "ok", "rewards": []}',
        '{"status": "error"}',
        '{"status": "ok"}',
    ]
    page.open_file("bad.jsonl", "\n".join(content))
    for number, words in enumerate(
        [
            "Line 1 is not JSON.",
            "Line 2 is not a JSON object.",
            "Line 3 is no result: rewards must be a list of numbers",
            "Line 4 is not JSON.",
            "Line 5 is no result: sft_logprobs must be a list of numbers",
            "Line 6 is no result: rewards is empty.",
            "Line 7 is an error without a message.",
            "Line 8 is no result: rewards must be a list of numbers",
        ],
        1,
    ):
        expect(page.page.locator("#line")).to_have_text(f"Line {number}")
        expect(page.problem).to_contain_text(words)
        expect(page.page.locator("#results")).to_be_hidden()
        page.page.locator("body").press("PageDown")
    page.open_file("empty.jsonl", "\n  \n")
    expect(page.problem).to_have_text("The file has no line.")


def test_a_line_with_an_item_and_its_scores_keeps_its_numbers(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    item = chat("copy: velvet", "velvet")
    [result] = ask(demo.url, item)
    version = httpx.get(f"{demo.url}/v1/pair").json()["version"]
    own = {**result, "rewards": [0.5] * 7, "sum": 3.5}
    row = {**item, **own, "label": "ours", "model_version": "another"}
    page.open_file("both.jsonl", lines({**row, "model_version": version}, row))
    expect(page.page.locator("#prompt-shown")).to_contain_text("copy: velvet")
    assert page.column("A") == ["+0.50"] * 7
    expect(page.page.locator("#notes")).not_to_contain_text("pair version")
    page.page.locator("body").press("PageDown")
    expect(page.page.locator("#notes")).to_contain_text(
        f"scored by pair version another; this service serves {version}"
    )
    page.edit("A", 2, "q")  # scored by the service, beside the file's own numbers
    [wrong] = ask(demo.url, chat("copy: velvet", "veqvet"))
    assert page.column("A") == ["+0.50"] * 7
    assert page.column("B") == [signed(reward, 2) for reward in wrong["rewards"]]
    page.page.get_by_role("button", name="Close the file").click()
    expect(page.page.get_by_label("Response B", exact=True)).to_have_value("veqvet")


def test_what_has_no_text_cannot_be_edited(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.open_file("ids.jsonl", lines(ITEMS[2]))
    expect(page.tokens("A")).to_have_count(4)
    page.scored()
    page.token("A", 0).dblclick()
    expect(page.status).to_contain_text("token ids and no text")
    assert page.page.locator(".editor").count() == 0


def test_a_file_is_dropped_on_the_page(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.page.evaluate(
        """(text) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([text], "dropped.jsonl"));
          const options = { dataTransfer, bubbles: true, cancelable: true };
          for (const type of ["dragover", "drop"])
            document.body.dispatchEvent(new DragEvent(type, options));
        }""",
        lines(ITEMS[0]),
    )
    expect(page.page.get_by_role("heading", name="dropped.jsonl")).to_be_visible()
    expect(page.page.locator("#line")).to_have_text("Line 1 · id a")


def test_a_file_of_100_mb_does_not_freeze_the_page(demo: Demo, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(demo.url)
    page.scored()
    file, count = tmp_path / "large.jsonl", 200_000
    line = json.dumps({"status": "ok", "rewards": [0.25], "sum": 0.25, "tokens": ["x" * 440]}) + "\n"
    file.write_text(line * count)
    assert file.stat().st_size > 100_000_000
    page.page.evaluate(
        """() => {
          window.turns = 0;
          const { port1, port2 } = new MessageChannel();
          port2.onmessage = () => port1.postMessage((window.turns += 1));
          port1.postMessage(0);
        }"""
    )
    page.page.locator("#file-input").set_input_files(file)
    expect(page.page.locator("#of")).to_have_text(f"of {count}", timeout=60_000)
    page.page.get_by_role("button", name="Last line").click()
    expect(page.page.locator("#line")).to_have_text(f"Line {count}")
    # Between two of its 4 MiB chunks the page came to do other things.
    assert page.page.evaluate("window.turns") > file.stat().st_size // (4 << 20)


def test_2000_tokens_stay_usable(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    reward_T = [((n * 37) % 101 - 50) / 25 for n in range(2000)]
    row = {
        "status": "ok",
        "rewards": reward_T,
        "sum": sum(reward_T),
        "tokens": [f" t{n}" for n in range(2000)],
    }
    page.open_file("long.jsonl", lines(row))
    expect(page.tokens("A")).to_have_count(2000)
    page.token("A", 0).focus()
    page.page.keyboard.press("End")
    expect(page.token("A", 1999)).to_be_focused()
    expect(page.details).to_be_in_viewport()
    assert page.detail("reward") == signed(reward_T[1999], 4)
    assert page.card("A").locator("svg .value").count() == 2000
    page.choose("return")  # which the line does not have
    expect(page.card("A").locator(".strip")).to_be_hidden()
    page.choose("reward")
    expect(page.card("A").locator("svg .value")).to_have_count(2000)

"""`densepath report`: what the page says, that it loads nothing, and what it says where a part is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densepath import cli
from densepath.errors import InvalidRequestError
from densepath.show import NEGATIVE, POSITIVE
from densepath.trainer.report.measures import correlation, length_bias, reward_by_position, time_split
from densepath.trainer.report.page import flat, number, write_report
from densepath.trainer.report.run import Sample, read_run
from densepath.trainer.report.tokens import choose_samples, colour_token
from trainer.runs import make_row, write_lines, write_run

SCRIPT = "<script>alert(1)</script>"
VOID = {"meta", "input", "br"}
BY_STEP = {"reward", "held_out", "kl", "objective", "length", "entropy", "grad_norm"}
PICTURES = {*BY_STEP, "time", "bias_length", "bias_position"}


class Page(HTMLParser):
    """Elements and text of a page; a tag that is closed wrong fails."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_run(tmp_path_factory.mktemp("runs") / "strings <b>", steps=20, token=SCRIPT)
    evaluation: dict[str, Any] = {
        "title": "What it gained",
        "columns": ["policy", "greedy %"],
        "rows": [["SFT", 58.2], ["DPR <i>", "74.5 [72, 77]"]],
        "note": "600 prompts",
    }
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    return directory


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(write_report(run))


def test_the_page_and_its_pictures_are_written(page: Page, run: Path) -> None:
    pictures = {path.stem: path.read_bytes() for path in (run / "report").iterdir()}
    assert pictures.keys() == PICTURES
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    svgs = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(svgs) == len(PICTURES)
    for svg in svgs:
        assert svg["role"] == "img"
        assert len(svg["aria-label"]) > 20
    reward = make_row(20)["reward"]
    assert any(f"{reward:.3g} at step 20" in svg["aria-label"] for svg in svgs)


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "img"}
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert page.attributes("src") == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", page.source))
    assert "@import" not in page.source
    loaded = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page.source)
    assert not re.findall(r"https?://", loaded)


def test_ids_are_unique_and_what_points_to_one_finds_it(page: Page) -> None:
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    pointed = {target[1:] for target in page.attributes("href")}
    pointed |= set(re.findall(r"url\(#([^)]*)\)", page.source))
    pointed |= {target for name in ("aria-labelledby", "for") for target in page.attributes(name)}
    assert pointed <= set(ids)
    assert len(pointed) > 10


def test_what_a_run_holds_is_text_and_never_markup(page: Page) -> None:
    assert SCRIPT in page.text
    assert "strings <b>" in page.text
    assert "DPR <i>" in page.text
    assert not {"script", "b", "i"} & {tag for tag, _ in page.elements}


def test_the_page_says_what_was_run_and_how_it_ended(page: Page) -> None:
    assert "Dense-Path REINFORCE, 20 steps" in page.text
    assert "Stopped after step 20: all 20 steps are done." in page.text
    assert "pair 0123456789abcdef: log-probability of final minus that of base" in page.text
    for name, value in (("kl", "0.5"), ("torch", version("torch")), ("reward_clip", "not set")):
        assert f"{name}{value}" in page.text
    assert "s3cret" not in page.source
    for found in ("What it gained", "58.2", "74.5 [72, 77]", "600 prompts"):
        assert found in page.text


def test_row_42_a_key_s_value_is_left_out() -> None:
    assert list(flat({"client": {"api_key": "s3cret"}})) == [("client.api_key", "given")]


def test_the_summary_has_first_last_and_highest(page: Page) -> None:
    reward = [make_row(step)["reward"] for step in range(1, 21)]
    highest = int(np.argmax(reward))
    want = f"{reward[0]:.3f} step 1{reward[-1]:.3f} step 20{reward[highest]:.3f} step {highest + 1}"
    assert f"reward, nats per response{want}" in page.text
    assert "held-out accuracy, greedy, %55.2 step 160.0 step 2060.0 step 20" in page.text


def test_a_sample_s_tokens_carry_their_rewards(page: Page, run: Path) -> None:
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["step"] == 1)
    titles = [title for title in page.attributes("title") if title.endswith(" nats")]
    for reward in first["rewards"]:
        assert f"{reward:+.3f} nats" in titles
    assert f"sum {first['sum']:+.3f} nats" in page.text
    assert re.findall(r"Step (\d+) 6 of 16 kept", page.text) == ["1", "11", "20"]
    assert "tokens · ended" in page.text
    groups = [a for tag, a in page.elements if a.get("role") == "group"]
    assert len(groups) == 18
    assert all(group["tabindex"] == "0" and "sum of rewards" in group["aria-label"] for group in groups)


def test_the_same_run_gives_the_same_page_elsewhere(run: Path, page: Page, tmp_path: Path) -> None:
    again = write_report(run, tmp_path / "page")
    assert again == tmp_path / "page" / "report.html"
    assert again.read_text() == page.source
    assert {path.stem for path in (tmp_path / "page" / "report").iterdir()} == PICTURES


def test_missing_parts_are_said_and_not_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bare", steps=1, held_out=False, samples=0, stopped=None, pair=None)
    rows = [{key: value for key, value in make_row(1, held_out=False).items() if key != "entropy"}]
    write_lines(run / "metrics.jsonl", [row | {"seconds": {}} for row in rows])
    page = Page(write_report(run))
    for words in (
        "This run has not ended: it is still running, or it was killed. Its last step so far is 1.",
        "No step has checked held-out prompts",
        "The run kept no samples: samples.jsonl is missing or empty.",
        "EntropyThe run did not record it.",
        "The run recorded no times.",
        "Pair Not recorded.",
        "1 step,",
    ):
        assert words in page.text, words
    drawn = {path.stem for path in (run / "report").iterdir()}
    assert drawn == {"reward", "kl", "objective", "length", "grad_norm"}


def test_a_long_run_stays_a_page(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path, steps=500, samples=8)))
    assert len(page.source) < 1_500_000
    assert "2,000 of 4,000 responses are drawn." in page.text
    assert "60 of 500 steps, evenly chosen" in page.text
    assert "The strong line is the mean over 17 points." in page.text
    assert "Each bar is the mean of up to 3 steps" in page.text


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    assert read_run(run).step_S.tolist() == [1, 2, 3]


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda run: (run / "manifest.json").unlink(),
            "is not a run directory, because it has no manifest.json",
        ),
        (lambda run: (run / "manifest.json").write_text('{"kind": "sft"}'), "of kind 'sft'"),
        (lambda run: (run / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda run: (run / "manifest.json").write_text("[]"), "manifest.json is not a JSON object"),
        (lambda run: (run / "metrics.jsonl").unlink(), "has no steps yet"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "has no steps yet"),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\nx\n'),
            "metrics.jsonl line 2 is not JSON",
        ),
        (lambda run: (run / "metrics.jsonl").write_text("{}\n"), "no whole number under `step`"),
        (
            lambda run: (run / "samples.jsonl").write_text('{"step": 1}\n'),
            "samples.jsonl line 1 is not a sample",
        ),
        (
            lambda run: write_lines(
                run / "samples.jsonl",
                [{"step": 1, "prompt": "", "tokens": ["a"], "rewards": [], "sum": 0, "ended": True}],
            ),
            "1 tokens and rewards of shape",
        ),
        (lambda run: (run / "evaluation.json").write_text('{"rows": []}'), "needs `columns` and `rows`"),
        (
            lambda run: (run / "evaluation.json").write_text('{"columns": ["a", "b"], "rows": [[1]]}'),
            "does not have 2 cells, one per column",
        ),
    ],
)
def test_what_is_no_run_is_said_in_words(damage: Damage, words: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=2)
    damage(run)
    with pytest.raises(InvalidRequestError, match=words):
        write_report(run)
    assert not (run / "report.html").exists()
    assert not (run / "report").exists()


def test_the_command_says_where_the_page_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", steps=2)
    page = tmp_path / "page" / "report.html"
    monkeypatch.setattr("sys.argv", ["densepath", "report", str(run), "-o", str(page.parent)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert not exit_info.value.code
    assert capsys.readouterr().out.strip() == str(page)
    assert page.exists()
    monkeypatch.setattr("sys.argv", ["densepath", "report", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "is not a run directory" in capsys.readouterr().err


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=2)
    code = (
        "import sys; from pathlib import Path; from densepath.trainer.report.page import write_report;"
        "write_report(Path(sys.argv[1]));"
        "print(*{'torch', 'transformers', 'matplotlib.pyplot'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def sample(step: int, rewards: list[float]) -> Sample:
    reward_T = np.array(rewards)
    return Sample(step, "p", tuple("x" for _ in rewards), reward_T, float(reward_T.sum()), True)


def test_correlation_is_pearson_s_with_fisher_s_interval() -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(size=40)
    y = 0.5 * x + chance.normal(size=40)
    found = correlation(x, y)
    assert found is not None
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    half = 1.959964 / np.sqrt(37)
    assert found.interval == pytest.approx(np.tanh(np.arctanh(found.value) + np.array([-half, half])))
    assert correlation(x, np.ones(40)) is None
    assert correlation(x[:3], y[:3]) is None


def test_the_interval_covers_as_often_as_it_says() -> None:
    chance = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        x = chance.normal(size=30)
        found = correlation(x, 0.6 * x + 0.8 * chance.normal(size=30))
        assert found is not None
        covered += found.interval[0] <= 0.6 <= found.interval[1]
    assert 0.92 <= covered / 400 <= 0.98


def test_drift_over_the_run_is_no_length_bias_within_steps() -> None:
    """Lengths and rewards that both rise with the steps, and have nothing to do with each other in a step."""
    chance = np.random.default_rng(2)
    samples = []
    for step in range(1, 31):
        for _ in range(16):
            length = int(5 + step + chance.integers(0, 4))
            total = 0.3 * step + chance.normal()
            samples.append(sample(step, [total / length] * length))
    found = length_bias(samples)
    assert found.overall is not None
    assert found.within_steps is not None
    assert found.overall.interval[0] > 0.5
    assert found.within_steps.interval[0] < 0 < found.within_steps.interval[1]


def test_reward_by_position_counts_who_is_that_long() -> None:
    found = reward_by_position([sample(1, [1.0, 2.0]), sample(1, [3.0]), sample(2, [5.0, 4.0, 7.0])])
    assert found.mean_T.tolist() == [3.0, 3.0, 7.0]
    assert found.count_T.tolist() == [3, 2, 1]
    assert found.half_interval_T[:2] == pytest.approx(1.959964 * np.array([2 / 3**0.5, 2**0.5 / 2**0.5]))
    assert np.isnan(found.half_interval_T[2])


def test_the_time_split_adds_up_to_the_step(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, steps=5))
    phases = {phase.name: phase for phase in time_split(run)}
    total = np.mean([make_row(step)["seconds"]["total"] for step in range(1, 6)])
    assert sum(phase.seconds for phase in phases.values()) == pytest.approx(total)
    assert sum(phase.share for phase in phases.values()) == pytest.approx(1)
    assert phases["other"].seconds == pytest.approx(0.02)
    assert phases["held_out"].seconds == pytest.approx(make_row(1)["seconds"]["held_out"] / 5)


def test_samples_too_long_for_a_page_are_cut_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=1)
    row = {"step": 1, "prompt": "p" * 5000, "tokens": ["t"] * 1000, "rewards": [0.1] * 1000, "sum": 100.0}
    write_lines(run / "samples.jsonl", [row | {"ended": False}])
    page = Page(write_report(run))
    assert "… 600 more tokens" in page.text
    assert "1000 tokens · truncated: cut at the limit" in page.text
    assert "p" * 1001 not in page.text
    assert len(choose_samples(read_run(run).samples)) == 1


def luminance(rgb: np.ndarray) -> float:
    """WCAG 2.2's relative luminance of 8-bit sRGB."""
    part = rgb / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_token_can_be_read_on_its_colour(mode: int, sign: int, page: Page) -> None:
    """With the page's own colours: a contrast of at least 4.5."""

    def colour(name: str) -> np.ndarray:
        return np.array([*bytes.fromhex(re.findall(rf"--{name}: #(\w+);", page.source)[mode])])

    for reward in np.linspace(0, 2.5, 200) * sign:
        token = colour_token("x", float(reward))
        hue = np.array(POSITIVE if token.hue == "positive" else NEGATIVE)
        ground = colour("paper") + (hue - colour("paper")) * token.share
        text = colour(f"on-{token.hue}" if token.strong else "token")
        low, high = sorted((luminance(ground), luminance(text)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (reward, token.share)
    for rgb in (POSITIVE, NEGATIVE):
        assert " ".join(map(str, rgb)) in page.source


def test_tokens_of_white_space_can_be_seen() -> None:
    shown = [colour_token(text, 0.0).text for text in ("\n", "\t", "", " a")]
    assert shown == ["⏎", "⇥", "∅", " a"]


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (float("nan"), "–"), (12, "12"), (1e-4, "0.0001"), (0.0, "0.000"), (1.23456, "1.235")],
)
def test_figures_are_short(value: object, words: str) -> None:
    assert number(value) == words

"""The page: everything about a run in one file, which loads nothing from the network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.files import write_whole
from densepath.show import NEGATIVE, POSITIVE
from densepath.trainer.report.bias_charts import length_bias_chart, position_bias_chart
from densepath.trainer.report.charts import PHASE_WORDS, step_charts, time_chart
from densepath.trainer.report.drawing import COLOURS, Chart, style, to_svg, write_png
from densepath.trainer.report.measures import Extremes, extremes, length_bias, spread, time_split
from densepath.trainer.report.run import Run, read_run
from densepath.trainer.report.tokens import choose_samples, legend

MOST_ROWS = 60
KEYS = ("api_key",)  # their values are left out, because pages are shared
ABOUT_THE_SERVICE = ("object", "limits")  # of the answer of GET /v1/pair
SUMMED = {"reward": "reward", "kl": "KL to SFT", "objective": "reward − b·KL"}
STEP_COLUMNS = {
    "reward": "reward",
    "kl": "KL",
    "objective": "reward − b·KL",
    "length": "length",
    "truncated": "truncated",
    "out_of_vocabulary": "out of vocabulary",
    "responses": "responses",
    "entropy": "entropy",
    "grad_norm": "gradient norm",
    "loss": "loss",
    "lr": "learning rate",
    "logp_gap": "log-probability gap",
}


def write_report(directory: Path, output: Path | None = None) -> Path:
    """Write `report.html` and `report/*.png` into `output`, or into the run itself. Returns the page's path.

    Raises InvalidRequestError if `directory` is not a run of `densepath train` or has no step yet.
    """
    run = read_run(directory)
    output = directory if output is None else output
    pictures = output / "report"
    pictures.mkdir(parents=True, exist_ok=True)
    with style():
        charts = {
            "steps": [_show(chart, pictures) for chart in step_charts(run)],
            "time": [_show(time_chart(run), pictures)],
            "bias": [_show(chart, pictures) for chart in (length_bias_chart(run), position_bias_chart(run))],
        }
    page = output / "report.html"
    write_whole(page, _render(run, charts).encode())
    return page


@dataclass(frozen=True)
class ShownChart:
    """A chart as the page shows it. `svg` is markup, or None if `caption` says why there is none."""

    title: str
    caption: str
    svg: str | None


def _show(chart: Chart, pictures: Path) -> ShownChart:
    if chart.figure is None:
        return ShownChart(chart.title, chart.caption, None)
    write_png(chart.figure, pictures / f"{chart.name}.png")
    return ShownChart(chart.title, chart.caption, to_svg(chart.figure, chart.name, chart.alt))


def _render(run: Run, charts: Mapping[str, list[ShownChart]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("densepath.trainer.report"),
        autoescape=True,  # prompts and tokens may contain anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["words"] = words
    manifest = run.manifest
    pair: dict[str, Any] = manifest.get("pair") or {}
    return environment.get_template("report.html.j2").render(
        name=run.directory.resolve().name,
        manifest=manifest,
        pair=pair,
        pair_words=list(flat({key: pair[key] for key in pair if key not in ABOUT_THE_SERVICE})),
        settings=list(flat(manifest.get("settings") or {})),
        packages={"densepath": manifest.get("densepath"), **(manifest.get("packages") or {})},
        last=int(run.step_S[-1]),
        steps=len(run.rows),
        stopped=manifest.get("stopped"),
        evaluation=run.evaluation,
        summary=summary(run),
        charts=charts,
        phases=time_split(run),
        phase_words={name: label for name, (label, _) in PHASE_WORDS.items()},
        samples=choose_samples(run.samples),
        sample_count=len(run.samples),
        legend=legend(),
        bias=length_bias(run.samples) if run.samples else None,
        table=step_table(run),
        colours=COLOURS,
        hues={"positive": POSITIVE, "negative": NEGATIVE},
    )


@dataclass(frozen=True)
class Judged:
    """A row of the summary. Its figures are shown with this number of decimals."""

    name: str
    decimals: int
    found: Extremes


def summary(run: Run) -> list[Judged]:
    """First, last and highest value of the figures that judge the run, if they are recorded."""
    columns = [(f"{words}, nats per response", 3, run.column(name)) for name, words in SUMMED.items()]
    for kind in run.held_out_kinds:
        columns.append((f"held-out accuracy, {kind}, %", 1, run.column(kind, "held_out") * 100))
    found = [(name, decimals, extremes(run, value_S)) for name, decimals, value_S in columns]
    return [Judged(name, decimals, value) for name, decimals, value in found if value is not None]


@dataclass(frozen=True)
class StepTable:
    """At most MOST_ROWS steps, evenly chosen; `cells` has one row per step; a missing figure is None."""

    columns: tuple[str, ...]
    cells: tuple[tuple[Any, ...], ...]


def step_table(run: Run) -> StepTable:
    """The charts in numbers, also for readers who cannot see charts."""
    kinds = run.held_out_kinds
    columns = ("step", *STEP_COLUMNS.values(), *(f"held-out, {kind}" for kind in kinds), "seconds")
    rows = [run.rows[index] for index in spread(len(run.rows), MOST_ROWS)]
    cells = tuple(
        (
            row["step"],
            *(row.get(name) for name in STEP_COLUMNS),
            *((row.get("held_out") or {}).get(kind) for kind in kinds),
            (row.get("seconds") or {}).get("total"),
        )
        for row in rows
    )
    return StepTable(columns, cells)


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Settings as names and texts; a setting inside another is `outer.inner`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        elif name in KEYS and value is not None:
            yield f"{before}{name}", "given"
        else:
            yield f"{before}{name}", words(value)


def words(value: object) -> str:
    """The value of a setting as text for a reader."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: object) -> str:
    """A figure with three decimals, or with three digits if it is small or large; a dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.3g}"

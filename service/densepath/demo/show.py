"""Building the demo where people watch, and printing what was measured of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from densepath.demo.prompts import publish
from densepath.demo.recipe import ProgressFn
from densepath.demo.store import Demo, build, default_directory

_LEGEND = (
    "AUROC: the chance that a wrong token scores higher than a right one, both drawn over all responses' "
    "tokens, EOS included. Before: of the right tokens, only those before their response's wrong one count. "
    "Highest: the share of responses in which the wrong token scores highest. In brackets: 95 % intervals, "
    "responses resampled."
)


def build_and_show(console: Console) -> Demo:
    """The default demo, built with a bar a stage where it is missing; prints its measurements."""
    with stage_bars(console) as progress:
        demo = build(default_directory(), progress)
    with suppress(OSError):  # a demo on a read-only volume is served all the same
        publish(demo)
    show(demo, console)
    return demo


@contextmanager
def stage_bars(console: Console) -> Iterator[ProgressFn]:
    """A bar a stage, for whatever reports its progress so."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress


def show(demo: Demo, console: Console) -> None:
    """Print a demo's measurements."""
    found = demo.measurements
    sft = found["sft"]
    console.print(f"The demo pair lies in {demo.directory}", soft_wrap=True)
    seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in found["seconds"].items())
    console.print(f"{found['parameters']:,} parameters; built in: {seconds}")
    console.print(
        f"SFT kept after {sft['samples']:,} samples, half reference after {sft['half_samples']:,}; "
        f"validation loss {sft['validation_loss_base']:.3f} → {sft['validation_loss']:.3f} nats a token"
    )
    console.print(_match_table(found["exact_match"], len(demo.examples)))
    console.print(_wrong_token_table(found["wrong_token"], len(demo.examples)))
    console.print(_above_table(found["right_above_other"], len(demo.examples)))
    console.print(_LEGEND)


def _match_table(match: Mapping[str, Mapping[str, float]], count: int) -> Table:
    table = Table("checkpoint", "sampled", "greedy", title=f"Exact match with EOS, {count} held-out prompts")
    for name in reversed(list(match)):
        table.add_row(name, *(f"{match[name][how]:.1%}" for how in ("sampled", "greedy")))
    return table


def _wrong_token_table(wrong_token: Mapping[str, Mapping[str, Any]], count: int) -> Table:
    title = f"Which token is the wrong one? {count} held-out answers, one letter replaced in each"
    table = Table("minus", "AUROC", "AUROC, before", "highest", title=title)
    for name, found in wrong_token.items():
        keys = ("auroc", "auroc_up_to", "share_highest")
        table.add_row(name, *(_cell(found[key], found[key + "_interval"]) for key in keys))
    return table


def _above_table(above: Mapping[str, Mapping[str, Any]], count: int) -> Table:
    title = f"Is the right answer's sum above another operation's answer? {count} held-out prompts"
    table = Table("sum of", "share", title=title)
    for name, found in above.items():
        table.add_row(name, _cell(found["share"], found["interval"]))
    return table


def _cell(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"

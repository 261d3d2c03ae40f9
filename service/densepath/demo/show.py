"""Builds the demo with progress bars, and prints its measurements."""

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
    "AUROC: the probability that a wrong token scores higher than a right one, both drawn from the tokens of "
    "all responses, EOS included. Before: only right tokens before the wrong token of their response count. "
    "Highest: the share of responses in which the wrong token scores highest. In brackets: 95 % intervals "
    "from resampled responses."
)


def build_and_show(console: Console) -> Demo:
    """The default demo, built with one progress bar per stage if it is missing. Prints its measurements."""
    with stage_bars(console) as progress:
        demo = build(default_directory(), progress)
    with suppress(OSError):  # a demo on a read-only volume can still be served
        publish(demo)
    show(demo, console)
    return demo


@contextmanager
def stage_bars(console: Console) -> Iterator[ProgressFn]:
    """One progress bar per stage, for code that reports its progress to a `ProgressFn`."""
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
    console.print(f"The demo pair is in {demo.directory}", soft_wrap=True)
    seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in found["seconds"].items())
    console.print(f"{found['parameters']:,} parameters; built in: {seconds}")
    console.print(
        f"SFT checkpoint after {sft['samples']:,} samples, half reference after {sft['half_samples']:,}; "
        f"validation loss {sft['validation_loss_base']:.3f} → {sft['validation_loss']:.3f} nats per token"
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
    title = f"Is the right answer's sum above that of another operation's answer? {count} held-out prompts"
    table = Table("sum of", "share", title=title)
    for name, found in above.items():
        table.add_row(name, _cell(found["share"], found["interval"]))
    return table


def _cell(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"

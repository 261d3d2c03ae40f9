"""Runs the evidence, unit by unit; what is already measured is not measured again.

python benchmarks/learning/run.py              # 10 seeds, both tasks, every case and sweep
python benchmarks/learning/run.py --quick      # seconds: shows that all of it runs
python benchmarks/learning/run.py --seeds 0-4  # and --seeds 5-9 beside it, for two cores
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from evidence import measure_unit
from plan import LENGTHS, SEEDS, TASKS, Unit, units
from rich.console import Console
from table import write_tables
from training import Recipe, shortened

RESULTS = Path(__file__).parents[1] / "results" / "learning"

console = Console(width=110)


def parse_numbers(text: str) -> list[int]:
    """`0-9`, `0,2,4` or both; empty text is none."""
    numbers: list[int] = []
    try:
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} should look like 0-9 or 0,2,4") from None
    return numbers


def is_measured(path: Path, recipe: Recipe) -> bool:
    """Whether the file is there, and of this recipe; a file of another recipe is a mistake."""
    if not path.exists():
        return False
    if json.loads(path.read_text())["recipe"] != json.loads(json.dumps(asdict(recipe))):
        raise typer.BadParameter(f"{path} was measured with another recipe: choose another --out")
    return True


def write(path: Path, figures: dict[str, Any]) -> None:
    """In one piece: a killed run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(figures, separators=(",", ":"), ensure_ascii=False) + "\n")
    os.replace(unfinished, path)


def run(todo: list[Unit], recipe: Recipe, out: Path) -> None:
    """Measure what is missing, on one thread, and say how far it is."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    for done, unit in enumerate(todo):
        path = out / f"{unit.name}.json"
        if is_measured(path, recipe):
            continue
        write(path, measure_unit(unit, recipe, console.print))
        console.print(f"{done + 1} of {len(todo)} units, {time.perf_counter() - start:.0f} s")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny models: shows that all of it runs.")] = False,
    tasks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(TASKS),
    seeds: Annotated[str, typer.Option(help="Like 0-9 or 0,2,4.")] = f"{SEEDS[0]}-{SEEDS[-1]}",
    lengths: Annotated[str, typer.Option(help="Of the length sweep.")] = ",".join(map(str, LENGTHS)),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the JSON files; the tables go beside it.")
    ] = None,
) -> None:
    """Measure what DPR gains on SFT, seed by seed, and write the tables."""
    wanted = tasks.split(",")
    if unknown := set(wanted) - set(TASKS):
        raise typer.BadParameter(
            f"there is no task {', '.join(sorted(unknown))}: there are {', '.join(TASKS)}"
        )
    if quick:
        out = out or Path(tempfile.mkdtemp(prefix="learning-")) / "learning"
        seeds, lengths = "0-1", "4"
    folder = out or RESULTS
    todo = list(units(wanted, parse_numbers(seeds), parse_numbers(lengths)))
    run(todo, shortened(Recipe()) if quick else Recipe(), folder)
    console.print(write_tables(folder), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

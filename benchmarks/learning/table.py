"""Makes the Markdown tables of the measured units: `python benchmarks/learning/table.py [FOLDER]`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from intervals import Mean, mean
from plan import (
    BASE_0,
    BASE_1,
    CASES,
    COMPARISONS,
    GAMMAS,
    HALF_0,
    KLS,
    LENGTH,
    LENGTH_TASK,
    MAIN_ARMS,
    PAPER,
    REFERENCES,
    REFERENCES_0,
    SUM_BASE,
    SUM_HALF,
    SWEEP_SEEDS,
    TASKS,
    Arm,
)

Figures = dict[str, Any]
HOW = ("sampled", "greedy")
RESULTS = Path(__file__).parents[1] / "results" / "learning"


def read(folder: Path) -> list[Figures]:
    """Every unit's figures, by name. Raises FileNotFoundError where there is none."""
    paths = sorted(folder.glob("*-seed-*.json"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no measured unit: run benchmarks/learning/run.py first")
    return [json.loads(path.read_text()) for path in paths]


class Measured:
    """The seeds of one task and one length."""

    def __init__(self, measured: Iterable[Figures], task: str, length: int) -> None:
        self.task, self.length = task, length
        self.seeds = [m for m in measured if (m["unit"]["task"], m["unit"]["length"]) == (task, length)]

    def swept(self) -> Measured:
        """The same, of those seeds alone that have the sweeps."""
        return Measured([m for m in self.seeds if m["unit"]["seed"] in SWEEP_SEEDS], self.task, self.length)

    def level(self, case: str, how: str, arm: Arm | None = None) -> list[float]:
        """Accuracy of SFT, or of an arm, seed by seed, per cent."""
        cases = [m["cases"][case] for m in self.seeds]
        return [(c["sft"] if arm is None else c["arms"][arm.name])[how] for c in cases]

    def gain(self, case: str, how: str, arm: Arm, against: Arm | None = None) -> Mean:
        """Points over SFT, or over another arm of the same seed."""
        pairs = zip(self.level(case, how, arm), self.level(case, how, against), strict=True)
        return mean([a - b for a, b in pairs])

    def seen(self, case: str, *path: str) -> Mean:
        """Any other figure of a case."""
        values = []
        for figures in self.seeds:
            value = figures["cases"][case]
            for name in path:
                value = value[name]
            values.append(value)
        return mean(values)


def rows(heading: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _heading(first: str) -> list[str]:
    return [first, *(f"{case.name}: {how}" for case in CASES for how in HOW)]


def _marked(gain: Mean) -> str:
    return f"**{gain.points()}**" if gain.is_clear else gain.points()


def learning_table(of: Measured) -> str:
    """Every main arm of every case: points over SFT."""
    sft = [mean(of.level(case.name, how)).level() for case in CASES for how in HOW]
    body = [["SFT itself, per cent right", *sft]]
    for arm in MAIN_ARMS:
        gains = [of.gain(case.name, how, arm) for case in CASES for how in HOW]
        body.append([arm.name, *map(_marked, gains)])
    return rows(_heading("points over SFT"), body)


def comparison_table(of: Measured) -> str:
    """The comparisons of the plan: the first arm less the second."""
    body = []
    for first, second in COMPARISONS:
        gains = [of.gain(case.name, how, first, second) for case in CASES for how in HOW]
        body.append([f"{first.name} − {second.name}", *map(_marked, gains)])
    return rows(_heading("points, paired"), body)


def sweep_table(of: Measured, case: str, arms: Sequence[Arm]) -> str:
    """Points over SFT, with the mean log-ratio to SFT of a response at the end, and its reward."""
    body = []
    for arm in arms:
        gains = [_marked(of.gain(case, how, arm)) for how in HOW]
        nats = [f"{of.seen(case, 'arms', arm.name, name).value:.2f}" for name in ("kl", "reward")]
        body.append([arm.name, *gains, *nats])
    return rows(["", *HOW, "KL, nats", "reward, nats"], body)


def length_table(every: Sequence[Figures]) -> str:
    """Case C of one task at several lengths: does dense credit gain on the sum as responses grow?"""
    lengths = sorted({m["unit"]["length"] for m in every if m["unit"]["task"] == LENGTH_TASK})
    heading = ["answer, symbols", "seeds", "", "SFT, per cent"]
    differences = ((PAPER, SUM_HALF), (HALF_0, SUM_HALF), (BASE_1, SUM_BASE), (BASE_0, SUM_BASE))
    gains: tuple[Arm, ...] = (PAPER, HALF_0, SUM_HALF, BASE_1, BASE_0, SUM_BASE)
    short = ["γ 1, half", "γ 0, half", "sum, half", "γ 1, base", "γ 0, base", "sum, base"]
    over, against = [], []
    for length in lengths:
        of = Measured(every, LENGTH_TASK, length)
        for how in HOW:
            first = [str(length), str(len(of.seeds)), how, mean(of.level("C", how)).level()]
            over.append([*first, *(_marked(of.gain("C", how, arm)) for arm in gains)])
            against.append([*first[:3], *(_marked(of.gain("C", how, a, b)) for a, b in differences)])
    between = [f"{short[gains.index(a)]} − {short[gains.index(b)]}" for a, b in differences]
    return (
        rows([*heading, *short], over)
        + "\nDense credit less the sum, paired:\n\n"
        + rows([*heading[:3], *between], against)
    )


def reward_table(of: Measured) -> str:
    """What each score says of wrong answers."""
    names = list(of.seeds[0]["cases"]["A"]["located"])
    columns = ("auroc", "auroc_up_to", "above")
    body = []
    for name in names:
        cells = []
        for case in CASES:
            cells += [of.seen(case.name, "located", name, key).share() for key in columns[:2]]
            cells.append(of.seen(case.name, "right_above_other", name).share())
        body.append([name, *cells])
    words = ("wrong token, AUROC", "the same, up to it", "right above another")
    return rows(["score", *(f"{case.name}: {word}" for case in CASES for word in words)], body)


def what_was_run(of: Measured) -> str:
    """The models behind the figures of a task."""
    base = [mean([m["base"][how] for m in of.seeds]).level() for how in HOW]
    lines = [
        f"{len(of.seeds)} seeds; {of.seeds[0]['parameters']:,} parameters; words of {of.length} symbols; "
        f"base model {base[0]} % right sampled, {base[1]} % greedily.",
        *(
            f"{case.name}: {case.words}; {of.seen(case.name, 'sft_steps').value:.0f} SFT steps (mean), "
            f"validation loss {of.seen(case.name, 'validation_loss_base').value:.3f} → "
            f"{of.seen(case.name, 'validation_loss').value:.3f} nats a token; {case.dpr_steps} steps an arm."
            for case in CASES
        ),
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def tables(every: Sequence[Figures]) -> str:
    """All of them, as one Markdown document."""
    parts = [
        "# The evidence, in tables\n",
        "Written by `python benchmarks/learning/table.py` from `learning/*.json`; "
        "`benchmarks/learning/README.md` says how to read them. Points are of exact match (EOS included) "
        "on held-out prompts, with paired 95 % t intervals over seeds; bold: the interval leaves 0 out.\n",
    ]
    for task in TASKS:
        of = Measured(every, task, LENGTH)
        if not of.seeds:
            continue
        parts += [f"## {task}\n", what_was_run(of), learning_table(of)]
        parts += ["### Planned comparisons\n", comparison_table(of)]
        parts += [f"The sweeps have {len(of.swept().seeds)} of the seeds.\n"]
        sweeps = (
            ("gamma, case C, half reference", "C", GAMMAS),
            ("KL coefficient b, case C, γ 1, half reference", "C", KLS),
            ("reference as a share of the SFT's samples, case C, γ 1", "C", REFERENCES),
            ("reference, case C, γ 0", "C", REFERENCES_0),
            ("reference, case B, γ 1", "B", REFERENCES),
        )
        for words, case, arms in sweeps:
            parts += [f"### Sweep: {words}\n", sweep_table(of.swept(), case, arms)]
        parts += ["### What the scores say of wrong answers\n", reward_table(of)]
    parts += [f"## Length of the answers ({LENGTH_TASK}, case C)\n", length_table(every)]
    return "\n".join(parts)


def write_tables(folder: Path) -> str:
    """Write `FOLDER.md` beside the folder, and return it."""
    text = tables(read(folder))
    folder.with_suffix(".md").write_text(text)
    return text


def main(folder: Path = RESULTS) -> None:
    """Write the tables of a folder of measured units beside it, and print them."""
    typer.echo(write_tables(folder))


if __name__ == "__main__":
    typer.run(main)

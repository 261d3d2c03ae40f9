"""How the demo's policies answer held-out prompts, and the conclusion: a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from densepath.trainer.evaluate.responses import mean_score, open_subject
from densepath.trainer.evaluate.run import Evaluated, builder, evaluate
from densepath.trainer.evaluate.settings import EvalSettings
from densepath.trainer.evaluate.statistics import Estimate, estimate_difference, estimate_mean
from densepath.trainer.rollouts.engines import RolloutEngine

NAMES = {
    "sft": "SFT",
    "continued": "SFT continued",
    "dpr": "DPR",
}
SEEDS = 4


@dataclass(frozen=True)
class Compared:
    """Accuracies of the policies on one held-out set, and DPR's lead over the others, by way of decoding."""

    held_out: str
    prompts: int
    accuracy: Mapping[str, Mapping[str, Estimate]]  # decoding → name → share
    lead: Mapping[str, Mapping[str, Estimate]]  # decoding → name of another → DPR's share minus the other's

    def sentence(self) -> str:
        """Which policies DPR is ahead of: the 95 % interval over prompts must not contain 0."""
        said = []
        for how, lead in self.lead.items():
            ahead = [NAMES[name] for name, found in lead.items() if found.interval[0] > 0]
            behind = [NAMES[name] for name, found in lead.items() if found.interval[1] < 0]
            even = [NAMES[n] for n, f in lead.items() if f.interval[0] <= 0 <= f.interval[1]]
            parts = [("ahead of", ahead), ("behind", behind), ("not distinguishable from", even)]
            said.append(f"{how}, DPR is " + ", ".join(f"{w} {' and '.join(of)}" for w, of in parts if of))
        return f"{self.held_out[0].upper()}{self.held_out[1:]}: " + "; ".join(said) + "."

    def table(self) -> Table:
        """The table for a terminal."""
        table = Table(*self.columns(), title=f"Right answers that end, %: {self.prompts} {self.held_out}")
        for row in self.rows():
            table.add_row(*row)
        return table

    def columns(self) -> list[str]:
        """The names of the columns of `rows`."""
        return ["policy", *self.accuracy, *(f"{how}, DPR's lead" for how in self.lead)]

    def rows(self) -> list[list[str]]:
        """One row per policy."""
        return [
            [
                NAMES[name],
                *(_share(self.accuracy[how][name]) for how in self.accuracy),
                *(_points(self.lead[how].get(name)) for how in self.lead),
            ]
            for name in NAMES
        ]


def evaluation_table(compared: Sequence[Compared]) -> dict[str, Any]:
    """One table of all held-out sets and the conclusion, in the form that the report takes."""
    return {
        "title": f"Right answers that end, in %, with 95 % intervals over prompts; {SEEDS} samples of each",
        "columns": ["held out", *compared[0].columns()],
        "rows": [[f"{one.prompts} {one.held_out}", *row] for one in compared for row in one.rows()],
        "note": " ".join(one.sentence() for one in compared),
    }


def compare(name: str, finals: Mapping[str, Path], held_out: Path, longest: int, say: Console) -> Compared:
    """Answer the held-out prompts with each policy, greedily and sampled, with the same seeds."""
    settings = EvalSettings(
        checkpoints=list(finals.values()),
        held_out=held_out,
        seeds=SEEDS,
        max_new_tokens=longest,
        engine=RolloutEngine.TRANSFORMERS,
    )
    subjects = [open_subject(directory, NAMES[policy]) for policy, directory in finals.items()]
    evaluated = evaluate(subjects, held_out, settings, builder(settings), say)
    return _compare(name, dict(zip(finals, evaluated, strict=True)))


def _compare(held_out: str, evaluated: Mapping[str, Evaluated]) -> Compared:
    dpr = evaluated["dpr"].rounds()
    score = {how: {name: mean_score(one.rounds()[how]) for name, one in evaluated.items()} for how in dpr}
    return Compared(
        held_out=held_out,
        prompts=len(evaluated["dpr"].prompts),
        accuracy={how: {n: estimate_mean(s) for n, s in of_how.items()} for how, of_how in score.items()},
        lead={
            how: {n: estimate_difference(of_how["dpr"], s) for n, s in of_how.items() if n != "dpr"}
            for how, of_how in score.items()
        },
    )


def _share(found: Estimate) -> str:
    low, high = found.interval
    return f"{100 * found.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _points(found: Estimate | None) -> str:
    if found is None:
        return ""
    low, high = found.interval
    return f"{100 * found.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"

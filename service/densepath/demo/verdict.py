"""What the demo's policies do on held-out prompts, and what follows: a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from densepath.trainer.evaluation import Evaluated, builder, evaluate
from densepath.trainer.responses import mean_score, open_subject
from densepath.trainer.rollouts import RolloutEngine
from densepath.trainer.settings_eval import EvalSettings
from densepath.trainer.statistics import Estimate, estimate_difference, estimate_mean

NAMES = {
    "sft": "SFT, at its validation minimum",
    "continued": "the same, continued",
    "dpr": "Dense-Path REINFORCE",
}
SEEDS = 8


@dataclass(frozen=True)
class Compared:
    """Accuracies of the policies, and DPR's lead over the others; by how they were decoded."""

    prompts: int
    accuracy: Mapping[str, Mapping[str, Estimate]]  # how → name → share
    lead: Mapping[str, Mapping[str, Estimate]]  # how → the other's name → DPR's share less its

    def sentence(self) -> str:
        """Whom DPR is ahead of, by intervals that do not hold 0."""
        said = []
        for how, lead in self.lead.items():
            ahead = [NAMES[name] for name, found in lead.items() if found.interval[0] > 0]
            behind = [NAMES[name] for name, found in lead.items() if found.interval[1] < 0]
            even = [NAMES[n] for n, f in lead.items() if f.interval[0] <= 0 <= f.interval[1]]
            parts = [("ahead of", ahead), ("behind", behind), ("not told apart from", even)]
            said.append(f"{how}: " + ", ".join(f"{w} {' and '.join(of)}" for w, of in parts if of))
        return "DPR is, " + "; ".join(said) + f" (95 % intervals over {self.prompts} prompts)."

    def table(self) -> Table:
        """For a terminal."""
        described = self.described()
        table = Table(*described["columns"], title=described["title"])
        for row in described["rows"]:
            table.add_row(*row)
        return table

    def described(self) -> dict[str, Any]:
        """The table and the sentence, as the report takes them."""
        rows = [
            [
                NAMES[name],
                *(_share(self.accuracy[how][name]) for how in self.accuracy),
                *(_points(self.lead[how].get(name)) for how in self.lead),
            ]
            for name in NAMES
        ]
        columns = ["policy", *self.accuracy, *(f"DPR's lead, {how}" for how in self.lead)]
        title = f"Right answers that end, {self.prompts} held-out prompts, {SEEDS} samples of each"
        return {"title": title, "columns": columns, "rows": rows, "note": self.sentence()}


def compare(finals: Mapping[str, Path], held_out: Path, longest: int, say: Console) -> Compared:
    """Answer the held-out prompts with each policy, greedily and sampled, under the same seeds."""
    settings = EvalSettings(
        checkpoints=list(finals.values()),
        held_out=held_out,
        seeds=SEEDS,
        max_new_tokens=longest,
        engine=RolloutEngine.TRANSFORMERS,
    )
    subjects = [open_subject(directory, NAMES[name]) for name, directory in finals.items()]
    evaluated = evaluate(subjects, held_out, settings, builder(settings), say)
    return _compare(dict(zip(finals, evaluated, strict=True)))


def _compare(evaluated: Mapping[str, Evaluated]) -> Compared:
    dpr = evaluated["dpr"].rounds()
    score = {how: {name: mean_score(one.rounds()[how]) for name, one in evaluated.items()} for how in dpr}
    return Compared(
        prompts=len(evaluated["dpr"].prompts),
        accuracy={how: {n: estimate_mean(s) for n, s in of_how.items()} for how, of_how in score.items()},
        lead={
            how: {n: estimate_difference(of_how["dpr"], s) for n, s in of_how.items() if n != "dpr"}
            for how, of_how in score.items()
        },
    )


def _share(found: Estimate) -> str:
    low, high = found.interval
    return f"{found.value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _points(found: Estimate | None) -> str:
    if found is None:
        return ""
    low, high = found.interval
    return f"{100 * found.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"

"""The directory of a `densepath train` run: its files, and what a line of metrics.jsonl holds.

manifest.json     settings, versions, the pair, and why the run stopped
metrics.jsonl     one object per step
samples.jsonl     some scored responses of each step
checkpoints/      what a run is resumed from
final/            the last policy, once the run has ended
evaluation.json   a table for the top of the report, which the author of a run may add
"""

from __future__ import annotations

from typing import Any, Literal, get_args

MANIFEST, METRICS, SAMPLES, EVALUATION = "manifest.json", "metrics.jsonl", "samples.jsonl", "evaluation.json"
CHECKPOINTS, FINAL = "checkpoints", "final"

#: `kind` of the manifest.
KIND = "train"

#: A line of metrics.jsonl: the figures of one step.
Row = dict[str, Any]

#: The parts of a step whose seconds are counted, in the order in which they run.
Phase = Literal["rollout", "rewards", "forward_backward", "weight_update", "held_out"]
PHASES: tuple[Phase, ...] = get_args(Phase)

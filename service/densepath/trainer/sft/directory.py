"""The run directory of `densepath sft`: describing and showing it. `pair/runs.py` reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import densepath
from densepath.files import sync, write_whole
from densepath.pair.runs import BASE, FINAL, MANIFEST, SftRun
from densepath.trainer.sft.data import Ordered
from densepath.trainer.sft.demonstrations import Demonstrations
from densepath.trainer.sft.settings import SftSettings
from densepath.trainer.sft.watch import Watch
from densepath.versions import installed_versions

SNAPSHOTS = "snapshots"  # until the run is done
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def share_name(share: float) -> str:
    """The name of the directory of the checkpoint at a share, for example share-0.50."""
    return f"share-{share:.2f}" if share == round(share, 2) else f"share-{share}"


def make_manifest(
    settings: SftSettings,
    demonstrations: Demonstrations,
    ordered: Ordered,
    watch: Watch,
    steps: Mapping[float, int],
) -> dict[str, Any]:
    """The manifest. `steps` has the step of each checkpoint between base and final, by its share."""
    shares = [(share_name(share), share, step) for share, step in steps.items()]
    made = [(BASE, 0.0, 0), *shares, (FINAL, 1.0, watch.kept)]
    return {
        "kind": "sft",
        "densepath": densepath.__version__,
        "packages": installed_versions(_PACKAGES),
        "settings": settings.described(),
        "base": settings.base.resolve().name,
        "demonstrations": {
            "learned": len(demonstrations.learned),
            "held_out": len(demonstrations.held_out),
            "too_long": demonstrations.too_long,
        },
        "checkpoints": [
            {
                "path": name,
                "share": share,
                "samples": ordered.samples_S[step],
                "step": step,
                "validation_loss": watch.losses.get(step),
            }
            for name, share, step in made
        ],
        "log": watch.log,
    }


def finish(run: Path, manifest: Mapping[str, Any]) -> None:
    """Flush everything to the disk, and write the manifest last: it makes the directory a finished run."""
    shutil.rmtree(run / SNAPSHOTS)
    for path in sorted(run.rglob("*"), reverse=True):
        sync(path)
    write_whole(run / MANIFEST, json.dumps(manifest, indent=1).encode())


def show_run(run: SftRun, say: Console) -> None:
    """Print the checkpoints of a run, and the command that serves them."""
    table = Table("checkpoint", "samples", "steps", "validation loss", title=f"SFT in {run.directory}")
    for checkpoint in run.checkpoints:
        loss = checkpoint.validation_loss
        counts = (f"{checkpoint.samples:,}", f"{checkpoint.step:,}")
        table.add_row(checkpoint.directory.name, *counts, "" if loss is None else f"{loss:.4f}")
    say.print(table)
    say.print(f"densepath serve --pair {run.directory}", markup=False, soft_wrap=True)

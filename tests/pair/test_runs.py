"""Reading a run of `densepath sft`, and serving two of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from densepath.commands.pairs import directories
from densepath.commands.settings import ServeSettings
from densepath.errors import InvalidRequestError
from densepath.pair.runs import read_sft_run

CHECKPOINTS = [
    {"path": "base", "share": 0.0, "samples": 0, "step": 0, "validation_loss": 2.5},
    {"path": "share-0.25", "share": 0.25, "samples": 16, "step": 4, "validation_loss": None},
    {"path": "share-0.50", "share": 0.5, "samples": 32, "step": 8, "validation_loss": 2.0},
    {"path": "final", "share": 1.0, "samples": 64, "step": 16, "validation_loss": 1.5},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose checkpoints are empty."""
    for described in CHECKPOINTS:
        (tmp_path / "run" / str(described["path"])).mkdir(parents=True)
    write(tmp_path / "run", kind="sft", checkpoints=CHECKPOINTS)
    return tmp_path / "run"


def write(directory: Path, **manifest: Any) -> None:
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def served(run: Path, *share: float) -> tuple[str, str]:
    settings = ServeSettings(pair=str(run), **({"reference_at": share[0]} if share else {}))
    sft, reference = directories(settings, Console(quiet=True))
    assert sft.parent == reference.parent == run
    return sft.name, reference.name


def test_a_run_has_its_checkpoints(run: Path) -> None:
    found = read_sft_run(run)
    assert [(c.directory.name, c.share, c.samples, c.step, c.validation_loss) for c in found.checkpoints] == [
        tuple(described.values()) for described in CHECKPOINTS
    ]
    assert found.final == run / "final"
    assert [c.share for c in found.references] == [0.0, 0.25, 0.5]


def test_the_final_model_is_served_with_the_reference_that_is_asked_for(run: Path) -> None:
    assert served(run) == ("final", "share-0.50")
    assert served(run, 0.25) == ("final", "share-0.25")
    assert served(run, 0.0) == ("final", "base")


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_reference_that_is_not_there_is_said_with_those_that_are(share: float, run: Path) -> None:
    with pytest.raises(InvalidRequestError, match=rf"no reference at {share:g} .*: it has 0, 0.25, 0.5"):
        served(run, share)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"kind": "train"}, "is a run of `densepath train`: give a run of `densepath sft`"),
        ({"kind": "sft"}, "has a manifest.json that is not from `densepath sft`"),
        ({"recipe": 1}, "has a manifest.json that is not from `densepath sft`"),
        ({"kind": "sft", "checkpoints": [{"path": "base"}]}, "that is not from `densepath sft`"),
        ({"kind": "sft", "checkpoints": []}, "has lost its checkpoints: all"),
        ({"kind": "sft", "checkpoints": [{**CHECKPOINTS[0], "path": "gone"}]}, "lost its checkpoints: gone"),
    ],
)  # fmt: skip
def test_what_a_manifest_lacks_is_said(manifest: dict[str, Any], message: str, run: Path) -> None:
    write(run, **manifest)
    with pytest.raises(InvalidRequestError, match=message):
        read_sft_run(run)


def test_what_is_no_run_is_said(run: Path) -> None:
    (run / "manifest.json").write_text("{")
    with pytest.raises(InvalidRequestError, match="cannot be read as JSON"):
        read_sft_run(run)
    (run / "manifest.json").write_text("[]")
    with pytest.raises(InvalidRequestError, match="that is not from `densepath sft`"):
        read_sft_run(run)
    (run / "manifest.json").unlink()
    with pytest.raises(InvalidRequestError, match="did not finish: run `densepath sft` again with another"):
        read_sft_run(run)
    with pytest.raises(InvalidRequestError, match="is not a run of `densepath sft`: it has no"):
        read_sft_run(run.parent)
    with pytest.raises(InvalidRequestError, match="is not a directory: give a run"):
        read_sft_run(run / "nothing")

"""Experiment trackers that may be installed: TensorBoard, wandb, trackio. None is a dependency."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from densepath.errors import InvalidRequestError
from densepath.trainer.run_files import Row

PROJECT = "densepath"
#: A name of --log-to → the module that it needs.
TRACKERS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


class TensorBoard:
    """Event files in `RUN/tensorboard`. A resumed run hides the steps that it repeats."""

    def __init__(self, module: Any, run_dir: Path) -> None:
        self._module, self._directory = module, run_dir / "tensorboard"
        self._writer: Any = None

    def step(self, row: Row) -> None:
        """Add a scalar for each figure."""
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self._directory), purge_step=row["step"])
        for name, value in flat(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def waiting(self, away: bool) -> None:
        """Ignored: it is no figure of a step."""

    def close(self) -> None:
        """Write the remaining figures."""
        if self._writer is not None:
            self._writer.close()

    def __str__(self) -> str:
        return "tensorboard"


class TrackerRun:
    """A run of wandb or trackio, which share their calls; its name is that of the run's directory.

    Where it goes (a server, a folder, offline) is what that tracker's own settings say.
    """

    def __init__(self, module: Any, run_dir: Path) -> None:
        self._name = module.__name__
        self._run = module.init(project=PROJECT, name=run_dir.resolve().name)

    def step(self, row: Row) -> None:
        """Log each figure."""
        self._run.log(flat(row), step=row["step"])

    def waiting(self, away: bool) -> None:
        """Ignored: it is no figure of a step."""

    def close(self) -> None:
        """Send the remaining figures."""
        self._run.finish()

    def __str__(self) -> str:
        return str(self._name)


def open_tracker(name: str, run_dir: Path) -> TensorBoard | TrackerRun:
    """The tracker of that name. Raises InvalidRequestError where it is unknown, missing or cannot start."""
    if name not in TRACKERS:
        raise InvalidRequestError(f"--log-to has an unknown tracker: it takes {', '.join(TRACKERS)}")
    try:
        module = import_module(TRACKERS[name])
    except ImportError as error:
        raise InvalidRequestError(
            f"--log-to {name} needs the package {name}, which cannot be imported ({error}): install it, or "
            "leave it out"
        ) from error
    try:
        return TensorBoard(module, run_dir) if name == "tensorboard" else TrackerRun(module, run_dir)
    except Exception as error:  # each tracker has errors of its own
        raise InvalidRequestError(f"--log-to {name} cannot start: {error}") from error


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """The row's numbers, one name each: `held_out/greedy`, `seconds/rollout`; the step is not one of them."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": inner for name, inner in flat(value).items()}
        elif isinstance(value, int | float) and key != "step":
            found[key] = float(value)
    return found

"""Optional experiment trackers: TensorBoard, wandb, trackio. densepath requires none of them."""

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
        """Do nothing: this is not a figure of a step."""

    def close(self) -> None:
        """Write the remaining figures."""
        if self._writer is not None:
            self._writer.close()

    def __str__(self) -> str:
        return "tensorboard"


class TrackerRun:
    """A run of wandb or trackio, which have the same calls. Its name is that of the run's directory.

    The tracker's own settings decide where the figures go: to a server, a folder, or offline.
    """

    def __init__(self, module: Any, run_dir: Path) -> None:
        self._name = module.__name__
        self._run = module.init(project=PROJECT, name=run_dir.resolve().name)

    def step(self, row: Row) -> None:
        """Log each figure."""
        self._run.log(flat(row), step=row["step"])

    def waiting(self, away: bool) -> None:
        """Do nothing: this is not a figure of a step."""

    def close(self) -> None:
        """Send the remaining figures."""
        self._run.finish()

    def __str__(self) -> str:
        return str(self._name)


def open_tracker(name: str, run_dir: Path) -> TensorBoard | TrackerRun:
    """The tracker of that name. Raises InvalidRequestError if it is unknown, missing or cannot start."""
    if name not in TRACKERS:
        raise InvalidRequestError(
            f"--log-to names an unknown tracker: the known ones are {', '.join(TRACKERS)}"
        )
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
    """The row's numbers without the step, under names such as `held_out/greedy` and `seconds/rollout`."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": inner for name, inner in flat(value).items()}
        elif isinstance(value, int | float) and key != "step":
            found[key] = float(value)
    return found

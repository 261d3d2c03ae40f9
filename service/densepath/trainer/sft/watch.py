"""What happens between the updates of an SFT run: validation, early stopping, snapshots, the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from densepath.trainer.errors import NonFiniteStepError
from densepath.trainer.sft.snapshots import Snapshots

#: Called after a step with its number and a description of its figures.
Told = Callable[[int, str], None]


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is read without its types
    """Follows a run. `losses` has validation losses by step, nats per token; `log` is for the manifest."""

    def __init__(
        self,
        snapshots: Snapshots,
        samples_S: Sequence[int],
        *,
        validate: Callable[[], float] | None,
        validate_every: int,
        patience: int | None,
        told: Told,
    ) -> None:
        self.losses: dict[int, float] = {}
        self.log: list[dict[str, Any]] = []
        self.kept = len(samples_S) - 1
        self._snapshots, self._samples_S, self._told = snapshots, samples_S, told
        self._validate, self._every, self._patience = validate, validate_every, patience
        self._last, self._loss = self.kept, math.nan

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Validate the base model."""
        self._measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Keep the weights of the step, validate if it is due, and stop if the loss no longer improves."""
        step = state.global_step
        self._snapshots.take(step, model)
        if step % self._every == 0 or step == self._last:
            self._measure(step)
            if self._patience is not None:
                self._keep_best(step)
                since = sum(step > self.kept for step in self.losses)
                control.should_training_stop |= since >= self._patience
        control.should_log |= step == self._last or control.should_training_stop
        self._told(step, self._words())

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **_: Any) -> None:
        """Take a row of the log: the mean loss of the steps since the last row."""
        step = state.global_step
        if "loss" not in logs:
            return
        self._loss = logs["loss"]
        row = {"step": step, "samples": self._samples_S[step], "loss": self._loss}
        if step in self.losses:
            row["validation_loss"] = self.losses[step]
        self.log.append(row)

    def _measure(self, step: int) -> None:
        if self._validate is None:
            return
        loss = self._validate()
        if not math.isfinite(loss):
            raise NonFiniteStepError(
                f"the validation loss is not finite after step {step}: lower --learning-rate"
            )
        self.losses[step] = loss

    def _keep_best(self, step: int) -> None:
        # Of equal losses, the first step is taken. The base model does not count, whatever its loss.
        self.kept = min((s for s in self.losses if s), key=self.losses.__getitem__)
        self._snapshots.drop_before(self.kept, step)

    def _words(self) -> str:
        words = [] if math.isnan(self._loss) else [f"loss {self._loss:.3f}"]
        if self.losses:
            words.append(f"validation {self.losses[max(self.losses)]:.3f}")
        return ", ".join(words)

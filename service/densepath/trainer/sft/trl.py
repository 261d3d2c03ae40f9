"""TRL's trainer with densepath's settings, without its progress bars, prints, files and telemetry."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback

from densepath.trainer.errors import NonFiniteStepError
from densepath.trainer.sft.demonstrations import IGNORED
from densepath.trainer.sft.settings import SftSettings

with warnings.catch_warnings():
    # TRL generates nothing here, so the version of vLLM does not matter to it.
    warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    from trl import SFTConfig, SFTTrainer, pack_dataset

__all__ = ["Sft", "pack_dataset"]


class Sft(SFTTrainer):  # type: ignore[misc]  # TRL carries no types
    """TRL's trainer on rows that are already tokenised and ordered."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        rows: Any,
        folder: Path,
        settings: SftSettings,
        log_every: int,
    ) -> None:
        super().__init__(
            model=model,
            args=_config(folder, settings, log_every),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward-backward pass. Raises NonFiniteStepError, before the update, for a non-finite loss."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise NonFiniteStepError(
                f"the loss is not finite in step {self.state.global_step + 1}: lower --learning-rate, "
                "or look for values in the base model's weights that are not finite"
            )
        return loss

    def validation_loss(self, batches: Iterable[Any]) -> float:
        """Mean of -log p over all labelled tokens of `batches`, in nats per token.

        The trainer's own evaluation takes the mean of its batches' means, which depends on the batches.
        """
        total, count = 0.0, 0
        self.model.eval()
        for batch in batches:
            tokens = int((batch["labels"] != IGNORED).sum())
            loss, _, _ = self.prediction_step(self.model, batch, prediction_loss_only=True)
            total, count = total + float(loss) * tokens, count + tokens
        return total / count

    def _send_telemetry(self) -> None:
        pass  # nothing about a run is sent to anyone


def _config(folder: Path, settings: SftSettings, log_every: int) -> Any:
    cuda = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,  # the rows contain all epochs, in order
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},  # tokenised, labelled, cut and packed
        packing=settings.packing,  # so that the collator keeps the demonstrations of a pack apart
        per_device_train_batch_size=settings.micro_batch_size,
        per_device_eval_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=not cuda,
        gradient_checkpointing=cuda,  # on a GPU, memory is scarce; on a CPU, time is
        dataloader_pin_memory=cuda,
        logging_steps=log_every,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

"""Every setting of `densepath sft`, once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from densepath.config import CONFIG_FILE
from densepath.errors import InvalidRequestError

_ROWS = ".jsonl, .parquet or a `datasets` directory"


@dataclass(frozen=True)
class SftSettings:
    """What `densepath sft` is told. Raises InvalidRequestError for settings that contradict each other."""

    base: Annotated[Path, typer.Option(help="Directory of the model to fine-tune, with its tokenizer.")]
    demonstrations: Annotated[Path, typer.Option(help=f"What it learns from: {_ROWS}.")]
    run: Annotated[Path, typer.Option(help="Directory to make: the checkpoints and their manifest.")]
    checkpoint_at: Annotated[
        list[float],
        typer.Option(
            help="Also save a checkpoint at this share of the samples. May be repeated.", min=0.0, max=1.0
        ),
    ] = field(default_factory=lambda: [0.5])
    epochs: Annotated[float, typer.Option(help="Passes over the demonstrations.", min=0.0)] = 1.0
    max_steps: Annotated[int | None, typer.Option(help="Updates, instead of --epochs.", min=1)] = None
    batch_size: Annotated[
        int, typer.Option(help="Demonstrations in an update; with --packing, packs.", min=1)
    ] = 64
    accumulation: Annotated[
        int, typer.Option(help="Parts in which a batch is computed, for less memory; they divide it.", min=1)
    ] = 1
    learning_rate: Annotated[
        float, typer.Option(help="AdamW's; constant after the warm-up, so that no end needs to be known.")
    ] = 2e-5
    warmup_steps: Annotated[int, typer.Option(help="Updates in which it rises from 0.", min=0)] = 0
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens in a demonstration, or a pack; longer ones are left out, for one without its end "
            "teaches no end. Default: the model's context length, 2048 at most.",
            min=2,
        ),
    ] = None
    packing: Annotated[
        bool, typer.Option("--packing", help="Several demonstrations in one row; none attends to another.")
    ] = False
    lora_rank: Annotated[
        int | None, typer.Option(help="Train LoRA adapters of this rank; checkpoints are merged.", min=1)
    ] = None
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; what is trained stays fp32.")] = (
        False
    )
    validation: Annotated[
        Path | None, typer.Option(help=f"Demonstrations that are not learned: {_ROWS}.")
    ] = None
    validation_share: Annotated[
        float | None,
        typer.Option(help="Instead: hold out this share of the demonstrations.", min=0.01, max=0.9),
    ] = None
    validate_every: Annotated[int, typer.Option(help="Updates between two validations.", min=1)] = 50
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many validations without a new minimum, and keep the minimum.", min=1
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Of the order, the split and the adapters.", min=0)] = 0
    config: CONFIG_FILE = None

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulation:
            raise InvalidRequestError(
                f"--accumulation {self.accumulation} does not divide --batch-size {self.batch_size}"
            )
        if self.validation is not None and self.validation_share is not None:
            raise InvalidRequestError("give --validation or --validation-share, not both")
        if self.patience is not None and not self.validates:
            raise InvalidRequestError(
                "--patience needs a validation loss: give --validation FILE or --validation-share 0.1"
            )

    @property
    def validates(self) -> bool:
        """Whether a validation loss is measured."""
        return self.validation is not None or self.validation_share is not None

    @property
    def micro_batch_size(self) -> int:
        """Rows in one forward-backward."""
        return self.batch_size // self.accumulation

    @property
    def shares(self) -> list[float]:
        """The shares strictly between the base model's, 0, and the final checkpoint's, 1; ascending."""
        return sorted({share for share in self.checkpoint_at if 0 < share < 1})

    def described(self) -> dict[str, Any]:
        """As JSON, for the manifest: of a path its last component, which names it on any machine."""
        settings = {name: value for name, value in asdict(self).items() if name not in {"run", "config"}}
        return {name: v.name if isinstance(v, Path) else v for name, v in settings.items()}

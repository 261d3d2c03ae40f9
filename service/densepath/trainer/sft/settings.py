"""The settings of `densepath sft`. Each is declared once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from densepath.config import CONFIG_FILE
from densepath.errors import InvalidRequestError

_ROWS = "a .jsonl file, a .parquet file or a `datasets` directory"


@dataclass(frozen=True)
class SftSettings:
    """The settings of `densepath sft`. Raises InvalidRequestError where they contradict each other."""

    base: Annotated[Path, typer.Option(help="Directory of the model to fine-tune, with its tokenizer.")]
    demonstrations: Annotated[Path, typer.Option(help=f"Demonstrations to learn from: {_ROWS}.")]
    run: Annotated[Path, typer.Option(help="Directory to create, for the checkpoints and their manifest.")]
    checkpoint_at: Annotated[
        list[float],
        typer.Option(
            help="Also save a checkpoint after this share of the samples. May be given repeatedly.",
            min=0.0,
            max=1.0,
        ),
    ] = field(default_factory=lambda: [0.5])
    epochs: Annotated[float, typer.Option(help="Passes over the demonstrations.", min=0.0)] = 1.0
    max_steps: Annotated[int | None, typer.Option(help="Number of updates, instead of --epochs.", min=1)] = (
        None
    )
    batch_size: Annotated[
        int, typer.Option(help="Demonstrations per update. With --packing: packs per update.", min=1)
    ] = 64
    accumulation: Annotated[
        int,
        typer.Option(
            help="Compute each batch in this many parts, which needs less memory. It must divide "
            "--batch-size.",
            min=1,
        ),
    ] = 1
    learning_rate: Annotated[
        float,
        typer.Option(
            help="Learning rate of AdamW. It is constant after the warm-up, so the length of the run need "
            "not be known."
        ),
    ] = 2e-5
    warmup_steps: Annotated[
        int, typer.Option(help="Updates during which the learning rate rises from 0.", min=0)
    ] = 0
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most tokens in a demonstration, or in a pack. Longer demonstrations are left out, "
            "because one "
            "that is cut does not teach the model to end. Default: the model's context length, at most 2048.",
            min=2,
        ),
    ] = None
    packing: Annotated[
        bool,
        typer.Option("--packing", help="Put several demonstrations into one row. None attends to another."),
    ] = False
    lora_rank: Annotated[
        int | None,
        typer.Option(help="Train LoRA adapters of this rank. They are merged into the checkpoints.", min=1),
    ] = None
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute in bfloat16. The trained parameters stay in fp32.")
    ] = False
    validation: Annotated[
        Path | None,
        typer.Option(help=f"Demonstrations for the validation loss, which are not learned: {_ROWS}."),
    ] = None
    validation_share: Annotated[
        float | None,
        typer.Option(
            help="Instead of --validation: hold out this share of the demonstrations.", min=0.01, max=0.9
        ),
    ] = None
    validate_every: Annotated[int, typer.Option(help="Updates between two validations.", min=1)] = 50
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many validations without a new lowest loss, and keep the model with the "
            "lowest.",
            min=1,
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the order, the split and the adapters.", min=0)] = 0
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
        """Rows in one forward-backward pass."""
        return self.batch_size // self.accumulation

    @property
    def shares(self) -> list[float]:
        """The shares strictly between 0 (the base model) and 1 (the final checkpoint), in ascending order."""
        return sorted({share for share in self.checkpoint_at if 0 < share < 1})

    def described(self) -> dict[str, Any]:
        """The settings as JSON, for the manifest. A path is reduced to its last component."""
        settings = {name: value for name, value in asdict(self).items() if name not in {"run", "config"}}
        return {name: v.name if isinstance(v, Path) else v for name, v in settings.items()}

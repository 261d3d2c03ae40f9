"""The settings of `densepath train`. Each is declared once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from densepath.config import CONFIG_FILE
from densepath.rewards.advantages import Baseline
from densepath.rewards.kl import KL_COEFFICIENT
from densepath.trainer.rollouts.engines import RolloutEngine


class Precision(StrEnum):
    """The dtype of matrix products. Parameters and log-probabilities are fp32 in both cases."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


#: What may change when a run is resumed: none of it changes a figure of a step.
_FREE = frozenset(
    {"run", "url", "api_key", "steps", "wait_seconds", "metrics_port", "log_to", "keep", "config"}
)


@dataclass(frozen=True)
class TrainSettings:
    """The settings of `densepath train`. docs/LOG.md has the runs that the defaults come from."""

    sft: Annotated[
        Path,
        typer.Option(
            help="Directory of the SFT checkpoint, or of a LoRA adapter. The policy starts from it.",
            show_default=False,
        ),
    ]
    prompts: Annotated[
        Path, typer.Option(help="Prompts: a .jsonl file, a .parquet file or a `datasets` directory.")
    ]
    run: Annotated[
        Path, typer.Option(help="Directory of the run. The same command resumes a run that was stopped.")
    ]
    url: Annotated[str, typer.Option(help="Address of the reward service.")] = "http://127.0.0.1:8000"
    api_key: Annotated[str | None, typer.Option(help="API key of that service.", show_default=False)] = field(
        default=None, repr=False
    )
    steps: Annotated[int, typer.Option(help="Number of updates of the policy.", min=1)] = 40
    prompts_per_step: Annotated[int, typer.Option(help="Prompts per step.", min=1)] = 64
    rollouts: Annotated[int, typer.Option(help="Responses per prompt.", min=1)] = 1
    max_new_tokens: Annotated[
        int,
        typer.Option(
            help="Most tokens in a response. A response that reaches the limit is not learned from.", min=1
        ),
    ] = 256
    gamma: Annotated[
        float,
        typer.Option(
            help="Discount of the returns. 1 is the paper's return-to-go. With 0, each token counts its "
            "own reward only.",
            min=0.0,
            max=1.0,
        ),
    ] = 1.0
    kl: Annotated[
        float, typer.Option(help="Coefficient b of the KL divergence from the SFT model.", min=0.0)
    ] = KL_COEFFICIENT
    baseline: Annotated[
        Baseline,
        typer.Option(
            help="Baseline of the returns: the mean at the same position, over the batch or over the other "
            "responses "
            "to the prompt."
        ),
    ] = Baseline.BATCH
    learning_rate: Annotated[
        float,
        typer.Option(
            help="Learning rate of AdamW. Try several values; use one that is 3 to 10 times below the "
            "first harmful one.",
            min=0.0,
        ),
    ] = 1e-6
    clip_gradient: Annotated[float, typer.Option(help="Clip the gradient to this norm.", min=0.0)] = 1.0
    micro_batch: Annotated[
        int | None, typer.Option(help="Responses in one forward-backward pass. Default: all.", min=1)
    ] = None
    precision: Annotated[Precision, typer.Option(help="Dtype of matrix products.")] = Precision.FLOAT32
    seed: Annotated[int, typer.Option(help="Seed of the order of the prompts and of sampling.", min=0)] = 0
    rollout_engine: Annotated[
        RolloutEngine,
        typer.Option(help="Engine that samples responses. transformers is slow and serves as a check."),
    ] = RolloutEngine.VLLM
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(help="Share of the GPU's memory for sampling. Default: 0.25.", min=0.01, max=1.0),
    ] = None
    reward_scale: Annotated[
        float, typer.Option(help="Reward shaping: multiply each reward by this factor.")
    ] = 1.0
    reward_clip: Annotated[
        float | None,
        typer.Option(help="Reward shaping: clip each reward to this many nats on both sides.", min=0.0),
    ] = None
    reward_centre: Annotated[
        bool, typer.Option("--reward-centre", help="Reward shaping: subtract the mean reward of the batch.")
    ] = False
    length_normalise: Annotated[
        bool,
        typer.Option(
            "--length-normalise", help="Reward shaping: divide each reward by the length of its response."
        ),
    ] = False
    sft_potential: Annotated[
        float | None,
        typer.Option(
            help="Reward shaping: coefficient of a potential, which is the sum of log p_sft so far."
        ),
    ] = None
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 10
    keep: Annotated[int, typer.Option(help="Number of checkpoints to keep.", min=1)] = 3
    held_out: Annotated[
        Path | None,
        typer.Option(help="Prompts with answers, for a check that does not depend on the reward."),
    ] = None
    checker: Annotated[
        str | None,
        typer.Option(
            help="What judges a response: module:function or file.py:function. Default: exact match with "
            "the answer."
        ),
    ] = None
    check_every: Annotated[int, typer.Option(help="Steps between held-out checks.", min=1)] = 10
    kl_budget: Annotated[
        float | None,
        typer.Option(
            help="Stop when the KL divergence from the SFT model is over this many nats per response.",
            min=0.0,
        ),
    ] = None
    wait_seconds: Annotated[
        float, typer.Option(help="Seconds to wait for a service that does not answer.", min=0.0)
    ] = 1800.0
    metrics_port: Annotated[
        int | None,
        typer.Option(
            help="Port on which Prometheus can read the metrics of the run. 0 is off.", min=0, max=65535
        ),
    ] = None
    log_to: Annotated[
        str,
        typer.Option(help="Also log to these trackers, separated by commas: tensorboard, wandb, trackio."),
    ] = ""
    config: CONFIG_FILE = None

    def trackers(self) -> list[str]:
        """The names in `log_to`."""
        return [name.strip() for name in self.log_to.split(",") if name.strip()]

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the figures of a step, as JSON. A run resumes only with the same "
        "values."""
        return {
            name: str(value) if isinstance(value, (Path, StrEnum)) else value
            for name, value in asdict(self).items()
            if name not in _FREE
        }

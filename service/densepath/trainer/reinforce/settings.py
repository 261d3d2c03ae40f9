"""Every setting of `densepath train`, once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from densepath.config import CONFIG_FILE
from densepath.rewards.advantages import Baseline
from densepath.rewards.kl import KL_COEFFICIENT
from densepath.trainer.rollouts.engines import RolloutEngine


class Precision(StrEnum):
    """What matrix products run in; parameters and log-probabilities are fp32 in either."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


#: What may change when a run goes on: none of it decides a figure of a step that is there.
_FREE = frozenset(
    {"run", "url", "api_key", "steps", "wait_seconds", "metrics_port", "log_to", "keep", "config"}
)


@dataclass(frozen=True)
class TrainSettings:
    """What `densepath train` is told. The defaults that decide a figure are those of docs/LOG.md."""

    sft: Annotated[
        Path, typer.Option(help="The SFT checkpoint: the policy starts from it.", show_default=False)
    ]
    prompts: Annotated[Path, typer.Option(help="Prompts: .jsonl, .parquet or a `datasets` directory.")]
    run: Annotated[Path, typer.Option(help="The run's directory; the same command goes on with it.")]
    url: Annotated[str, typer.Option(help="The reward service.")] = "http://127.0.0.1:8000"
    api_key: Annotated[str | None, typer.Option(help="Key of that service.", show_default=False)] = None
    steps: Annotated[int, typer.Option(help="Updates of the policy.", min=1)] = 40
    prompts_per_step: Annotated[int, typer.Option(help="Prompts a step.", min=1)] = 64
    rollouts: Annotated[int, typer.Option(help="Responses a prompt.", min=1)] = 1
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of a response at most; a cut one is not learned.", min=1)
    ] = 256
    gamma: Annotated[
        float,
        typer.Option(help="1: the paper's return-to-go; 0: each token its own reward.", min=0.0, max=1.0),
    ] = 1.0
    kl: Annotated[float, typer.Option(help="Coefficient b of the KL to SFT.", min=0.0)] = KL_COEFFICIENT
    baseline: Annotated[
        Baseline,
        typer.Option(help="Mean return at the position: of the batch, or of the prompt's other rollouts."),
    ] = Baseline.BATCH
    learning_rate: Annotated[
        float, typer.Option(help="AdamW's; sweep it, 3 to 10 times below what hurts.", min=0.0)
    ] = 1e-6
    clip_gradient: Annotated[float, typer.Option(help="Norm that a gradient is cut to.", min=0.0)] = 1.0
    micro_batch: Annotated[
        int | None, typer.Option(help="Responses in one forward-backward; default: all.", min=1)
    ] = None
    precision: Annotated[Precision, typer.Option(help="Of matrix products.")] = Precision.FLOAT32
    seed: Annotated[int, typer.Option(help="Decides prompts' order and samples.", min=0)] = 0
    rollout_engine: Annotated[
        RolloutEngine, typer.Option(help="What samples; transformers is the slow oracle.")
    ] = RolloutEngine.VLLM
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of the GPU for rollouts; default 0.25.", min=0.01, max=1.0)
    ] = None
    reward_scale: Annotated[float, typer.Option(help="Shaping: factor of each reward.")] = 1.0
    reward_clip: Annotated[
        float | None, typer.Option(help="Shaping: bound of each reward, nats.", min=0.0)
    ] = None
    reward_centre: Annotated[
        bool, typer.Option("--reward-centre", help="Shaping: less the batch's mean reward.")
    ] = False
    length_normalise: Annotated[
        bool, typer.Option("--length-normalise", help="Shaping: rewards over length.")
    ] = False
    sft_potential: Annotated[
        float | None, typer.Option(help="Shaping: coefficient of a potential, the log p_sft so far.")
    ] = None
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 10
    keep: Annotated[int, typer.Option(help="Checkpoints kept.", min=1)] = 3
    held_out: Annotated[
        Path | None, typer.Option(help="Prompts with answers, for a check that rewards can't fool.")
    ] = None
    checker: Annotated[
        str | None, typer.Option(help="module:function or file.py:function; default: exact match.")
    ] = None
    check_every: Annotated[int, typer.Option(help="Steps between held-out checks.", min=1)] = 10
    kl_budget: Annotated[
        float | None, typer.Option(help="Stop over so many nats of KL a response.", min=0.0)
    ] = None
    wait_seconds: Annotated[
        float, typer.Option(help="How long a service that is away is waited for.", min=0.0)
    ] = 1800.0
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus.", min=0, max=65535)] = None
    log_to: Annotated[
        str, typer.Option(help="Also log to: tensorboard, wandb, trackio (commas between).")
    ] = ""
    config: CONFIG_FILE = None

    def trackers(self) -> list[str]:
        """The names in `log_to`."""
        return [name.strip() for name in self.log_to.split(",") if name.strip()]

    def deciding(self) -> dict[str, Any]:
        """What decides the figures of a step, as JSON: a run goes on only with the same."""
        return {
            name: str(value) if isinstance(value, (Path, StrEnum)) else value
            for name, value in asdict(self).items()
            if name not in _FREE
        }

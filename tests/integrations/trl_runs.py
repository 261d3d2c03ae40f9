"""Short runs of TRL's trainers that keep what passes through them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from densepath.integrations.trl import DensePathGRPOTrainer, DensePathRLOOTrainer

TEXTS = ["two", "two and three", "What is the capital of France?", "a reward for every token"]
PROMPTS = Dataset.from_list([{"prompt": f"{TEXTS[n % 4]} {n}"} for n in range(16)])
CHATS = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": f"{TEXTS[n % 4]} {n}"}]} for n in range(16)]
)


class Watched:
    """Goes before a trainer: keeps every generation as it leaves, and every batch as it reaches the loss."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.generations: list[dict[str, Any]] = []
        self.batches: list[dict[str, Any]] = []
        self.rewards: list[torch.Tensor] = []
        super().__init__(*args, **options)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        self.generations.append(output)
        return output

    def _calculate_rewards(self, *args: Any) -> Any:
        rewards = super()._calculate_rewards(*args)  # type: ignore[misc]
        self.rewards.append(rewards)
        return rewards

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self.batches.append(inputs)
        return super()._compute_loss(model, inputs)  # type: ignore[misc]


class WatchedGRPO(Watched, GRPOTrainer):
    pass


class WatchedRLOO(Watched, RLOOTrainer):
    pass


class WatchedDenseGRPO(Watched, DensePathGRPOTrainer):
    pass


class WatchedDenseRLOO(Watched, DensePathRLOOTrainer):
    pass


def config(kind: type[Any], folder: Path, **settings: Any) -> Any:
    """A config of three steps on the CPU; two prompts with four completions each in a batch of eight."""
    if kind is GRPOConfig:
        settings = {"scale_rewards": "none"} | settings
    defaults = {
        "beta": 0.5,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 10,
        "max_steps": 3,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(output_dir=str(folder), **defaults | settings)


def grpo_config(folder: Path, **settings: Any) -> Any:
    return config(GRPOConfig, folder, **settings)


def rloo_config(folder: Path, **settings: Any) -> Any:
    return config(RLOOConfig, folder, **settings)


def rows(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Each row's own ids, without padding; None for the ids of a row that is masked whole."""
    found = []
    for n in range(len(batch["prompt_ids"])):
        length = int(batch["completion_mask"][n].sum())
        found.append(
            {
                "prompt_token_ids": batch["prompt_ids"][n][batch["prompt_mask"][n].bool()].tolist(),
                "response_token_ids": batch["completion_ids"][n, :length].tolist(),
            }
        )
    return found

"""densepath's trainer and TRL's on the same on-policy work, each as a contender of `_turns`.

Each takes one optimizer step a batch from responses that it samples at temperature 1, with AdamW, gradients
clipped to norm 1, fp32, the whole batch in one forward-backward, and the rewards of one service.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from _turns import Rewarded, Turn

LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Work:
    """What every contender does in each of its steps."""

    sft: Path
    prompts: Path  # JSONL, as many as all steps take
    url: str
    prompts_a_step: int
    rollouts: int
    response_tokens: int
    steps: int  # more than it takes: the end of a run would fall into another's turn


def densepath_train(turn: Turn, work: Work, rollout_engine: str) -> None:
    """`densepath train` itself, with its defaults, stopped between two steps."""
    from rich.console import Console

    from densepath.trainer.reinforce.dense_path import DensePath
    from densepath.trainer.reinforce.run import train
    from densepath.trainer.reinforce.settings import TrainSettings
    from densepath.trainer.rollouts.engines import RolloutEngine

    whole_run = DensePath.steps

    def in_turns(run: DensePath, rows: list[dict[str, Any]]) -> Iterator[Any]:
        steps = whole_run(run, rows)
        while True:
            turn.wait()
            row, responses = next(steps)
            phases = {name: seconds for name, seconds in row["seconds"].items() if name != "total"}
            turn.done(phases, [_rewarded(r.prompt_ids, r.response_ids, r.reward_T) for r in responses])
            yield row, responses

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(DensePath, "steps", in_turns):
        settings = TrainSettings(
            sft=work.sft,
            prompts=work.prompts,
            run=Path(folder),
            url=work.url,
            steps=work.steps,
            prompts_per_step=work.prompts_a_step,
            rollouts=work.rollouts,
            max_new_tokens=work.response_tokens,
            learning_rate=LEARNING_RATE,
            save_every=work.steps,
            rollout_engine=RolloutEngine(rollout_engine),
        )
        train(settings, Console(quiet=True))


def _rewarded(prompt_ids: Sequence[int], response_ids: Sequence[int], reward_T: Any) -> Rewarded:
    """Raises RuntimeError where a response has no rewards: densepath does not score one that was cut."""
    if reward_T is None:
        raise RuntimeError("a response has no rewards, so the trainers did not do the same work")
    return Rewarded(tuple(prompt_ids), tuple(response_ids), reward_T)


def trl_train(turn: Turn, work: Work, algorithm: str, kl: float) -> None:
    """TRL's GRPOTrainer or RLOOTrainer, with `kl` as beta; its rewards are the sums that the service answers.

    Its other defaults stand, but for those of another precision or with more work than densepath's step: no
    bf16, no gradient checkpointing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
        import trl
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from densepath.trainer.prompts import read_rows

        rewards = _Rewards(work)
        with tempfile.TemporaryDirectory() as folder:
            trainer = getattr(trl, f"{algorithm}Trainer")(
                model=AutoModelForCausalLM.from_pretrained(work.sft, dtype="float32"),
                reward_funcs=rewards.sums,
                args=getattr(trl, f"{algorithm}Config")(folder, beta=kl, **_config(work)),
                train_dataset=Dataset.from_list([row for _, row in read_rows(work.prompts)]),
                processing_class=AutoTokenizer.from_pretrained(work.sft),
            )
            trainer.add_callback(_in_turns(turn, rewards))
            trainer.train()


def _config(work: Work) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": work.prompts_a_step * work.rollouts,
        "num_generations": work.rollouts,
        "max_completion_length": work.response_tokens,
        "max_steps": work.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "shuffle_dataset": False,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class _Rewards:
    """The reward function of TRL's trainers, and what it was asked for in this step."""

    def __init__(self, work: Work) -> None:
        from transformers import AutoTokenizer

        from densepath.client import Client

        self._client = Client(work.url)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(work.sft)
        self.responses: list[Rewarded] = []

    def sums(self, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        """Each response's sum of rewards, nats, from one call of the service."""
        prompt_ids_N = self._tokenizer(text=prompts)["input_ids"]
        asked = list(zip(prompt_ids_N, completion_ids, strict=True))
        scores = self._client.score(
            {"prompt_token_ids": prompt_ids, "response_token_ids": ids} for prompt_ids, ids in asked
        )
        self.responses = [
            _rewarded(prompt_ids, ids, score.reward_T)
            for (prompt_ids, ids), score in zip(asked, scores, strict=True)
        ]
        return [score.sum for score in scores]


def _in_turns(turn: Turn, rewards: _Rewards) -> Any:
    """A callback that stops the trainer between two steps, and reads the times that TRL's profiler takes."""
    from transformers import TrainerCallback
    from trl.extras.profiling import ProfilingContext

    names = {"transformers.generate": "rollout", "_calculate_rewards": "rewards"}
    phases: dict[str, float] = {}

    def noted(context: Any, seconds: float) -> None:
        name = names.get(context.name.partition(".")[2])
        if name:
            phases[name] = seconds

    class InTurns(TrainerCallback):  # type: ignore[misc]  # transformers carries no types
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            phases.clear()
            turn.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turn.done(dict(phases), rewards.responses)

    ProfilingContext._log_metrics = noted  # TRL tells its profile to trackers alone
    return InTurns()

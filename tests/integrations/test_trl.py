"""TRL's own trainers, from the installed release, with per-token rewards of a real service."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from checkpoints import make_tokenizer
from densepath import Client
from densepath.client import gate
from densepath.errors import InvalidRequestError, UnavailableError
from densepath.integrations.alignment import AlignmentError
from densepath.integrations.trl import DenseReward
from integrations.trl_runs import (
    CHATS,
    PROMPTS,
    WatchedDenseGRPO,
    WatchedDenseRLOO,
    WatchedGRPO,
    WatchedRLOO,
    grpo_config,
    rloo_config,
    rows,
)
from live import start, wait_ready

pytestmark = pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning")

TOLERANCE = 1e-5
KINDS = {"grpo": (WatchedDenseGRPO, grpo_config), "rloo": (WatchedDenseRLOO, rloo_config)}


def rewards_of(url: str, items: list[dict[str, Any]]) -> list[np.ndarray]:
    with Client(url) as client:
        return [np.asarray(score.reward_T, np.float64) for score in client.score(items)]


def to_go(reward_T: np.ndarray, gamma: float) -> np.ndarray:
    return np.array(
        [sum(gamma ** (u - t) * reward_T[u] for u in range(t, len(reward_T))) for t in range(len(reward_T))]
    )


def check_returns(batch: dict[str, Any], url: str, gamma: float) -> list[float]:
    """Every advantage of a batch is the return of its own token, and 0 where there is none.

    Returns the largest difference of each row with more than one token.
    """
    advantage_B_T, differences = batch["advantages"].numpy(), []
    assert advantage_B_T.shape == batch["completion_ids"].shape
    for row, item in enumerate(rows(batch)):
        length = len(item["response_token_ids"])
        assert not advantage_B_T[row, length:].any()
        if length:
            (reward_T,) = rewards_of(url, [item])
            difference = float(abs(advantage_B_T[row, :length] - to_go(reward_T, gamma)).max())
            assert difference <= TOLERANCE
            differences += [difference] * (length > 1)
    return differences


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("grpo", {}),
        ("grpo", {"num_iterations": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2}),
        ("grpo", {"mask_truncated_completions": True, "gradient_accumulation_steps": 2}),
        ("rloo", {"gradient_accumulation_steps": 2}),
        ("rloo", {"num_iterations": 2, "steps_per_generation": 2, "mask_truncated_completions": True}),
    ],
)
def test_the_loss_gets_the_return_of_each_token(
    kind: str,
    settings: dict[str, Any],
    gamma: float,
    tiny_pair: tuple[Path, Path],
    tiny_service: str,
    tmp_path: Path,
    say_difference: Callable[[str, float], None],
) -> None:
    trainer_class, config = KINDS[kind]
    args = config(tmp_path, **settings, **({"beta": 0.0} if kind == "rloo" else {}))
    options = {"gamma": gamma, "baseline": "none", "train_dataset": CHATS}
    if kind == "rloo":
        with pytest.warns(UserWarning, match="beta=0: with less than 0.2"):
            trainer = trainer_class(str(tiny_pair[0]), tiny_service, args=args, **options)
    else:
        trainer = trainer_class(str(tiny_pair[0]), tiny_service, args=args, **options)
    trainer.train()
    assert len(trainer.batches) == 3 * args.gradient_accumulation_steps
    differences = [each for batch in trainer.batches for each in check_returns(batch, tiny_service, gamma)]
    assert len(differences) > 8
    say_difference(f"TRL, {kind}: advantages in the loss, gamma {gamma:g}", max(differences))
    truncated = any((generation["completion_mask"].sum(1) == 0).any() for generation in trainer.generations)
    assert truncated == ("mask_truncated_completions" in settings)
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == len(trainer.rewards)
    for entry, sums in zip(logged, trainer.rewards, strict=True):
        assert entry["rewards/dense_reward/mean"] == entry["reward"] == pytest.approx(float(sums.mean()))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_baseline_is_of_the_prompt_s_other_completions(
    kind: str, tiny_pair: tuple[Path, Path], tiny_service: str, tmp_path: Path
) -> None:
    trainer_class, config = KINDS[kind]
    args = config(tmp_path, max_steps=1)
    trainer = trainer_class(str(tiny_pair[0]), tiny_service, args=args, train_dataset=PROMPTS)
    trainer.train()
    (generation,) = trainer.generations
    items = rows(generation)
    return_N = [to_go(reward_T, 1.0) for reward_T in rewards_of(tiny_service, items)]
    for row, item in enumerate(items):
        group = [
            n
            for n in range(len(items))
            if n != row and items[n]["prompt_token_ids"] == item["prompt_token_ids"]
        ]
        assert len(group) == 3
        for t, value in enumerate(return_N[row]):
            others = [return_N[n][t] for n in group if t < len(return_N[n])]
            expected = value - (np.mean(others) if others else 0.0)
            assert float(generation["advantages"][row, t]) == pytest.approx(expected, abs=TOLERANCE)


def logps(model: Any, item: dict[str, Any]) -> torch.Tensor:
    """log p of each response token, by a plain forward pass of its sequence alone."""
    prompt, response = item["prompt_token_ids"], item["response_token_ids"]
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_gradient_weighs_each_token_by_its_own_advantage(
    kind: str, tiny_pair: tuple[Path, Path], tiny_service: str, tmp_path: Path
) -> None:
    trainer_class, config = KINDS[kind]
    trainer = trainer_class(
        str(tiny_pair[0]), tiny_service, args=config(tmp_path, max_steps=1), train_dataset=PROMPTS
    )
    trainer.train()
    (batch,) = trainer.batches
    items = rows(batch)
    tokens = sum(len(item["response_token_ids"]) for item in items)

    def gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
        return torch.cat(
            [part.flatten() for part in torch.autograd.grad(loss, [*model.parameters()], allow_unused=False)]
        )

    def by_hand(advantage_B: list[torch.Tensor]) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(tiny_pair[0]).train()
        loss = torch.zeros(())
        for item, advantage_T in zip(items, advantage_B, strict=True):
            loss = loss - (advantage_T * logps(model, item)).sum()
        return gradient(loss / (tokens if kind == "grpo" else len(items)), model)

    trainer.model.load_state_dict(AutoModelForCausalLM.from_pretrained(tiny_pair[0]).state_dict())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    found = gradient(trainer.compute_loss(trainer.model, batch), trainer.model)
    advantage_B = [batch["advantages"][n, : len(item["response_token_ids"])] for n, item in enumerate(items)]
    expected = by_hand(advantage_B)
    scale = float(expected.norm())
    assert float((found - expected).norm()) <= 1e-4 * scale
    summed = by_hand([advantage_T[:1].expand(len(advantage_T)) for advantage_T in advantage_B])
    assert float((summed - expected).norm()) > 0.1 * scale  # one advantage a completion is another gradient


def test_rloo_takes_its_kl_term_off_each_token_s_reward(
    tiny_pair: tuple[Path, Path], tiny_service: str, tmp_path: Path
) -> None:
    class Kept(WatchedDenseRLOO):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            with torch.no_grad():
                output["kl_B"] = [
                    (logps(self.model, item) - logps(self.ref_model, item)).numpy() for item in rows(output)
                ]
            return output

    args = rloo_config(tmp_path, learning_rate=1e-2)
    trainer = Kept(str(tiny_pair[0]), tiny_service, args=args, baseline="none", train_dataset=PROMPTS)
    trainer.train()
    assert abs(np.concatenate(trainer.generations[-1]["kl_B"])).max() > 0.1  # the policy has moved
    for generation in trainer.generations:
        items = rows(generation)
        for row, reward_T in enumerate(rewards_of(tiny_service, items)):
            expected_T = to_go(reward_T - 0.5 * generation["kl_B"][row], 1.0)
            found_T = generation["advantages"][row, : len(reward_T)].numpy()
            np.testing.assert_allclose(found_T, expected_T, atol=1e-4)


def test_tokens_that_a_tool_put_in_get_no_reward(
    tiny_pair: tuple[Path, Path], tiny_service: str, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[0])
    sampled = [[10 + n, 30, 31, 40 + n, 50] for n in range(8)]

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": tokenizer(text=prompts)["input_ids"],
            "completion_ids": sampled,
            "logprobs": None,
            "env_mask": [[1, 0, 0, 1, 1]] * 8,
        }

    with pytest.warns(UserWarning, match="rollout_func.*experimental"):
        trainer = WatchedDenseGRPO(
            str(tiny_pair[0]),
            tiny_service,
            args=grpo_config(tmp_path, max_steps=1),
            baseline="none",
            train_dataset=PROMPTS,
            rollout_func=rollout,
        )
    trainer.train()
    (generation,) = trainer.generations
    for row, item in enumerate(rows(generation)):
        (reward_T,) = rewards_of(tiny_service, [item])
        expected_T = np.zeros(5)
        expected_T[[0, 3, 4]] = to_go(reward_T[[0, 3, 4]], 1.0)
        np.testing.assert_allclose(generation["advantages"][row].numpy(), expected_T, atol=TOLERANCE)


@pytest.mark.parametrize("dataset", [PROMPTS, CHATS], ids=["text", "chat"])
@pytest.mark.parametrize(
    ("trainer_class", "config"), [(WatchedGRPO, grpo_config), (WatchedRLOO, rloo_config)]
)
def test_the_reward_function_gives_stock_trainers_the_sums(
    trainer_class: type[Any],
    config: Any,
    dataset: Any,
    tiny_pair: tuple[Path, Path],
    tiny_service: str,
    tmp_path: Path,
    say_difference: Callable[[str, float], None],
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[0])
    trainer = trainer_class(
        str(tiny_pair[0]),
        reward_funcs=DenseReward(tiny_service, tokenizer),
        args=config(tmp_path),
        train_dataset=dataset,
    )
    trainer.train()
    differences = []
    for generation, sums in zip(trainer.generations, trainer.rewards, strict=True):
        assert generation["advantages"].shape == (8,)
        expected = [reward_T.sum() for reward_T in rewards_of(tiny_service, rows(generation))]
        differences.append(float(abs(sums[:, 0].numpy() - expected).max()))
    assert max(differences) <= TOLERANCE
    kind = trainer_class.__name__.removeprefix("Watched")
    say_difference(f"TRL, {kind}: sums of the reward function", max(differences))
    assert any("rewards/dense_reward/mean" in entry for entry in trainer.state.log_history)


async def test_the_reward_function_refuses_what_it_cannot_place(
    tiny_pair: tuple[Path, Path], tiny_service: str
) -> None:
    reward = DenseReward(tiny_service, AutoTokenizer.from_pretrained(tiny_pair[0]))
    turns = [[{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]]
    with pytest.raises(InvalidRequestError, match="use DensePathGRPOTrainer"):
        await reward([[{"role": "user", "content": "a"}]], turns, [[5]])
    with pytest.raises(InvalidRequestError, match="it has images"):
        await reward(["a"], ["b"], [[5]], images=[[object()]])
    with pytest.raises(InvalidRequestError, match="must be a tokenizer"):
        DenseReward("http://127.0.0.1:9", None)  # type: ignore[arg-type]


def test_another_tokenizer_is_refused_before_anything_is_sampled(
    tiny_pair: tuple[Path, Path], tiny_service: str, tmp_path: Path
) -> None:
    other = make_tokenizer(290)
    with pytest.raises(AlignmentError, match="load it from the directory of the served SFT checkpoint"):
        DenseReward(tiny_service, other)
    with pytest.raises(AlignmentError, match="load it from the directory of the served SFT checkpoint"):
        WatchedDenseGRPO(
            str(tiny_pair[0]),
            tiny_service,
            args=grpo_config(tmp_path),
            train_dataset=PROMPTS,
            processing_class=copy.deepcopy(other),
        )


@pytest.mark.parametrize("dense", [True, False], ids=["trainer", "reward function"])
def test_a_service_that_dies_stops_the_run(
    dense: bool, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_JITTER_SECONDS", 0.0)
    sft, reference = tiny_pair
    log = tmp_path / "log"
    options = ("--sft", sft, "--reference", reference, "--engine", "transformers")
    process, url = start(*options, log=log, env={"OMP_NUM_THREADS": "1"})

    class Killer(TrainerCallback):
        def on_step_end(self, *args: Any, **options: Any) -> None:
            process.kill()
            process.wait()

    try:
        wait_ready(process, url, log)
        args, callbacks = grpo_config(tmp_path), [Killer()]
        if dense:
            trainer = WatchedDenseGRPO(str(sft), url, args=args, train_dataset=PROMPTS, callbacks=callbacks)
        else:
            reward = DenseReward(url, AutoTokenizer.from_pretrained(sft))
            trainer = WatchedGRPO(
                str(sft), reward_funcs=reward, args=args, train_dataset=PROMPTS, callbacks=callbacks
            )
        with pytest.raises(UnavailableError, match="the connection to the service failed"):
            trainer.train()
    finally:
        process.kill()
        process.wait()
    assert trainer.state.global_step == 1
    assert len(trainer.generations) == 1


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("grpo", {"scale_rewards": "group"}, "deviation of summed rewards; set 'none'"),
        ("grpo", {"scale_rewards": "batch"}, "deviation of summed rewards"),
        ("grpo", {"importance_sampling_level": "sequence"}, "that of the summed advantages; set 'token'"),
        ("grpo", {"loss_type": "vespo"}, "by the sign of its one advantage; set 'grpo' or 'bnpo'"),
        ("grpo", {"off_policy_mask_threshold": 0.1}, "keeps whole completions"),
        ("grpo", {"reward_weights": [2.0]}, "its weight is 1"),
        ("rloo", {"normalize_advantages": True}, "normalises one advantage per completion; set False"),
        ("rloo", {"reward_clip_range": (-1.0, 1.0)}, "clips summed rewards; set None"),
    ],
)
def test_a_setting_that_would_sum_the_rewards_is_refused(
    kind: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trainer_class, config = KINDS[kind]
    with pytest.raises(InvalidRequestError, match=message) as raised:
        trainer_class("nowhere", "http://127.0.0.1:9", args=config(tmp_path, **settings))
    assert raised.value.param == next(iter(settings))


def test_gamma_and_an_older_release_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = grpo_config(tmp_path)
    with pytest.raises(InvalidRequestError, match="gamma must be from 0 to 1"):
        WatchedDenseGRPO("nowhere", "http://127.0.0.1:9", args=args, gamma=2.0)
    monkeypatch.setattr("trl.__version__", "1.15.2")
    with pytest.raises(RuntimeError, match=r"TRL 1\.15\.2 is installed: this adapter needs 1\.16"):
        WatchedDenseGRPO("nowhere", "http://127.0.0.1:9", args=args)

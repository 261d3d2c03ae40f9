"""verl's own functions and workers, from a batch or a rollout to `token_level_rewards` and advantages."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from densepath import Client
from densepath.errors import InvalidItemError, InvalidRequestError
from densepath.integrations.alignment import AlignmentError
from integrations_heavy.served import SFT, tokenizer
from integrations_heavy.verl_config import FUNCTION, dense_config, verl_config
from live import finish

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # as in verl_config
    from verl import DataProto
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
    from verl.experimental.reward_loop import RewardLoopWorker
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage
    from verl.trainer.ppo.reward import load_reward_manager

    from densepath.integrations.verl.agent_loop import DenseOutput

TOLERANCE = 1e-5
KL = 0.5
PROMPTS = [[1, 40, 41], [1, 5, 6, 7, 8]]
RESPONSES = [[50, 51, 52, 2], [60, 61, 62, 63, 64, 2]]
MASKS = [[1, 1, 1, 1], [1, 1, 0, 0, 1, 1]]  # a tool has put two tokens into the second response


def batch() -> DataProto:
    """Prompts padded on the left and responses on the right, as verl holds them."""
    prompts = torch.tensor([[0] * (5 - len(ids)) + ids for ids in PROMPTS])
    responses = torch.tensor([ids + [0] * (6 - len(ids)) for ids in RESPONSES])
    mask = torch.tensor([row + [0] * (6 - len(row)) for row in MASKS])
    attention = torch.cat([(prompts != 0).long(), (responses != 0).long()], dim=1)
    tensors = {
        "prompts": prompts, "responses": responses, "attention_mask": attention, "response_mask": mask,
        "old_log_probs": torch.linspace(-2, -1, 12).reshape(2, 6), "ref_log_prob": torch.full((2, 6), -1.75),
    }  # fmt: skip
    uids = np.array(["a", "a"], dtype=object)
    return DataProto(TensorDict(tensors, batch_size=2), non_tensor_batch={"uid": uids})


def expected_rewards(service: str) -> Tensor:
    """float32 [B, T]: what /v1/rewards answers, each on its token."""
    items = [
        {"token_ids": [*prompt, *response], "response_mask": [0] * len(prompt) + mask}
        for prompt, response, mask in zip(PROMPTS, RESPONSES, MASKS, strict=True)
    ]
    reward_B_T = torch.zeros(2, 6)
    with Client(service) as client:
        for row, prompt, score in zip(reward_B_T, PROMPTS, client.score(items), strict=True):
            row[torch.from_numpy(score.positions) - len(prompt)] = torch.from_numpy(score.reward_T)
    return reward_B_T


def returns_to_go(reward_B_T: Tensor, mask_B_T: Tensor, gamma: float) -> Tensor:
    """G_t = r_t + gamma G_{t+1} over the tokens under the mask."""
    return_B_T = torch.zeros_like(reward_B_T)
    for row, reward_T, mask_T in zip(return_B_T, reward_B_T, mask_B_T, strict=True):
        following = torch.tensor(0.0)
        for t in reversed(torch.nonzero(mask_T).flatten().tolist()):
            following = row[t] = reward_T[t] + gamma * following
    return return_B_T


async def rm_scores(service: str) -> DataProto:
    """The batch with what verl's reward worker makes of it."""
    worker = RewardLoopWorker(dense_config(service, f"actor_rollout_ref.model.path={SFT}"))
    data = batch()
    outputs = await worker.compute_score_batch(data)
    await worker.reward_manager.client.aclose()
    scores = [output["reward_score"] for output in outputs]
    data.batch["token_level_scores"] = type(worker.reward_manager).assemble_rm_scores(data, scores)
    return data


async def test_each_reward_is_on_its_token(
    service: str, say_difference: Callable[[str, float], None]
) -> None:
    data = await rm_scores(service)
    score_B_T, expected = data.batch["token_level_scores"], expected_rewards(service)
    assert score_B_T.dtype == torch.float32
    assert torch.equal(score_B_T != 0, data.batch["response_mask"].bool())
    difference = (score_B_T - expected).abs().max().item()
    say_difference("verl's reward manager: token_level_scores against /v1/rewards", difference)
    assert difference <= TOLERANCE


@pytest.mark.parametrize(
    ("estimator", "gamma"), [("reinforce_plus_plus", 1.0), ("reinforce_plus_plus", 0.0), ("gae", 1.0)]
)
async def test_they_stay_apart_through_the_kl_term_and_the_advantages(
    estimator: str, gamma: float, service: str
) -> None:
    data = await rm_scores(service)
    data, _ = apply_kl_penalty(data, core_algos.FixedKLController(KL))
    mask_B_T = data.batch["response_mask"]
    kl_B_T = (data.batch["old_log_probs"] - data.batch["ref_log_prob"]) * mask_B_T
    expected = expected_rewards(service) - KL * kl_B_T
    torch.testing.assert_close(data.batch["token_level_rewards"], expected, atol=TOLERANCE, rtol=0)

    data.batch["values"] = torch.zeros(2, 6)
    algorithm = verl_config(f"algorithm.gamma={gamma}").algorithm
    data = compute_advantage(data, estimator, gamma=gamma, lam=1.0, config=algorithm)
    return_B_T = returns_to_go(expected, mask_B_T, gamma)
    found = data.batch["returns"] * mask_B_T
    torch.testing.assert_close(found, return_B_T, atol=5 * TOLERANCE, rtol=0)
    # Whitened over the batch, and still one a token.
    tokens = return_B_T[mask_B_T.bool()]
    whitened = (tokens - tokens.mean()) / tokens.std()
    advantages = data.batch["advantages"][mask_B_T.bool()]
    torch.testing.assert_close(advantages, whitened, atol=1e-4, rtol=0)


def test_a_rollout_carries_them_to_the_trainer(
    service: str, tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    """Ray, agent loop, reward workers, TransferQueue, and the trainer's own advantages."""
    out = tmp_path / "out.pt"
    command = [sys.executable, "-m", "integrations_heavy.verl_rollout", service, str(SFT), str(out)]
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = finish(command, env=env, within=280)
    assert done.returncode == 0, done.stderr[-6000:]
    made = torch.load(out)
    assert made["ends"] == {"sum": "finished", "reward": "finished", "refused": "failure"}
    assert made["beside"] == [[50, 51]], "verl has no row of the response that has no score"
    assert "out of range" in done.stdout + done.stderr

    rows = made["rows"]
    pairs = zip(rows["prompts"], rows["responses"], strict=True)
    items = [
        {"prompt_token_ids": prompt, "response_token_ids": response, "id": str(len(response))}
        for prompt, response in pairs
    ]
    assert sorted(int(item["id"]) for item in items) == [2, 4, 4, 6]
    with Client(service) as client:
        scores = client.score(items)
    largest = 0.0
    for n, score in enumerate(scores):
        reward_T = torch.from_numpy(score.reward_T)
        largest = max(largest, (rows["rm_scores"][n] - reward_T).abs().max().item())
        reward_T = reward_T - KL * 0.25 * torch.arange(len(reward_T))
        largest = max(largest, (rows["token_level_rewards"][n] - reward_T).abs().max().item())
        return_T = reward_T.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(rows["returns"][n], return_T, atol=5 * TOLERANCE, rtol=0)
    say_difference("verl's rollout: rm_scores and token_level_rewards against /v1/rewards", largest)
    assert largest <= TOLERANCE


def output(**fields: Any) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=[1, 2],
        response_ids=[5, 6, 7, 8],
        response_mask=[1, 0, 0, 1],
        metrics=AgentLoopMetrics(),
        **fields,
    )


def test_tokens_that_a_tool_put_there_carry_no_reward() -> None:
    rollout = output(num_turns=4)
    rollout.reward_score = [0.5, 9.0, 9.0, -1.5]
    dense = DenseOutput.of(rollout)
    assert dense.reward_score == -1.0
    fields, stock = dense.as_dict(), output(num_turns=4, reward_score=-1.0).as_dict()
    assert torch.equal(fields.pop("rm_scores"), torch.tensor([0.5, 0.0, 0.0, -1.5]))
    assert torch.equal(stock.pop("rm_scores"), torch.tensor([0.0, 0.0, 0.0, -1.0]))
    assert fields.keys() == stock.keys()


def test_an_agent_loop_with_a_reward_of_its_own_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="its own reward"):
        DenseOutput.of(output(reward_score=1.0))


async def test_a_response_that_cannot_be_scored_raises(service: str) -> None:
    manager = load_reward_manager(dense_config(service), tokenizer())
    data = batch()
    data.batch["responses"][1, 2] = 99_999
    with pytest.raises(InvalidItemError, match="out of range"):
        await manager.run_single(data[1:2])
    with pytest.raises(ValueError, match="one response"):
        await manager.run_single(data)
    await manager.client.aclose()


def test_another_tokenizer_is_refused_at_the_start(service: str) -> None:
    other = copy.deepcopy(tokenizer())
    other.add_tokens(["another"])
    with pytest.raises(AlignmentError, match="load it from the directory of the served SFT checkpoint"):
        load_reward_manager(dense_config(service), other)


MESSAGES = [{"role": "user", "content": "the sum of 3 and 4"}]


def text_rollout(**extra: Any) -> DataProto:
    """One response, as verl's naive reward manager takes it: it decodes the ids itself."""
    ids = tokenizer()(" 7, or so<|end|>", add_special_tokens=False)["input_ids"]
    tensors = {"responses": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    columns = {"data_source": "a", "reward_model": {"ground_truth": "7"}, "extra_info": extra}
    arrays = {name: np.array([value], dtype=object) for name, value in columns.items()}
    return DataProto(TensorDict(tensors, batch_size=1), non_tensor_batch=arrays)


async def test_the_custom_function_gives_the_sum(service: str) -> None:
    config = verl_config(*FUNCTION, f"+reward.custom_reward_function.reward_kwargs.url={service}")
    manager = load_reward_manager(config, tokenizer())
    result = await manager.run_single(text_rollout(messages=np.array(MESSAGES)))
    with Client(service) as client:
        [score] = client.score([{"messages": MESSAGES, "response": " 7, or so"}])
    assert result["reward_score"] == pytest.approx(score.sum, abs=TOLERANCE)
    with pytest.raises(InvalidItemError, match="has no messages"):
        await manager.run_single(text_rollout())


def test_the_example_shows_the_tensors(service: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "verl" / "rewards.py"
    command = [sys.executable, str(example), "--url", service, "--sft", str(SFT)]
    done = finish(command, env={"OMP_NUM_THREADS": "1"}, within=120)
    assert done.returncode == 0, done.stderr[-4000:]
    rewards, returns = (
        [float(value) for value in done.stdout.split(name)[1].splitlines()[1].split()[1:]]
        for name in ("token_level_rewards", "returns")
    )
    assert returns == pytest.approx(np.cumsum(rewards[::-1])[::-1].tolist(), abs=0.01)

"""The policy gradient against exact enumeration: every response of a small MDP, every batch of responses.

Tokens are 0 (EOS), 1 and 2; a response ends within three tokens, the third of which is EOS. There are seven
responses to each of two prompts, and each prompt has rewards of its own. A policy is a table of logits.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from densepath.rewards.advantages import Baseline
from densepath.trainer.reinforce.batch import Response
from densepath.trainer.reinforce.dense_path import weigh
from densepath.trainer.reinforce.settings import TrainSettings

EOS, LONGEST = 0, 3
RESPONSES = [(EOS,)] + [(*y, EOS) for n in (1, 2) for y in itertools.product((1, 2), repeat=n)]
STATES = [y[:t] for y in ((1, 1), (1, 2), (2, 1), (2, 2)) for t in range(LONGEST)]
STATES = list(dict.fromkeys(STATES))
PROMPTS = (0, 0, 1)  # a batch: two rollouts of one prompt, one of another
KL = 0.3


class Table:
    """Two prompts' tables: logits of the policy and of the SFT, and rewards, float64 [2, states, 3]."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (2, len(STATES), 3)
        self.logits, self.logits_sft, self.reward = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)
        )
        self.logits.requires_grad_()

    @staticmethod
    def logp(logits: Tensor, prompt: int, state: tuple[int, ...]) -> Tensor:
        """log p of the three tokens; the last token of the longest response is EOS, for certain."""
        if len(state) == LONGEST - 1:
            return torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)
        return logits[prompt, STATES.index(state)].log_softmax(-1)

    def logp_T(self, logits: Tensor, prompt: int, y: tuple[int, ...]) -> Tensor:
        return torch.stack([self.logp(logits, prompt, y[:t])[y[t]] for t in range(len(y))])

    def reward_T(self, prompt: int, y: tuple[int, ...]) -> Tensor:
        return torch.stack([self.reward[prompt, STATES.index(y[:t]), y[t]] for t in range(len(y))])


@pytest.fixture(scope="module")
def table() -> Table:
    return Table(3)


def settings(gamma: float, kl: float, baseline: Baseline) -> TrainSettings:
    return TrainSettings(
        sft=Path("sft"), prompts=Path("p"), run=Path("run"), gamma=gamma, kl=kl, baseline=baseline
    )


def expected_estimate(table: Table, options: TrainSettings) -> Tensor:
    """The mean over all batches, each with its probability, of what the trainer's gradient is."""
    surrogate = torch.zeros((), dtype=torch.float64)
    for batch in itertools.product(RESPONSES, repeat=len(PROMPTS)):
        logp_N = [table.logp_T(table.logits, p, y) for p, y in zip(PROMPTS, batch, strict=True)]
        probability = torch.stack([logp_T.sum() for logp_T in logp_N]).sum().exp().detach()
        responses = [
            Response(
                prompt=p,
                prompt_ids=(1,),
                response_ids=y,
                ended=True,
                logp_T=logp_T.detach().numpy(),
                reward_T=table.reward_T(p, y).numpy(),
                logp_sft_T=table.logp_T(table.logits_sft, p, y).numpy(),
            )
            for p, y, logp_T in zip(PROMPTS, batch, logp_N, strict=True)
        ]
        for logp_T, advantage_T in zip(logp_N, weigh(responses, options), strict=True):
            surrogate = surrogate + probability * (torch.from_numpy(advantage_T) * logp_T).sum() / len(batch)
    return torch.autograd.grad(surrogate, table.logits)[0]


def exact_gradient(table: Table, gamma: float, kl: float) -> Tensor:
    """grad of sum over states of d(s) sum over a of pi(a | s) Q(s, a), d and Q by dynamic programming.

    Q(s, a) = r(s, a) - kl log-ratio(s, a) + gamma sum over a' of pi(a' | s') Q(s', a'); d and Q constants.
    """
    objective = torch.zeros((), dtype=torch.float64)
    for prompt in PROMPTS:

        def q_of(state: tuple[int, ...], token: int, prompt: int = prompt) -> Tensor:
            logp = Table.logp(table.logits, prompt, state)[token]
            logp_sft = Table.logp(table.logits_sft, prompt, state)[token]
            q = table.reward[prompt, STATES.index(state), token] - kl * (logp - logp_sft)
            if token == EOS:
                return q
            return q + gamma * value((*state, token), prompt)

        def value(state: tuple[int, ...], prompt: int = prompt) -> Tensor:
            p = Table.logp(table.logits, prompt, state).exp()
            return sum(p[a] * q_of(state, a, prompt) for a in range(3) if p[a] > 0)  # type: ignore[return-value]

        for state in STATES:
            before = [Table.logp(table.logits, prompt, state[:t])[state[t]] for t in range(len(state))]
            visited = torch.stack(before).sum().exp() if before else torch.ones((), dtype=torch.float64)
            p = Table.logp(table.logits, prompt, state).exp()
            for a in range(3):
                if p[a] > 0:
                    objective = objective + visited.detach() * p[a] * q_of(state, a).detach()
    return torch.autograd.grad(objective / len(PROMPTS), table.logits)[0]


@pytest.mark.parametrize("kl", [0.0, KL])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("baseline", list(Baseline))
def test_the_estimate_s_mean_is_the_exact_gradient(
    baseline: Baseline, gamma: float, kl: float, table: Table
) -> None:
    got = expected_estimate(table, settings(gamma, kl, baseline))
    torch.testing.assert_close(got, exact_gradient(table, gamma, kl), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kl", [0.0, KL])
def test_with_gamma_1_it_is_the_gradient_of_expected_return_less_kl(kl: float, table: Table) -> None:
    objective = torch.zeros((), dtype=torch.float64)
    for prompt, y in itertools.product(PROMPTS, RESPONSES):
        logp = table.logp_T(table.logits, prompt, y).sum()
        ratio = logp - table.logp_T(table.logits_sft, prompt, y).sum()
        objective = objective + logp.exp() * (table.reward_T(prompt, y).sum() - kl * ratio)
    want = torch.autograd.grad(objective / len(PROMPTS), table.logits)[0]
    torch.testing.assert_close(exact_gradient(table, 1.0, kl), want, rtol=1e-9, atol=1e-12)


def test_the_enumeration_can_fail(table: Table) -> None:
    """Another KL coefficient, another gamma: far outside of the tolerance."""
    right = expected_estimate(table, settings(1.0, KL, Baseline.BATCH))
    for wrong in (exact_gradient(table, 1.0, 0.0), exact_gradient(table, 0.0, KL)):
        assert float((right - wrong).abs().max()) > 1e-2


def test_a_baseline_lowers_the_variance(table: Table) -> None:
    """What a baseline is for: with rewards far from zero it takes most of the noise away."""
    rng = np.random.default_rng(0)
    responses = []
    for _ in range(64):
        y = RESPONSES[rng.integers(len(RESPONSES))]
        reward_T = table.reward_T(0, y).numpy() + 5.0
        logp_T = table.logp_T(table.logits, 0, y).detach().numpy()
        responses.append(Response(0, (1,), y, True, logp_T, reward_T, logp_T))
    size = {
        baseline: np.mean(np.concatenate(weigh(responses, settings(1.0, 0.0, baseline))) ** 2)
        for baseline in Baseline
    }
    assert size[Baseline.BATCH] < 0.5 * size[Baseline.NONE]
    assert size[Baseline.LEAVE_ONE_OUT] < 0.5 * size[Baseline.NONE]

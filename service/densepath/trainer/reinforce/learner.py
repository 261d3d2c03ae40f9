"""The policy under training: token-level REINFORCE, one forward-backward pass per step, AdamW.

    loss = -1/N sum over responses sum over tokens A_t log pi(y_t | s_t)

Its gradient is the policy gradient, with A_t as a constant. Parameters and log-probabilities are fp32; with
`bfloat16`, matrix products run in bfloat16. Under `torchrun` or `accelerate launch`, the parameters are
sharded over all processes (FSDP2), and each process works on its own responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densepath.trainer.errors import NonFiniteStepError
from densepath.trainer.quiet import quiet_libraries
from densepath.trainer.reinforce.workers import Workers


@dataclass(frozen=True)
class Weighted:
    """One response, and the advantage of each of its tokens, float64 [T]."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    advantage_T: NDArray[np.float64]


@dataclass(frozen=True)
class StepFigures:
    """The figures of one update, over all processes."""

    loss: float
    grad_norm: float  # before clipping
    logp_N_T: list[NDArray[np.float32]]  # of this process's responses, before the update


class Learner:
    """Loads the checkpoint in `directory`; `step` updates it."""

    def __init__(
        self,
        directory: Path,
        workers: Workers,
        *,
        learning_rate: float,
        clip_gradient: float = 1.0,
        micro_batch: int | None = None,
        bfloat16: bool = False,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self._workers, self._clip, self._micro_batch = workers, clip_gradient, micro_batch
        self._bfloat16 = bfloat16
        with quiet_libraries():
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, trust_remote_code=False, local_files_only=True
            )
        self.model: Any = workers.shard(model.train().to(workers.device))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.0
        )

    def step(self, responses: Sequence[Weighted], n_responses: int) -> StepFigures:
        """Make one update from this process's responses. `n_responses` counts those of all processes.

        Raises NonFiniteStepError, with unchanged parameters, if the loss or the gradient is not finite.
        """
        self.optimizer.zero_grad()
        loss, logp_N_T = torch.zeros((), device=self._workers.device), []
        size = self._micro_batch or max(1, len(responses))
        for at in range(0, len(responses), size):
            part, logp_chunk = self._forward_backward(responses[at : at + size], n_responses)
            loss += part
            logp_N_T += logp_chunk
        loss = self._workers.sum(loss)
        grad_norm = float(_whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)))
        for name, value in (("loss", float(loss)), ("gradient", grad_norm)):
            if not np.isfinite(value):
                self.optimizer.zero_grad()
                raise NonFiniteStepError(f"the {name} is not finite: the policy was not updated")
        self.optimizer.step()
        return StepFigures(float(loss), grad_norm, logp_N_T)

    def _forward_backward(
        self, chunk: Sequence[Weighted], n_responses: int
    ) -> tuple[Tensor, list[NDArray[np.float32]]]:
        batch = _pad(chunk, self._workers.device)
        with torch.autocast(self._workers.device.type, torch.bfloat16, enabled=self._bfloat16):
            logit_N_T_V = self.model(
                batch.input_N_L,
                attention_mask=batch.attention_N_L,
                position_ids=(batch.attention_N_L.cumsum(-1) - 1).clamp(min=0),
                logits_to_keep=batch.target_N_T.shape[1] + 1,
                use_cache=False,
            ).logits[:, :-1]
        logit_N_T_V = logit_N_T_V.float()
        target_logit_N_T = logit_N_T_V.gather(-1, batch.target_N_T[..., None])[..., 0]
        logp_N_T = target_logit_N_T - logit_N_T_V.logsumexp(-1)
        loss = -(batch.advantage_N_T * logp_N_T).sum() / n_responses
        # FSDP averages gradients over the processes, but the loss is a sum: the factor corrects that.
        torch.autograd.backward(loss * self._workers.count)
        rows = logp_N_T.detach().cpu().numpy()
        return loss.detach(), [row[: len(w.response_ids)] for row, w in zip(rows, chunk, strict=True)]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every unsharded parameter, with its name in a checkpoint. All processes must iterate together."""
        for name, parameter in self.model.named_parameters():
            yield name, _whole(parameter.detach())

    def held_weights(self) -> dict[str, Tensor]:
        """This process's part of every parameter. These are no copies: filling them sets the model."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def held_moments(self) -> dict[str, Tensor]:
        """This process's part of the optimizer's tensors, as `KIND/parameter`; zeros before a step."""
        held: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            if not state:  # the same values that AdamW sets in its first step
                state["step"] = torch.zeros(())
                state |= {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
            held |= {f"{kind}/{name}": tensor for kind, tensor in state.items()}
        return held


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


@dataclass(frozen=True)
class _Batch:
    input_N_L: Tensor
    attention_N_L: Tensor
    target_N_T: Tensor
    advantage_N_T: Tensor  # float32; 0 where there is no token


def _pad(chunk: Sequence[Weighted], device: torch.device) -> _Batch:
    """Align the rows where the response begins, so that logits are kept for responses only."""
    prompt = max(len(w.prompt_ids) for w in chunk)
    longest = max(len(w.response_ids) for w in chunk)
    input_N_L = torch.zeros(len(chunk), prompt + longest, dtype=torch.long)
    attention_N_L = torch.zeros_like(input_N_L)
    advantage_N_T = torch.zeros(len(chunk), longest)
    for n, w in enumerate(chunk):
        begin, end = prompt - len(w.prompt_ids), prompt + len(w.response_ids)
        input_N_L[n, begin:end] = torch.tensor([*w.prompt_ids, *w.response_ids])
        attention_N_L[n, begin:end] = 1
        advantage_N_T[n, : len(w.response_ids)] = torch.from_numpy(w.advantage_T)
    return _Batch(
        input_N_L.to(device),
        attention_N_L.to(device),
        input_N_L[:, prompt:].to(device),
        advantage_N_T.to(device),
    )

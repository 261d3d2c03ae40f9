"""A small causal transformer with a KV cache, its sampler, and log-probabilities of responses; fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tasks import EOS, PAD, Batch, Ids, Task
from torch import Tensor, nn
from torch.nn import functional

Weights = dict[str, Tensor]
Cache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Shape:
    """The model's size; `width` is a multiple of `heads`."""

    width: int = 64
    layers: int = 2
    heads: int = 4


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.before_attention = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.before_mlp = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width)
        self.down = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x_N_T_D: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Cache]:
        count, length, width = x_N_T_D.shape
        qkv = self.qkv(self.before_attention(x_N_T_D)).view(count, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x_N_T_D = x_N_T_D + self.out(mixed.transpose(1, 2).reshape(count, length, width))
        return x_N_T_D + self.down(functional.gelu(self.up(self.before_mlp(x_N_T_D)))), [(key, value)]


class Model(nn.Module):
    """Pre-norm layers over token and learned position embeddings."""

    def __init__(self, task: Task, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(task.vocab_size, shape.width)
        self.positions = nn.Embedding(task.prompt_length + task.response_length, shape.width)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, task.vocab_size, bias=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, ids_N_T: Tensor, cache: Cache | None = None, keep: int = 0) -> tuple[Tensor, Cache]:
        """Logits of the last `keep` positions (0: all), [N, T, V], and the cache with these tokens in it."""
        start = cache[0][0].shape[2] if cache else 0
        x_N_T_D = self.tokens(ids_N_T) + self.positions.weight[start : start + ids_N_T.shape[1]]
        grown: Cache = []
        for place, layer in enumerate(self.layers):
            x_N_T_D, entry = layer(x_N_T_D, cache[place] if cache else None)
            grown += entry
        return self.head(self.norm(x_N_T_D[:, -keep:])), grown


Step = Callable[[Tensor], Tensor]  # token ids [N, T] to the log-probabilities of what follows, [N, V]


def logprobs(model: Model, ids_N_PR: Tensor, prompt_length: int) -> Tensor:
    """Each response token's log-probability, float32 [N, R], nats; padding's too: a mask leaves it out."""
    response_N_R = ids_N_PR[:, prompt_length:]
    logit_N_R_V = model(ids_N_PR[:, :-1], keep=response_N_R.shape[1])[0]
    logp_N_R: Tensor = logit_N_R_V.log_softmax(-1).gather(2, response_N_R[..., None])[..., 0]
    return logp_N_R


def next_token(model: Model) -> Step:
    """The model as a step with its own cache: feed the prompts first, then a token a time."""
    cache: Cache = []

    def step(ids_N_T: Tensor) -> Tensor:
        nonlocal cache
        logit_N_1_V, cache = model(ids_N_T, cache, keep=1)
        logp_N_V: Tensor = logit_N_1_V[:, 0].log_softmax(-1)
        return logp_N_V

    return step


def away_from(sft: Model, reference: Model, alpha: float) -> Step:
    """pi_SFT (pi_SFT / pi_ref)^alpha, renormalised at each token."""
    of_sft, of_reference = next_token(sft), next_token(reference)

    def step(ids_N_T: Tensor) -> Tensor:
        return ((1 + alpha) * of_sft(ids_N_T) - alpha * of_reference(ids_N_T)).log_softmax(-1)

    return step


@torch.inference_mode()
def generate(step: Step, prompt_N_P: Ids, length: int, generator: torch.Generator | None) -> Batch:
    """Responses of at most `length` tokens, sampled at temperature 1, or greedy without a generator.

    A row without an EOS token was cut: `mask_N_R` covers all of its tokens.
    """
    ids_N_T = torch.from_numpy(prompt_N_P)
    ended_N = torch.zeros(len(ids_N_T), dtype=torch.bool)
    columns: list[Tensor] = []
    masks: list[Tensor] = []
    new_N_T = ids_N_T
    while len(columns) < length and not ended_N.all():
        logp_N_V = step(new_N_T)
        if generator is None:
            token_N = logp_N_V.argmax(-1)
        else:
            token_N = torch.multinomial(logp_N_V.exp(), 1, generator=generator)[:, 0]
        columns.append(torch.where(ended_N, PAD, token_N))
        masks.append(~ended_N)
        ended_N = ended_N | (token_N == EOS)
        new_N_T = columns[-1][:, None]
    unused = (0, length - len(columns))
    response_N_R = functional.pad(torch.stack(columns, 1), unused, value=PAD)
    mask_N_R = functional.pad(torch.stack(masks, 1), unused, value=False)
    return Batch(torch.cat([ids_N_T, response_N_R], 1).numpy(), mask_N_R.numpy())


def copy_of(model: Model) -> Weights:
    """The model's weights, detached."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

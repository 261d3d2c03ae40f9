"""What a GPU shows and a CPU hides: whose memory a hidden state lies in, and where a tensor is made."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from densepath.engine.scorer import View

pytestmark = pytest.mark.engine

WIDTH, VOCAB = 4, 11
FP32 = (torch.float32, torch.float32)


def bare_pair(sft: Any, reference: Any) -> Any:
    from densepath.engine.vllm.model import DensepathPair

    pair = DensepathPair.__new__(DensepathPair)
    torch.nn.Module.__init__(pair)
    object.__setattr__(pair, "sft", sft)
    object.__setattr__(pair, "reference", reference)
    object.__setattr__(pair, "longrope", lambda ids, positions: (ids, positions, positions))
    return pair


def test_the_reference_may_run_in_the_memory_of_the_sft_s_answer() -> None:
    """vLLM's CUDA graphs of both models share a memory pool: a replay writes where another has answered."""
    pool = torch.empty(3, WIDTH)
    pair = bare_pair(lambda *_: pool.fill_(1.0), lambda *_: pool.fill_(2.0))
    both = pair.forward(torch.zeros(3), torch.zeros(3))
    pool.fill_(3.0)  # the next step's replay, while the pooler of this one still reads
    assert both[:, :WIDTH].eq(1).all()
    assert both[:, WIDTH:].eq(2).all()


# A spawned engine process imports the model and its pooler while it builds the model, under
# `torch.device("cuda")`. "meta" stands for it: what is made there without a name has no values.
MODULES = """
import importlib, pkgutil, sys
import torch
import densepath.engine

def load():
    found = pkgutil.walk_packages(densepath.engine.__path__, "densepath.engine.")
    return [importlib.import_module(each.name) for each in found]

count = len(load())
for name in [name for name in sys.modules if name.startswith("densepath.engine.")]:
    del sys.modules[name]
with torch.device("meta"):
    modules = load()
assert len(modules) == count > 10, modules
for module in modules:
    for name, value in vars(module).items():
        for each in value.values() if isinstance(value, dict) else [value]:
            assert not isinstance(each, torch.Tensor) or each.device.type == "cpu", (module, name)
assert any(isinstance(value, torch.Tensor) for m in modules for value in vars(m).values())
"""


def test_no_module_of_the_engine_leaves_the_device_of_a_tensor_open() -> None:
    subprocess.run([sys.executable, "-c", MODULES], check=True, timeout=120)


def scored_by(models: list[Any], hidden: torch.Tensor, view: View | None, default: str = "cpu") -> Any:
    """Rows of two requests in one step; the first has the view."""
    from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

    from densepath.engine.vllm.pooler import PairPooler, pooling_params

    lengths = [5, 3]
    metadata = PoolingMetadata(
        prompt_lens=torch.tensor(lengths),
        prompt_token_ids=None,
        prompt_token_ids_cpu=IDS_N_L,
        pooling_params=[pooling_params([1, 3, 4, 5], view), pooling_params([2, 3])],
        pooling_states=[PoolingStates(), PoolingStates()],
    )
    metadata.build_pooling_cursor(np.array(lengths), torch.tensor(lengths), hidden.device)
    pooler = PairPooler(models[0], models[1], FP32, WIDTH, VOCAB)
    with torch.device(default):
        return pooler.forward(hidden, metadata)


GENERATOR = torch.Generator().manual_seed(0)
HEADS = [torch.randn(WIDTH, VOCAB, generator=GENERATOR) for _ in range(2)]
HIDDEN = torch.randn(8, 2 * WIDTH, generator=GENERATOR)
IDS_N_L = torch.randint(0, VOCAB, (2, 5), generator=GENERATOR)
VIEWS = [None, View(1, 0, top=3), View(3.0, -2.0, top=2)]


@pytest.mark.parametrize("view", VIEWS)
def test_the_pooler_names_the_device_of_every_tensor(view: View | None) -> None:
    """Under another default device it answers the same, on the device of the hidden states."""
    models: list[Any] = [SimpleNamespace(compute_logits=lambda x, head=head: x @ head) for head in HEADS]
    want = scored_by(models, HIDDEN, view)
    got = scored_by(models, HIDDEN, view, default="meta")
    assert [len(each) for each in got] == [3, 1]
    for a, b in zip(got, want, strict=True):
        assert a.device == HIDDEN.device
        assert torch.equal(a, b)
    logp = [(HIDDEN[:, :WIDTH] @ HEADS[0]).log_softmax(-1), (HIDDEN[:, WIDTH:] @ HEADS[1]).log_softmax(-1)]
    by_hand = torch.stack([table[[0, 1, 3], IDS_N_L[0, [1, 2, 4]]] for table in logp], 1)
    torch.testing.assert_close(want[0][:, :2], by_hand)


@pytest.mark.parametrize("view", VIEWS)
def test_one_head_may_write_where_the_other_has_answered(view: View | None) -> None:
    """Nothing of a model's logits is read once the other's are there."""
    buffer = torch.empty(64, VOCAB)
    sharing: list[Any] = [
        SimpleNamespace(compute_logits=lambda x, head=head: torch.mm(x, head, out=buffer[: len(x)]))
        for head in HEADS
    ]
    apart: list[Any] = [SimpleNamespace(compute_logits=lambda x, head=head: x @ head) for head in HEADS]
    for got, want in zip(scored_by(sharing, HIDDEN, view), scored_by(apart, HIDDEN, view), strict=True):
        assert torch.equal(got, want)

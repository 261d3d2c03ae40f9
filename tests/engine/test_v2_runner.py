"""The pooler under vLLM's V2 model runner, which a GPU uses and the CPU build does not.

The runner itself needs Triton. Its `PoolingRunner`, which keeps what belongs to a request, does not: here it
drives the pair's pooler through chunks and a preemption.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from densepath.engine.vllm.pooler import TASK, PairPooler, pooling_params

pytestmark = pytest.mark.engine

WIDTH, VOCAB = 4, 11
FP32 = (torch.float32, torch.float32)


class Model(torch.nn.Module):
    """Hidden states are looked up by position and token, so that any row is known beforehand."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(VOCAB, 32, 2 * WIDTH, generator=generator)
        self.heads = [torch.randn(WIDTH, VOCAB, generator=generator) for _ in range(2)]
        sides = [SimpleNamespace(compute_logits=lambda x, head=head: x @ head) for head in self.heads]
        self.pooler = PairPooler(sides[0], sides[1], FP32, WIDTH, VOCAB)  # type: ignore[arg-type]

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.hidden[input_ids, positions]

    def scores(self, ids_L: list[int], spans: list[int]) -> torch.Tensor:
        """By hand, [T, 2]."""
        hidden_L = self(torch.tensor(ids_L), torch.arange(len(ids_L)))
        pieces = [list(range(*span)) for span in zip(spans[::2], spans[1::2], strict=True)]
        position_T = [position for piece in pieces for position in piece]
        rows_T = [position - 1 for position in position_T]
        columns = [
            (hidden_L[:, side * WIDTH : (side + 1) * WIDTH] @ head).log_softmax(-1)[rows_T]
            for side, head in enumerate(self.heads)
        ]
        target_T = torch.tensor([ids_L[position] for position in position_T])
        return torch.stack([logp_T_V.gather(1, target_T[:, None])[:, 0] for logp_T_V in columns], 1)


class Steps:
    """What the V2 runner does with its PoolingRunner, a step at a time."""

    def __init__(self, model: Model) -> None:
        from vllm.v1.worker.gpu.pool.pooling_runner import PoolingRunner

        self.model = model
        config: Any = SimpleNamespace(
            model_config=SimpleNamespace(get_pooling_task=lambda tasks: tasks[0], pooler_config=None),
            scheduler_config=SimpleNamespace(max_num_seqs=4),
        )
        self.runner = PoolingRunner(model, config)
        self.ids: dict[int, list[int]] = {}

    def add(self, index: int, ids_L: list[int], spans: list[int]) -> None:
        self.ids[index] = ids_L
        self.runner.add_request(f"request {index}", index, pooling_params(spans), ids_L)

    def run(self, pieces: dict[int, tuple[int, int]]) -> dict[int, torch.Tensor]:
        """Run positions `[start, end)` of each request; what has finished."""
        order = list(pieces)
        scheduled = np.array([end - start for start, end in pieces.values()], dtype=np.int32)
        input_ids = [i for index, (start, end) in pieces.items() for i in self.ids[index][start:end]]
        positions = [i for piece in pieces.values() for i in range(*piece)]
        batch: Any = SimpleNamespace(
            idx_mapping_np=np.array(order),
            num_reqs=len(order),
            num_tokens=len(input_ids),
            num_scheduled_tokens=scheduled,
            seq_lens_cpu_upper_bound=torch.tensor([end for _, end in pieces.values()], dtype=torch.int32),
            query_start_loc=torch.tensor([0, *np.cumsum(scheduled).tolist()], dtype=torch.int32),
            req_ids=[f"request {index}" for index in order],
        )
        lengths = np.array([len(self.ids.get(index, [])) for index in range(4)], dtype=np.int32)
        states: Any = SimpleNamespace(prompt_len=SimpleNamespace(np=lengths))
        hidden = self.model(torch.tensor(input_ids), torch.tensor(positions))
        padded = torch.cat([hidden, torch.full((3, 2 * WIDTH), torch.nan)])  # to the size of a CUDA graph
        outputs, finished = self.runner.pool(padded, batch, states)
        done = zip(order, outputs, finished, strict=True)
        return {index: output for index, output, is_done in done if is_done and output is not None}


FIRST = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [3, 5, 6, 10])
SECOND = ([9, 8, 7, 6, 5, 4], [1, 6])
THIRD = ([2, 4, 6, 8], [3, 4])


def test_chunks_of_a_request_are_kept() -> None:
    model = Model()
    steps = Steps(model)
    steps.add(2, *FIRST)
    steps.add(0, *SECOND)
    assert steps.run({2: (0, 4), 0: (0, 3)}) == {}
    steps.add(1, *THIRD)
    finished = steps.run({0: (3, 6), 2: (4, 7), 1: (0, 4)})
    finished |= steps.run({2: (7, 10)})
    for index, (ids_L, spans) in ((2, FIRST), (0, SECOND), (1, THIRD)):
        torch.testing.assert_close(finished[index], model.scores(ids_L, spans))


@pytest.mark.parametrize("resumed_at", [0, 2])
def test_a_preempted_request_begins_anew(resumed_at: int) -> None:
    """It comes back as a new one, its rows forgotten, from no later than its first scored token."""
    model = Model()
    steps = Steps(model)
    steps.add(2, *FIRST)
    steps.run({2: (0, 7)})
    steps.runner.remove_request(2)
    steps.add(2, *FIRST)
    assert steps.run({2: (resumed_at, 5)}) == {}
    finished = steps.run({2: (5, 10)})
    torch.testing.assert_close(finished[2], model.scores(*FIRST))


def test_a_slot_that_is_used_again_holds_nothing_of_the_one_before() -> None:
    """A request is aborted after a chunk, and another takes its place."""
    model = Model()
    steps = Steps(model)
    steps.add(2, *FIRST)
    steps.run({2: (0, 7)})
    steps.runner.remove_request(2)
    steps.add(2, *SECOND)
    torch.testing.assert_close(steps.run({2: (0, 6)})[2], model.scores(*SECOND))


def test_the_dummy_run_passes() -> None:
    model = Model()
    Steps(model).runner.dummy_pooler_run(torch.zeros(10, 2 * WIDTH))
    assert model.pooler.get_supported_tasks() == {TASK}

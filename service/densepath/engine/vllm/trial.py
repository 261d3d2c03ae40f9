"""Finds out from vLLM whether it can run a pair: both models are built as for serving, but without weights.

A child process does this, so that nothing of vLLM stays in this process. The models need no memory and no
device.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from densepath.config import EngineOptions
from densepath.engine.vllm.arguments import engine_arguments
from densepath.garbage import collect_rarely


def try_pair(
    sft: Path,
    reference: Path,
    *,
    checkpoint_dtype: str,
    reference_dtype: str | None = None,
    context_length: int,
    options: EngineOptions,
) -> str | None:
    """Why vLLM cannot run a pair, or None if it can. The arguments are those of `engine_arguments`.

    Raises LookupError, with the reason, if it cannot be found out.
    """
    if find_spec("vllm") is None:
        raise LookupError("vLLM is not installed")
    command = [sys.executable, "-m", __name__]
    job = job_of(sft, reference, checkpoint_dtype, reference_dtype, context_length, options)
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0 or not done.stdout:
        raise LookupError(f"the trial ended with exit status {done.returncode}")
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    if found["unknown"]:
        raise LookupError(found["unknown"])
    return found["reason"]


def job_of(
    sft: Path,
    reference: Path,
    checkpoint_dtype: str,
    reference_dtype: str | None,
    context_length: int,
    options: EngineOptions,
) -> str:
    """One line of JSON for the child. Only the child imports vLLM, which `engine_arguments` needs too."""
    given = {
        "checkpoint_dtype": checkpoint_dtype,
        "reference_dtype": reference_dtype,
        "context_length": context_length,
    }
    chosen = {field.name: getattr(options, field.name) for field in fields(EngineOptions)}
    return json.dumps({"sft": str(sft), "reference": str(reference), "options": chosen, **given})


def _main() -> None:
    """Runs in the child: reads the job from standard input, and prints the answer as its last line."""
    import densepath.engine.vllm.environment  # noqa: F401
    from densepath.engine.vllm.reasons import reason_of

    job = json.load(sys.stdin)
    directories = Path(job.pop("sft")), Path(job.pop("reference"))
    options = EngineOptions(**job.pop("options"))
    answer: dict[str, str | None] = {"reason": None, "unknown": None}
    try:
        _build(engine_arguments(*directories, options=options, **job))
    except Exception as error:
        words = reason_of(error)
        # Some layers compute with values while they are built, but tensors on the meta device have none.
        answer["unknown" if re.search(r"\bmeta\b", words) else "reason"] = words
    print(json.dumps(answer), flush=True)


def _build(arguments: dict[str, Any]) -> None:
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    from densepath.engine.vllm.plugin import register

    register()
    config = EngineArgs(**arguments).create_engine_config()
    with tempfile.NamedTemporaryFile() as meeting, set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{meeting.name}", 0, backend="gloo")
        initialize_model_parallel(1)
        with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
            initialize_model(config)


if __name__ == "__main__":
    collect_rarely()
    _main()

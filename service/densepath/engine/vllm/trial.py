"""Whether vLLM can run a pair, asked of vLLM itself: both models are built as for serving, without weights.

A child process does it, so that nothing of vLLM's stays; it takes no memory and no device.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from typing import Any


def try_pair(arguments: dict[str, Any]) -> str | None:
    """Why vLLM cannot run the pair of these arguments (`engine_arguments`), or None where it can.

    Raises LookupError, with the reason, where that cannot be said.
    """
    if find_spec("vllm") is None:
        raise LookupError("vLLM is not installed")
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(  # noqa: S603
        command, input=json.dumps(arguments), capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not done.stdout:
        raise LookupError(f"the trial ended with exit status {done.returncode}")
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    if found["unknown"]:
        raise LookupError(found["unknown"])
    return found["reason"]


def _main() -> None:
    """In the child: arguments from standard input, the answer in the last line of standard output."""
    import densepath.engine.vllm.environment  # noqa: F401
    from densepath.engine.vllm.reasons import reason_of

    arguments = json.load(sys.stdin)
    answer: dict[str, str | None] = {"reason": None, "unknown": None}
    try:
        _build(arguments)
    except Exception as error:
        words = reason_of(error)
        # Some layers compute with values as they are built, and there are none.
        answer["unknown" if "meta" in words else "reason"] = words
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
    _main()

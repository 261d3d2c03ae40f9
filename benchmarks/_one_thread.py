"""Import this before torch and vllm: everything runs in this process, on one thread."""

from __future__ import annotations

import os

#: "nobind": vLLM leaves the thread count to OMP_NUM_THREADS. Dynamo stays on, though no model is compiled:
#: stock vLLM ranks each token in a compiled function, and one row shows what it costs without.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
os.environ.update(SETTINGS)

"""Another vLLM in the same environment, such as an RL trainer's, keeps its own behaviour."""

from __future__ import annotations

import os
import subprocess
import sys

LOADED_AS_A_PLUGIN = """
import os
before = dict(os.environ)
from importlib.metadata import entry_points
[plugin] = entry_points(group="vllm.general_plugins", name="densepath")
plugin.load()
assert dict(os.environ) == before, os.environ.items() - before.items()
"""
ENGINE = """
import os
import densepath.engine.vllm.environment
assert os.environ["VLLM_LOGGING_LEVEL"] == "ERROR"
"""


def test_the_plugin_sets_nothing_and_the_engine_does() -> None:
    ours = ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL", "TORCHDYNAMO_DISABLE")
    clean = {key: value for key, value in os.environ.items() if key not in ours}
    for program in (LOADED_AS_A_PLUGIN, ENGINE):
        subprocess.run([sys.executable, "-c", program], env=clean, check=True, timeout=60)

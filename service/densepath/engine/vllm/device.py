"""The name of the device that the engine runs on, read without using the device."""

from __future__ import annotations

import platform
from pathlib import Path

from densepath.engine.vllm.environment import cpu_build


def device_name() -> str:
    """The name of the GPU, or of the processor if vLLM's CPU build is installed."""
    if cpu_build():
        return _processor()
    from vllm.platforms import current_platform

    return str(current_platform.get_device_name())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")

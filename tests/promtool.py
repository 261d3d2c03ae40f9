"""Prometheus' own tool, as Debian packages it."""

from __future__ import annotations

import subprocess


def promtool(*words: object, given: str = "") -> str:
    """What promtool says; it must find nothing wrong."""
    done = subprocess.run(
        ["promtool", *map(str, words)], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_metrics(text: str) -> None:
    """A /metrics page that follows every rule of naming and help."""
    assert promtool("check", "metrics", given=text) == ""

"""The demo pair, which the service of these tests serves, and its tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from densepath.demo import default_directory

#: vLLM and these tools don't share an environment, so the service has its own: that of `make setup`.
PYTHON = Path(__file__).parents[2] / ".venv" / "bin" / "python"
TEACHER_KL = 0.25
SFT = default_directory() / "sft"


@cache
def tokenizer() -> Any:
    """The pair's."""
    return AutoTokenizer.from_pretrained(SFT)

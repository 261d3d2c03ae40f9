"""Runs lm-evaluation-harness on a checkpoint, in a separate process.

Source of the command line: EleutherAI/lm-evaluation-harness 0.4, docs/interface.md.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from densepath.errors import InvalidRequestError


def require_harness() -> None:
    """Raise InvalidRequestError if lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InvalidRequestError("--lm-eval needs lm-evaluation-harness: pip install 'densepath[lm-eval]'")


def harness_command(directory: Path, tasks: str, arguments: str) -> list[str]:
    """The command of the harness. `arguments` has further arguments for it, quoted as in a shell."""
    model = str(directory.resolve())
    if "," in model:
        raise InvalidRequestError(
            f"{model} has a comma, which lm-evaluation-harness takes as the end of the argument: move the "
            "directory, or make a link to it"
        )
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model}"]
    return [*command, "--tasks", tasks, *shlex.split(arguments)]


def run_harness(directory: Path, tasks: str, arguments: str, say: Console) -> None:
    """Run the harness, which prints its own table. Raises InvalidRequestError if it fails."""
    command = harness_command(directory, tasks, arguments)
    say.print(shlex.join(command), markup=False, soft_wrap=True)
    status = subprocess.run(command, check=False).returncode  # noqa: S603
    if status:
        raise InvalidRequestError(f"lm-evaluation-harness ended with status {status}; its output is above")

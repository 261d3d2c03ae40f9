"""How the commands of the pages are run: as they stand, on little data."""

from __future__ import annotations

import json
import random
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from densepath.demo.task import held_out
from live import Demo, finish

HERE = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Small:
    """What makes a command take seconds: variables, or words behind it."""

    variables: dict[str, str] = field(default_factory=dict)
    words: str = ""


#: By how a command begins, in the order in which they are run.
SMALL = {
    "densepath sft --base DIR": Small(
        {
            "DENSEPATH_MAX_STEPS": "8",
            "DENSEPATH_BATCH_SIZE": "16",
            "DENSEPATH_LEARNING_RATE": "1e-4",
            "DENSEPATH_VALIDATE_EVERY": "2",
        }
    ),
    "densepath probe": Small(words="--alphas 1 --max-new-tokens 8"),
    "densepath score items.jsonl -o": Small(),
    "densepath score items.jsonl --sft": Small(words="--engine transformers"),
    "densepath serve --pair run": Small({"DENSEPATH_ENGINE": "transformers"}),
    "densepath train": Small(
        {
            "DENSEPATH_STEPS": "1",
            "DENSEPATH_PROMPTS_PER_STEP": "4",
            "DENSEPATH_MAX_NEW_TOKENS": "8",
            "DENSEPATH_ROLLOUT_ENGINE": "transformers",
        }
    ),
    "densepath eval": Small(words="--engine transformers --max-new-tokens 8 --seeds 1"),
    "densepath report": Small(),
}


def write_files(directory: Path) -> None:
    """The data that the pages name."""
    examples = held_out(96, random.Random(3))

    def write(name: str, rows: list[dict[str, object]]) -> None:
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    asked = [{"messages": list(example.messages)} for example in examples]
    answered = [{**row, "response": e.response} for row, e in zip(asked, examples, strict=True)]
    prompts = [{**row, "answer": e.response} for row, e in zip(asked, examples, strict=True)]
    write("train.jsonl", answered)
    write("items.jsonl", [{**row, "append_eos": True} for row in answered[:4]])
    write("prompts.jsonl", prompts[:8])
    write("held-out.jsonl", prompts[8:16])


def words_of(command: str, demo: Demo, small: Small) -> list[str]:
    """A command with what stands for a reader's own things put in."""
    command = re.sub(r"\bDIR\b", str(demo.reference), command.replace(HERE, demo.url))
    program, *words = shlex.split(f"{command} {small.words}", comments=True)
    return ([sys.executable, "-m", "densepath"] if program == "densepath" else [program]) + words


def run(command: str, demo: Demo, directory: Path, small: Small = Small()) -> CompletedProcess[str]:
    """Run a command to its end in `directory`; it must succeed."""
    given = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **small.variables}
    fresh = command.startswith(("densepath eval", "densepath probe"))
    done = finish(words_of(command, demo, small), env=given, cwd=directory, within=240, fresh=fresh)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done

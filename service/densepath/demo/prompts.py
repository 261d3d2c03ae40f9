"""The task as files for `densepath train`, and a link to the demo that is easy to type in a command."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from densepath.demo.recipe import Recipe
from densepath.demo.store import Demo
from densepath.demo.task import OPERATIONS, Example, draw
from densepath.files import write_whole

PROMPTS, HELD_OUT = "prompts.jsonl", "held-out.jsonl"
#: The link's name, next to the demo's own directory, whose name depends on the recipe.
LINK = "demo"
COUNT = 4096


def publish(demo: Demo, recipe: Recipe | None = None) -> Path:
    """Write the demo's prompts next to its checkpoints, and link its directory as `demo`. Returns the link.

    Existing files are kept, because they would be written with the same bytes.
    """
    recipe = recipe or Recipe()
    words = draw(recipe.demonstrations, random.Random(f"prompts {recipe.seed}"))  # noqa: S311
    rows: dict[str, list[dict[str, object]]] = {
        PROMPTS: [{"messages": list(example.messages)} for example in islice(words, COUNT)],
        HELD_OUT: [with_answer(example) for example in demo.examples],
    }
    for name, of_file in rows.items():
        if not (demo.directory / name).exists():
            write_rows(demo.directory / name, of_file)
    link = demo.directory.with_name(LINK)
    if not link.is_symlink() or os.readlink(link) != demo.directory.name:
        unfinished = link.with_name(f".{LINK}.partial")
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(demo.directory.name, target_is_directory=True)
        unfinished.replace(link)
    return link


def with_answer(example: Example) -> dict[str, object]:
    """A prompt with its right answer, even if the example has a wrong one."""
    operation, _, word = example.messages[-1]["content"].partition(": ")
    return {"messages": list(example.messages), "answer": OPERATIONS[operation](word)}


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    """Write rows as JSONL. Returns the path."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path

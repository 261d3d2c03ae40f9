"""Where a demo is, whether it is complete, and how it is built only once for several processes."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densepath.demo.recipe import REFERENCE_BASE, REFERENCE_HALF, SFT, ProgressFn, Recipe
from densepath.demo.task import Example
from densepath.files import cache_directory, locked, whole_directory

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Demo:
    """A demo pair on disk. Each checkpoint is a model directory in Hugging Face form, with the tokenizer.

    `examples` are held-out prompts with their right responses. `measurements` are those of the builder.
    """

    directory: Path
    sft: Path
    reference_half: Path  # after half of the SFT's samples
    reference_base: Path  # before SFT
    examples: tuple[Example, ...]
    measurements: Mapping[str, Any]


def default_directory(recipe: Recipe | None = None) -> Path:
    """Where a recipe's demo is: `$XDG_CACHE_HOME/densepath/demo-<recipe hash>`, or under `~/.cache`."""
    return cache_directory(f"demo-{(recipe or Recipe()).hash}")


def build(directory: Path, progress: ProgressFn, recipe: Recipe | None = None) -> Demo:
    """The demo in `directory`, which is built first if it is missing.

    Two processes may call this at the same time: the second waits for the first. A build that is stopped in
    any way leaves nothing that counts as built. Raises FileExistsError if `directory` holds something else,
    and OSError if it cannot be written.
    """
    recipe, directory = recipe or Recipe(), directory.absolute()
    if demo := read(directory, recipe):
        return demo
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory.with_name(f".{directory.name}.lock")):
        if demo := read(directory, recipe):
            return demo
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise FileExistsError(
                errno.ENOTEMPTY, "the demo's directory holds something else", str(directory)
            )
        with whole_directory(directory) as partial:
            _fill(partial, recipe, progress)
    demo = read(directory, recipe)
    assert demo is not None  # noqa: S101  (it has just been written)
    return demo


def read(directory: Path, recipe: Recipe) -> Demo | None:
    """The demo that `recipe` built in `directory`, or None if there is none."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("recipe_hash") != recipe.hash:
        return None
    return Demo(
        directory=directory,
        sft=directory / SFT,
        reference_half=directory / REFERENCE_HALF,
        reference_base=directory / REFERENCE_BASE,
        examples=tuple(Example(tuple(e["messages"]), e["response"]) for e in manifest["examples"]),
        measurements=manifest["measurements"],
    )


def _fill(folder: Path, recipe: Recipe, progress: ProgressFn) -> None:
    from densepath.demo.builder import build_into

    examples, measurements = build_into(folder, recipe, progress)
    manifest = {
        "recipe_hash": recipe.hash,
        "recipe": asdict(recipe),
        "examples": [asdict(example) for example in examples],
        "measurements": measurements,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

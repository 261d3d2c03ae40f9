"""LoRA adapters as PEFT saves them: merged once into their base model, in the cache.

`whole_checkpoint` returns the directory of the merged model, which is then used like any other checkpoint.
Its name in the cache is derived from the contents of base and adapter, so a change of either causes a new
merge.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from densepath.errors import InvalidPairError, InvalidRequestError
from densepath.files import cache_directory, locked, whole_directory
from densepath.pair.checkpoint import ADAPTER_CONFIG, CONFIG, check_model, fingerprint, has_weights
from densepath.pair.hub import located, source_name
from densepath.pair.identity import Identities, changed, identify_all
from densepath.pair.text_half import text_half
from densepath.pair.weights import file_digest, read_tensors
from densepath.versions import installed_versions

WEIGHTS = "adapter_model.safetensors"
_PACKAGES = ("peft", "torch", "transformers", "densepath")
#: Only serve, check and score have the option.
_WAYS = f"give it by --base, or in {ADAPTER_CONFIG}"
#: Parts of the names of an adapter of a model of text and images.
_WITHIN_WHOLE = re.compile(r"\.(language_model|text_model|visual|vision_\w+)\.")
Say = Callable[[str], None]


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and not a whole model.

    axolotl writes the config.json of the base model beside an adapter.
    """
    return (directory / ADAPTER_CONFIG).is_file() and not has_weights(directory)


def has_adapter_weights(directory: Path) -> bool:
    """Whether a directory holds an adapter with its weights, in safetensors or pickled."""
    return is_adapter(directory) and any(directory.glob("adapter_model.*"))


def whole_checkpoint(
    directory: Path, base: Path | None, say: Say, prepare: Callable[[Path], Path] = lambda base: base
) -> Path:
    """The directory itself or, if it is an adapter, the directory of the merged model.

    `base` is the base model of an adapter. None takes the one that its config names: a directory, or a
    repository of the hub. `prepare` gives the directory to use instead of a base model's own. An adapter of a
    model of text and images is merged into the whole model or into its text half, whichever it was trained
    on. `say` is called before and after a merge, and for a repository.

    Raises InvalidRequestError if the base model is in neither place, and InvalidPairError if it has a fault
    or the adapter cannot be merged.
    """
    if not is_adapter(directory):
        return directory
    config = _read_config(directory)
    base = prepare(_base_of(directory, config, base, say))
    if not (directory / WEIGHTS).is_file():
        raise InvalidPairError(
            f"{directory} is an adapter without {WEIGHTS}: save it in safetensors, since pickled files are "
            "never loaded"
        )
    if find_spec("peft") is None:
        raise InvalidRequestError(
            f"{directory} is an adapter, which needs peft: install densepath with the extra cpu or cuda"
        )
    half = text_half(base, say)
    if not _is_of_whole_model(directory):
        base = half
    files = {folder: identify_all(folder) for folder in (base, directory)}
    name = source_name(directory.resolve()).replace("/", "--")
    target = cache_directory("merged") / f"{name}-{_key(files)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            _require_sound(half)
            say(f"merging the adapter {directory} into its base model {base}, once")
            _merge(directory, base, target, files)
            say(f"merged: {target}")
    return target


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidPairError(
            f"{directory / ADAPTER_CONFIG} cannot be read as the config of an adapter"
        ) from error
    if kind != "LORA":
        raise InvalidPairError(
            f"{directory} is an adapter of type {kind}: only LoRA can be merged; merge it yourself, and give "
            "the directory of the merged model"
        )
    if config.get("lora_alpha") == 0:
        raise InvalidPairError(
            f"{directory} has lora_alpha 0, with which an adapter changes nothing: write the value of the "
            f"training into {ADAPTER_CONFIG} (verl's merger leaves that to you)"
        )
    return dict(config)


def _base_of(directory: Path, config: dict[str, Any], base: Path | None, say: Say) -> Path:
    named = config.get("base_model_name_or_path")
    if base is None and not named:
        raise InvalidRequestError(f"{directory} is an adapter that names no base model: {_WAYS}")
    found = base or _base_that_it_names(directory, str(named), config.get("revision"), say)
    if not (found / CONFIG).is_file():
        hint = "--base must be the directory of a whole model" if base else _WAYS
        raise InvalidRequestError(
            f"{directory} is an adapter, and its base model {found} is not a model directory here: {hint}"
        )
    return found


def _base_that_it_names(directory: Path, name: str, revision: str | None, say: Say) -> Path:
    try:
        return located(name, say, revision=revision)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{directory} is an adapter of {name}: {error} ({_WAYS})") from error


def _is_of_whole_model(directory: Path) -> bool:
    """Whether an adapter was trained on a whole model of text and images."""
    names = read_tensors(directory / WEIGHTS, lambda *_: None) or {}
    return any(_WITHIN_WHOLE.search(name) for name in names)


def _require_sound(base: Path) -> None:
    """Raise InvalidPairError for a base model with a fault, because a merge would hide it."""
    problems: list[str] = []
    check_model(base, lambda *words: problems.append(": ".join(filter(None, words))))
    if problems:
        raise InvalidPairError(f"the base model {base}: {'; '.join(problems)}")


def _key(files: Mapping[Path, Identities]) -> str:
    """The fingerprint of everything that decides the merged model. `files` are those of base and adapter."""
    digests = [
        {name: file_digest(folder / name) for name in sorted(found)} for folder, found in files.items()
    ]
    return fingerprint(
        {
            "files": dict(zip(("base", "adapter"), digests, strict=True)),
            "packages": installed_versions(_PACKAGES),
        }
    )


def _merge(directory: Path, base: Path, target: Path, files: Mapping[Path, Identities]) -> None:
    """Merge in a child process, so that the memory of the model is free again afterwards.

    `files` are those of base and adapter as they were when the name of `target` was derived from them.
    """
    with whole_directory(target) as partial:
        command = [sys.executable, "-m", "densepath.pair.merge", str(directory), str(base), str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise InvalidPairError(f"the adapter {directory} cannot be merged into {base}: {lines[-1]}")
        if new := [folder / name for folder, before in files.items() for name in changed(folder, before)]:
            raise InvalidPairError(
                f"{new[0]} has changed while the adapter {directory} was merged: base and adapter must not "
                "change until the merge has ended; start again"
            )

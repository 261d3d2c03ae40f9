"""The output folder of another trainer: which two of its checkpoints are the pair.

checkpoint-N/      Hugging Face Trainer, TRL, axolotl, LLaMA-Factory: a model or an adapter after N steps
global_step_N/     verl: a model in huggingface/, or an adapter in lora_adapter/, both also within actor/
the folder itself  the model at the end of training, or the best one (load_best_model_at_end)

A step stands for its share of the training samples, because every step takes the same number of them. Pickled
files, such as training_args.bin, are never read.
"""

from __future__ import annotations

import filecmp
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densepath.errors import InvalidRequestError
from densepath.pair.adapters import has_adapter_weights
from densepath.pair.checkpoint import has_weights
from densepath.pair.runs import BASE, MANIFEST
from densepath.pair.shards import how_to_merge

_STATE = "trainer_state.json"
_NAME = re.compile(r"(checkpoint-|global_step_)([0-9]+)")
#: Where a model is within the folder of a checkpoint. An adapter comes first: verl's merger writes the base
#: model around it.
_HUGGINGFACE = ("huggingface/lora_adapter", "lora_adapter", "huggingface", "model/huggingface", ".")
_PLACES = (*(f"actor/{place}" for place in _HUGGINGFACE), *_HUGGINGFACE)
#: A reference is called far from the wanted share of the samples if it differs by more than this.
_FAR = 0.1


@dataclass(frozen=True)
class TrainerCheckpoint:
    """A checkpoint of another trainer: its name to people, and the steps of training that it has seen.

    `model` is the directory of the model or adapter, or of its shards.
    """

    name: str
    folder: Path
    step: int
    model: Path
    shards: bool = False


@dataclass(frozen=True)
class PickedPair:
    """The directories of two models or adapters, and whole sentences that say which ones and why."""

    sft: Path
    reference: Path
    account: str


def pick_pair(directory: Path, share: float) -> PickedPair:
    """The final checkpoint in the output folder of a trainer, and the one nearest to a share of its samples.

    Raises InvalidRequestError if the folder has no two checkpoints, if the weights of the two are in shards,
    or if it cannot be known which step the model in the folder itself is from.
    """
    saved = _saved(directory)
    itself = _checkpoint(directory, "the model in the folder itself", 0, ".")
    found = [*saved, *([itself] if itself else [])]
    if not found:
        raise InvalidRequestError(_no_run(directory))
    best = _best(directory, saved)
    sft, note = _final(found, saved, best)
    earlier = [checkpoint for checkpoint in saved if checkpoint.step < sft.step]
    if not earlier or share == 0:
        raise InvalidRequestError(_no_reference(directory, sft, earlier))
    reference = min(earlier, key=lambda checkpoint: abs(checkpoint.step - share * sft.step))
    _require_merged(sft, reference)
    reached = reference.step / sft.step
    far = f"No checkpoint is nearer to {share:.0%}: {_how_to_save(sft, share)}."
    account = (
        f"{directory}: the sft is {sft.name} (step {sft.step}), and the reference is {reference.name} "
        f"(step {reference.step}, {reached:.0%} of the sft's training samples).",
        note,
        far if abs(reached - share) > _FAR else "",
        f"Found: {', '.join(checkpoint.name for checkpoint in found)}.",
    )
    return PickedPair(sft.model, reference.model, " ".join(filter(None, account)))


def _saved(directory: Path) -> list[TrainerCheckpoint]:
    """The checkpoints in folders of their own, by step. Folders without weights are left out."""
    try:
        folders = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    except OSError as error:
        raise InvalidRequestError(
            f"{directory} is not a directory that can be read: give a run of `densepath sft`, or the output "
            "folder of another trainer"
        ) from error
    found = [_checkpoint(folder, folder.name, _step(folder), *_PLACES) for folder in folders]
    return sorted(filter(None, found), key=lambda checkpoint: checkpoint.step)


def _checkpoint(folder: Path, name: str, step: int, *places: str) -> TrainerCheckpoint | None:
    """The model, adapter or shards in a folder. None if it has none of them."""
    for place in (folder / each for each in places):
        if has_weights(place) or has_adapter_weights(place):
            return TrainerCheckpoint(name, folder, step, place)
    return TrainerCheckpoint(name, folder, step, folder, shards=True) if how_to_merge(folder) else None


def _step(folder: Path) -> int:
    return _number(folder, "global_step") or int(re.sub(r"\D", "", folder.name))


def _number(folder: Path, name: str) -> int | None:
    value = _state(folder).get(name)
    return value if isinstance(value, int) else None


def _state(folder: Path) -> dict[str, Any]:
    """What trainer_state.json says. Empty if it is not there or cannot be read."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _best(directory: Path, saved: Sequence[TrainerCheckpoint]) -> str | None:
    """The name of the best checkpoint by the trainer's own metric, unless that is the last one."""
    states = [_state(folder) for folder in (directory, *(each.folder for each in reversed(saved)))]
    path = next(
        (state["best_model_checkpoint"] for state in states if state.get("best_model_checkpoint")), None
    )
    name = Path(str(path)).name if path else None
    return name if saved and name != saved[-1].name else None


def _final(
    found: Sequence[TrainerCheckpoint], saved: Sequence[TrainerCheckpoint], best: str | None
) -> tuple[TrainerCheckpoint, str]:
    """The final checkpoint with its step, and a sentence about the best one or about the step.

    The trainers do not write the step of the model in the folder itself, so its weights are compared.
    """
    final = found[-1]
    advice = f"The best model by the trainer's own metric is {best}: name it by --sft to use it."
    if final in saved or not saved:
        return final, advice if best else ""
    last = saved[-1]
    written = _number(final.folder, "global_step")
    end = written or _number(last.folder, "max_steps") or last.step
    if best is None and end == last.step:
        return replace(final, step=end), ""
    for known in (each for each in saved if each.name in (best, last.name)):
        if _same_weights(final.model, known.model):
            equal = f"Its weights are those of {known.name}, the best model by the trainer's own metric."
            return replace(final, step=known.step), equal if known.name == best else advice if best else ""
    if best is not None:
        raise InvalidRequestError(
            f"{final.folder} has a best model, {best}, and a model in the folder itself that may be that one "
            "or the last one: name both checkpoints by --sft and --reference"
        )
    assumed = f"The folder does not give the step of its own model: {end}, the end of training, is assumed."
    return replace(final, step=end), "" if written else assumed


def _same_weights(one: Path, other: Path) -> bool:
    names = [sorted(path.name for path in place.glob("*.safetensors")) for place in (one, other)]
    if names[0] != names[1] or not names[0]:
        return False
    _, different, unreadable = filecmp.cmpfiles(one, other, names[0], shallow=False)
    return not different and not unreadable


def _require_merged(*checkpoints: TrainerCheckpoint) -> None:
    ways = [f"for {each.name}, {how_to_merge(each.folder)}" for each in checkpoints if each.shards]
    if ways:
        raise InvalidRequestError(f"weights in shards must be merged first: {'; '.join(ways)}")


def _how_to_save(checkpoint: TrainerCheckpoint, share: float) -> str:
    if checkpoint.name.startswith("global_step_"):
        return "train with a trainer.save_freq that saves there"
    return f"train with save_steps={share:g}, which saves one there, and with no save_total_limit below 2"


def _no_reference(directory: Path, sft: TrainerCheckpoint, earlier: Sequence[TrainerCheckpoint]) -> str:
    base = f"--sft {sft.model} --reference BASE"
    if earlier:
        return f"{directory} does not hold the base model, which --reference-at 0 asks for: give {base}"
    above = f", or give the folder above it, {directory.parent}" if _NAME.fullmatch(directory.name) else ""
    return (
        f"{directory} has one checkpoint only, {sft.name}, and a pair needs one from about half of the "
        f"training too: {_how_to_save(sft, 0.5)}, or give the base model as the reference: {base}{above}"
    )


def _no_run(directory: Path) -> str:
    unfinished = (
        "; if this is a run of `densepath sft`, it did not finish" if (directory / BASE).is_dir() else ""
    )
    return (
        f"{directory} is neither a run of `densepath sft`, which has a {MANIFEST}, nor the output folder of "
        "another trainer, which has a model, an adapter, or folders checkpoint-N or global_step_N with "
        f"weights{unfinished}"
    )

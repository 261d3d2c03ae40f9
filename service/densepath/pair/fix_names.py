"""`--fix-names`: checkpoints whose tensor names or config keys are odd in a known way.

`fixed_checkpoint` returns the directory of a copy under the usual names, which is then used like any other
checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.pair.checkpoint import CONFIG
from densepath.pair.odd_keys import find_odd_keys
from densepath.pair.rewrite import Change, Say, rewritten
from densepath.pair.tensor_names import Prefix
from densepath.pair.tensors import expected_tensors, find_prefixes
from densepath.pair.weights import Tensors, read_json, read_weights


def fixed_checkpoint(directory: Path, say: Say) -> Path:
    """The directory itself or, if something in it is odd, that of the corrected copy.

    `say` is called with what was renamed, once per kind. What cannot be corrected, or is wrong for another
    reason, is left for the check of the pair to report. Raises InvalidPairError if the copy cannot be
    written.
    """
    faults: list[str] = []
    raw = read_json(directory / CONFIG, lambda *words: faults.append(words[-1]))
    weights = read_weights(directory, lambda *words: faults.append(words[-1]))
    if raw is None or faults or raw.get("auto_map"):
        return directory
    odd = find_odd_keys(raw)
    said = [f"{CONFIG}: {line}" for line in odd.found]
    prefixes, names = _find_prefixes(odd.fixed, weights)
    said += [prefix.found for prefix in prefixes]
    if not said or odd.unclear:
        return directory
    for line in said:
        say(f"{directory}: {line}")
    renamed = [f"{old} is now {new}" for old, new in names.items() if old != new]
    if renamed:
        say(f"{directory}: renaming {len(renamed)} tensors: {renamed[0]}, and so on")
    change = Change(odd.fixed, names)
    target = rewritten(directory, weights, change, "renamed", lambda: say("writing the renamed copy, once"))
    say(f"using the renamed copy: {target}")
    return target


def _find_prefixes(
    config: Mapping[str, Any], weights: Mapping[str, Tensors]
) -> tuple[list[Prefix], dict[str, str]]:
    """The prefixes that explain a checkpoint's names, and each name → the usual one."""
    shapes = {name: tensor.shape for tensors in weights.values() for name, tensor in tensors.items()}
    loaded = load_fields(config)
    architectures = config.get("architectures")
    if loaded is not None and isinstance(architectures, list) and len(architectures) == 1:
        expected = expected_tensors(loaded, str(architectures[0]))
        if expected is not None:
            return find_prefixes(expected, shapes)
    return [], {name: name for name in shapes}


def load_fields(config: Mapping[str, Any]) -> Any:
    """The config that transformers makes of a config.json's fields. None if it refuses them."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    except Exception:  # the library raises many kinds
        return None

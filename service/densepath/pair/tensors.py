"""Checks that a checkpoint's tensors are those that its architecture needs, by name and shape.

transformers builds the model on the meta device, which costs no memory. The model shows which names and
shapes `save_pretrained` would write. Names of older versions are accepted if transformers maps them to the
same model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densepath.pair.tensor_names import (
    Prefix,
    Shapes,
    cause_of_missing,
    cause_of_unknown,
    describe_prefix,
    rename,
    some,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Buffers of old checkpoints that are computed nowadays. Engines and transformers ignore them.
_COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias|attn\.causal_mask|position_ids)$"
)
#: Architectures whose published checkpoints lack the prefix of the base model. vLLM and transformers add it.
_PREFIX_IS_OPTIONAL = frozenset({"BloomForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM"})
#: safetensors types of weights that are not quantised.
_FLOATS = frozenset({"F64", "F32", "BF16", "F16"})
#: How many prefixes are found one inside the other.
_WRAPPERS_INSIDE = 4
#: How a quantised weight is named → the names of its scales.
_SCALES = {
    "qweight": {"scales"},
    "weight_packed": {"weight_scale"},
    "weight": {"weight_scale", "weight_scale_inv", "scales", "scale", "SCB", "absmax", "weight.absmax"},
}
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(.*)$")


@dataclass(frozen=True)
class Expected:
    """The tensors that a checkpoint of one architecture holds.

    `tied`: names that may be absent → the name whose values they repeat. `floats`: names of floating-point
    tensors.
    """

    model: Any
    architecture: str
    shapes: Shapes
    tied: Mapping[str, str]
    floats: frozenset[str]


def expected_tensors(config: Any, architecture: str) -> Expected | None:
    """The tensors that transformers would save for a config, as `AutoConfig` reads it.

    None if it cannot build the model, or builds another class than `architecture`.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    try:
        with _quiet(), torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        if type(model).__name__ != architecture:
            return None
        saved = _saved(model, model.state_dict())
        tied = dict(model.all_tied_weights_keys)
        return Expected(
            model=model,
            architecture=architecture,
            shapes={name: tuple(tensor.shape) for name, tensor in saved.items()},
            tied={_saved_name(model, name): _saved_name(model, source) for name, source in tied.items()},
            floats=frozenset(name for name, tensor in saved.items() if tensor.is_floating_point()),
        )
    except Exception:  # an unknown class or a refused config: transformers raises many kinds
        return None


def describe_tensors(expected: Expected, shapes: Shapes) -> list[str]:
    """What is wrong with the tensors of a checkpoint, one line per kind of fault."""
    prefixes, names = find_prefixes(expected, shapes)
    found = [prefix.message for prefix in prefixes]
    shapes = {names[name]: shape for name, shape in shapes.items()}
    missing = [name for name in expected.shapes if name not in expected.tied and name not in shapes]
    unknown = [name for name in shapes if name not in expected.shapes and not _is_passed_over(expected, name)]
    if missing and unknown and _is_mapped(expected, shapes):
        return found
    return found + _describe(expected, shapes, missing, unknown)


def find_prefixes(expected: Expected, shapes: Shapes) -> tuple[list[Prefix], dict[str, str]]:
    """What is odd in the names of a checkpoint's tensors, and each name → the corrected one.

    A wrapper inside a wrapper is two prefixes. A prefix that may be absent is not odd. Two tensors are never
    given the same name.
    """
    found: list[Prefix] = []
    names = {name: name for name in shapes}
    for _ in range(_WRAPPERS_INSIDE):
        prefix = describe_prefix({names[name]: shape for name, shape in shapes.items()}, expected.shapes)
        if prefix is None:
            break
        renamed = {old: rename(new, prefix, expected.shapes) for old, new in names.items()}
        if len(set(renamed.values())) < len(renamed):
            break
        names = renamed
        if not (prefix.lacks and expected.architecture in _PREFIX_IS_OPTIONAL):
            found.append(prefix)
    return found, names


def _describe(expected: Expected, shapes: Shapes, missing: list[str], unknown: list[str]) -> list[str]:
    known = expected.shapes
    other = [name for name in shapes if name in known and shapes[name] != known[name]]
    found = []
    if missing:
        cause = cause_of_missing(missing, unknown, expected.model.config)
        found.append(
            f"lacks {len(missing)} of the {len(known) - len(expected.tied)} tensors that "
            f"{expected.architecture} needs ({some(missing)}): {cause}"
        )
    if unknown:
        found.append(
            f"has {len(unknown)} tensors that {expected.architecture} does not know ({some(unknown)}): "
            f"{cause_of_unknown(unknown, known)}"
        )
    if other:
        sizes = [f"{name} is {list(shapes[name])} instead of {list(known[name])}" for name in other]
        found.append(
            f"has {len(other)} tensors with another shape than config.json gives ({some(sizes)}): "
            "take the config.json and the weights from the same checkpoint"
        )
    return found


def tied_twice(expected: Expected, shapes: Shapes) -> list[tuple[str, str]]:
    """Both names of tied tensors that a checkpoint holds twice: their values must be the same."""
    return [pair for pair in expected.tied.items() if pair[0] in shapes and pair[1] in shapes]


def describe_dtypes(expected: Expected, dtypes: Mapping[str, str]) -> list[str]:
    """What is wrong with the types of tensors, given by name: weights stored as integers or in 8 bits."""
    other = [
        f"{name} is {dtype}"
        for name, dtype in dtypes.items()
        if name in expected.floats and dtype not in _FLOATS
    ]
    if not other:
        return []
    return [
        f"has {len(other)} tensors that are not floats of 16 bits or more ({some(other)}): store them as "
        "floats, or put the quantization_config that they need into config.json"
    ]


def describe_quantised(expected: Expected, dtypes: Mapping[str, str]) -> list[str]:
    """What a quantised checkpoint lacks, given the types of its tensors by name: weights, or their scales.

    Tensors under names that the architecture does not have may be other names for what seems to be missing.
    So nothing is called missing then.
    """
    ends: dict[str, set[str]] = {}
    for name in dtypes:
        module, _, end = name.rpartition(".")
        ends.setdefault(module, set()).add(end)
    bare = [
        f"{module}.{weight}"
        for module, held in ends.items()
        for weight, scales in _SCALES.items()
        if weight in held and dtypes[f"{module}.{weight}"] not in _FLOATS and not held & scales
    ]
    known = {name.rpartition(".")[0] for name in expected.shapes}
    missing = [
        name
        for name in expected.shapes
        if name not in dtypes
        and name not in expected.tied
        and not (name.endswith(".weight") and ends.get(name.removesuffix(".weight"), set()) & _SCALES.keys())
    ]
    found = []
    if bare:
        found.append(
            f"has {len(bare)} quantised weights without their scales ({some(bare)}): they were lost when the "
            "checkpoint was saved or converted; save all of it again"
        )
    if missing and ends.keys() <= known:
        found.append(
            f"lacks {len(missing)} of the tensors that {expected.architecture} needs ({some(missing)}): "
            f"{cause_of_missing(missing, [], expected.model.config)}"
        )
    return found


def _saved(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, Any] = revert_weight_conversion(model, state)
    return saved


def _saved_name(model: Any, name: str) -> str:
    return next(iter(_saved(model, {name: model.get_parameter_or_buffer(name)})))


def _is_passed_over(expected: Expected, name: str) -> bool:
    patterns = expected.model._keys_to_ignore_on_load_unexpected or ()
    return bool(_COMPUTED.search(name)) or any(re.search(pattern, name) for pattern in patterns)


def _is_mapped(expected: Expected, shapes: Shapes) -> bool:
    """Whether transformers accepts every tensor under these names, and lacks none."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    if not _experts_are_whole(shapes):
        return False
    model = expected.model
    loading = LoadStateDictConfig(
        device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(model), dtype=model.dtype
    )
    tensors = {
        name: torch.empty(shape, device="meta", dtype=model.dtype)
        for name, shape in shapes.items()
        if not _is_passed_over(expected, name)
    }
    try:
        with _quiet():
            info, _ = convert_and_load_state_dict_in_model(model, tensors, loading)
    except Exception:  # tensors that do not fit together: each operation raises its own kind
        return False
    absent = info.missing_keys - model.all_tied_weights_keys.keys()
    unknown = [name for name in info.unexpected_keys if not _is_passed_over(expected, name)]
    return not (absent or unknown or info.mismatched_keys or info.conversion_errors)


def _experts_are_whole(shapes: Shapes) -> bool:
    """False if an expert's number is missing: transformers would give the other experts wrong numbers."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for name in shapes:
        if match := _EXPERT.match(name):
            numbers.setdefault((match[1], match[3]), set()).add(int(match[2]))
    return all(found == set(range(len(found))) for found in numbers.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off transformers' progress bar and warnings. This module reports everything that matters."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()

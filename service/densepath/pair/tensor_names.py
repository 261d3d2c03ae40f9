"""What the names of tensors show: which wrapper they were saved from, and what else was saved."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: A tensor's name → its shape.
Shapes = Mapping[str, tuple[int, ...]]

#: Says who does what a message asks for.
FIX_NAMES = "--fix-names of serve, check and score does that"
#: Parts that wrappers add anywhere in a name, and the cause to report.
_WRAPPERS = {
    "_orig_mod.": "was saved from a compiled model",
    "_fsdp_wrapped_module.": "was saved from a model that FSDP wraps",
    "_checkpoint_wrapped_module.": "was saved from a model with wrapped activation checkpointing",
    "module.": "was saved from a wrapped model (DDP or DeepSpeed)",
    "language_model.": "was saved from a model of text and images that contains this one",
}
_ADAPTER = re.compile(
    r"(^|\.)(lora_[A-Za-z_]+|base_layer|modules_to_save|original_module|ia3_l|trainable_tokens_\w+)(\.|$)"
)
_HEAD = re.compile(
    r"(^|\.)(v_head|value_head|score|classifier|reward_head|qa_outputs|regression_head|summary)(\.|$)"
)
_QUANTISED = re.compile(
    r"(qweight|qzeros|scales|g_idx|weight_scale|weight_scale_inv|weight_packed|absmax|quant_map|"
    r"bitsandbytes__\w+)$"
)
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Prefix:
    """An extra part in names or, with `lacks`, a part that is missing at their start.

    `found` says how many names are odd, with the first of them, and why. `remedy` says what is to be done.
    """

    part: str
    lacks: bool
    found: str
    remedy: str

    @property
    def message(self) -> str:
        """One line for a checkpoint that is not renamed."""
        return f"{self.found}; {self.remedy} ({FIX_NAMES})"


def describe_prefix(shapes: Shapes, known: Shapes) -> Prefix | None:
    """The wrapper, or the missing prefix, that explains most of the unknown names."""
    strange = [name for name in shapes if name not in known]
    for part, cause in _WRAPPERS.items():
        wrapped = [name for name in strange if _without(name, part) != name]
        if any(_without(name, part) in known for name in wrapped):
            found = f"{len(wrapped)} names hold `{part}` ({some(wrapped)}): the checkpoint {cause}"
            return Prefix(part, False, found, f"strip `{part}` from every name")
    plain = [name for name in strange if not _ADAPTER.search(name)]
    heads = {name.partition(".")[2]: name.partition(".")[0] + "." for name in known if name.count(".") > 1}
    lost: Counter[str] = Counter(
        heads[name] for name in plain if name in heads and heads[name] + name not in shapes
    )
    if head := _of_most(lost, plain):
        bare = [name for name in plain if head + name in known]
        found = (
            f"{len(bare)} names lack `{head}` ({some(bare)}): the checkpoint was saved from the model "
            "without its head"
        )
        return Prefix(head, True, found, f"add `{head}` at their start, or save the model with its head")
    added = Counter(
        name.removesuffix(end) for name in plain for end in _ends(name) if end in known and end not in shapes
    )
    if around := _of_most(added, plain):
        wrapped = [name for name in strange if name.startswith(around)]
        found = (
            f"{len(wrapped)} names begin with `{around}` ({some(wrapped)}): the checkpoint was saved from a "
            "larger model that contains this one"
        )
        return Prefix(around, False, found, f"strip `{around}` from every name")
    return None


def rename(name: str, prefix: Prefix, known: Shapes) -> str:
    """The corrected name of a tensor."""
    if prefix.lacks:
        return prefix.part + name if prefix.part + name in known else name
    return name if name in known else _without(name, prefix.part)


def cause_of_missing(missing: list[str], unknown: list[str], config: Any) -> str:
    """The likely cause of missing tensors, and what to do."""
    if unknown and any(map(_ADAPTER.search, unknown)):
        return "an adapter is in their place; merge it into the model and save it again"
    if all(name.endswith(("lm_head.weight", "embed_out.weight")) for name in missing):
        return (
            "config.json does not tie it to the embedding; if the model was trained with a tied head, set "
            "tie_word_embeddings to true, otherwise save the head too"
        )
    layers = {int(match[1]) for name in missing if (match := _LAYER.search(name))}
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    if layers and isinstance(count, int) and len(layers) < count and layers == set(range(min(layers), count)):
        whole = len(missing) // len(layers)
        if whole > 3:
            return f"config.json gives {count} layers (num_hidden_layers); are the last ones in another file?"
    return "they were lost when the checkpoint was saved, converted or merged; save all of it again"


def cause_of_unknown(unknown: list[str], known: Iterable[str]) -> str:
    """The likely cause of unknown tensors, and what to do."""
    if any(map(_ADAPTER.search, unknown)):
        return "an adapter was left in; merge it into the model and save it again"
    if any(map(_HEAD.search, unknown)):
        return "the head of a value or reward model was saved with it; save the language model alone"
    if any(map(_QUANTISED.search, unknown)):
        return "the weights are quantised, but config.json has no quantization_config; save both together"
    shared = {_LAYER.sub(".N.", name) for name in known}
    if all(_LAYER.sub(".N.", name) in shared for name in unknown):
        return "config.json gives fewer layers or experts; take it and the weights from the same checkpoint"
    return "config.json may belong to another model; save the language model alone, and with its config.json"


def some(names: list[str], shown: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _without(name: str, part: str) -> str:
    return re.sub(rf"(^|(?<=\.)){re.escape(part)}", "", name)


def _of_most(parts: Counter[str], names: list[str]) -> str | None:
    """The part that occurs in more than half of the names."""
    return next((part for part, count in parts.most_common(1) if 2 * count > len(names)), None)


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(1, len(parts))]

"""The language model within a model of text and images, as a checkpoint of its own.

For a text, the whole model computes what its language model computes, so only the tensors of the language
model are kept, under the names of a `*ForCausalLM` class. M-RoPE positions are the same on all axes for a
text, which is plain rotary embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.errors import InvalidPairError
from densepath.pair.checkpoint import CONFIG, HALVED, QUANTISED
from densepath.pair.fix_names import load_fields
from densepath.pair.odd_keys import find_odd_keys
from densepath.pair.rewrite import Change, Say, rewritten
from densepath.pair.tensors import expected_tensors
from densepath.pair.weights import Tensors, read_json, read_weights

#: Model types of language models that have no causal class of their own → the type of the same model.
_SAME_MODEL = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
#: Names of a language model's tensors begin with one of these, by version and architecture.
_LANGUAGE_MODEL = re.compile(r"^(model\.)?(language_model|text_model)\.(?=(model\.|lm_head\.)?)")
#: Belong to M-RoPE alone.
_AXES = frozenset({"mrope_section", "mrope_interleaved", "type"})


def text_half(directory: Path, say: Say) -> Path:
    """The directory itself or, if it holds a model of text and images, that of its language model.

    `say` is called if there is a language model. What cannot be used is left for the check of the pair to
    report. Raises InvalidPairError if the copy cannot be written.
    """
    faults: list[str] = []
    raw = read_json(directory / CONFIG, lambda *words: faults.append(words[-1]))
    if raw is None or not is_whole(raw) or raw.get("auto_map"):
        return directory
    odd = find_odd_keys(raw)
    if odd.found or odd.unclear:
        return directory
    weights = read_weights(directory, lambda *words: faults.append(words[-1]))
    loaded = load_fields(raw)
    config = _text_config(loaded) if loaded is not None else None
    text = load_fields(config) if config is not None else None
    expected = (
        expected_tensors(text, config["architectures"][0])
        if config is not None and text is not None
        else None
    )
    if faults or config is None or expected is None:
        return directory
    if any(raw.get(name) for name in QUANTISED):
        raise InvalidPairError(
            f"{directory} is a quantised model of text and images, whose text half is not read: give the "
            "model that was quantised"
        )
    names = _names(weights, expected.shapes)
    if not names:
        first = next(iter(next(iter(weights.values()))))
        raise InvalidPairError(
            f"{directory} is a model of text and images, but no tensor has the name of one of a language "
            f"model (the first is {first}): save it with save_pretrained of transformers"
        )
    say(f"{directory}: {len(names)} tensors are those of the language model {config['architectures'][0]}")
    change = Change(config, names)
    target = rewritten(directory, weights, change, "text", lambda: say("writing the text half, once"))
    say(f"using the text half: {target}")
    return target


def is_whole(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model of text and images whose text half is known."""
    return config.get("model_type") in HALVED


def _text_config(loaded: Any) -> dict[str, Any] | None:
    """The fields of the text half's config.json. None if no causal class is known for it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = loaded.get_text_config()
    fields: dict[str, Any] = text.to_dict()
    model_type = _SAME_MODEL.get(text.model_type, text.model_type)
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    if model_type != text.model_type and isinstance(fields.get("rope_parameters"), dict):
        rope = fields["rope_parameters"]
        fields["rope_parameters"] = {key: value for key, value in rope.items() if key not in _AXES}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if fields.get(name) is None:
            fields[name] = getattr(loaded, name, None)
    return fields | {
        "model_type": model_type,
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]],
        "tie_word_embeddings": bool(loaded.tie_word_embeddings),  # the whole model's head is tied by its own
    }


def _names(weights: Mapping[str, Tensors], known: Mapping[str, Any]) -> dict[str, str]:
    """Each of the language model's tensors → its name in the text half."""
    names = {}
    for tensors in weights.values():
        for name in tensors:
            bare, found = _LANGUAGE_MODEL.subn("", name)
            if found:
                names[name] = bare if bare.startswith(("model.", "lm_head.")) else f"model.{bare}"
            elif name in known:
                names[name] = name
    return names

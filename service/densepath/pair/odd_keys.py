"""Fields of config.json that transformers and vLLM read wrong without a word, and how to write them right.

Old names that transformers reads right (`rope_theta`, `rope_scaling`, `type`, `torch_dtype`) are no faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Names for the base of the rotary frequencies, and for the share of a head that is rotated.
_THETA = ("rope_theta", "rotary_emb_base", "rope_base")
_SHARE = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent", "rotary_emb_fraction")
#: Old names of rope types that transformers does not know.
_OLD_TYPES = {"su": "longrope"}
#: Types that mean the same in the two fields of one config, as published.
_SAME_TYPES = {**_OLD_TYPES, "mrope": "default"}
#: Within a config of several models, the one of the language model.
_TEXT = "text_config"


@dataclass
class OddKeys:
    """What is odd in a config.json: `found` has one line per fault that `fixed` corrects.

    `unclear` has one line per fault that only the user can correct.
    """

    fixed: dict[str, Any]
    found: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)


def find_odd_keys(raw: Mapping[str, Any]) -> OddKeys:
    """Examine the rope fields of a config.json, also those of its text_config."""
    odd = OddKeys(dict(raw))
    _examine(odd, odd.fixed, "")
    if isinstance(raw.get(_TEXT), dict):
        text = odd.fixed[_TEXT] = dict(raw[_TEXT])
        _examine(odd, text, f"{_TEXT}.")
    return odd


def find_ignored_keys(raw: Mapping[str, Any], loaded: Any) -> list[str]:
    """One line for each rope value in a config.json that transformers has not taken over into `loaded`."""
    text = raw.get(_TEXT) if isinstance(raw.get(_TEXT), dict) else raw
    rope = getattr(loaded.get_text_config(), "rope_parameters", None)
    if text is None or not isinstance(rope, dict) or not _is_flat(rope):
        return []
    read = {
        "rope_theta": rope.get("rope_theta"),
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
    }
    found = []
    for name, synonyms in (("rope_theta", _THETA), ("partial_rotary_factor", _SHARE)):
        given = {key: text[key] for key in synonyms if _is_number(text.get(key))}
        wrong = {key: value for key, value in given.items() if value != read[name]}
        if wrong and read[name] is not None:
            key, value = next(iter(wrong.items()))
            found.append(
                f"gives {key} {value:g}, but transformers reads {read[name]:g}: write the right value as "
                f"{name} into rope_parameters, and remove {key}"
            )
    return found


def _examine(odd: OddKeys, config: dict[str, Any], where: str) -> None:
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if isinstance(rope, dict) and _is_flat(rope):
            config[name] = _with_known_type(odd, rope, where + name)
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    if not (isinstance(new, dict) and isinstance(old, dict) and new and old):
        return
    clash = {key for key in new.keys() & old.keys() - {"rope_type", "type"} if new[key] != old[key]}
    types = {rope.get("rope_type", rope.get("type")) for rope in (new, old)} - {None, "default"}
    if clash or len(types) > 1 or not _is_flat(new):
        odd.unclear.append(
            f"has both {where}rope_parameters and {where}rope_scaling, and they contradict each other: keep "
            "the right one"
        )
        return
    theta = {"rope_theta"} if config.get("rope_theta") == new.get("rope_theta") else set()
    lost = sorted(new.keys() - old.keys() - theta - {"rope_type", "type"})
    if not lost:
        return
    odd.found.append(
        f"has both {where}rope_parameters and {where}rope_scaling, and {', '.join(lost)} in the first would "
        "be ignored: put all of it into rope_parameters"
    )
    config["rope_parameters"] = {**new, **old}
    del config["rope_scaling"]


def _with_known_type(odd: OddKeys, rope: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The parameters with a type that transformers knows."""
    kinds = [rope[key] for key in ("rope_type", "type") if rope.get(key) is not None]
    if len({_SAME_TYPES.get(kind, kind) for kind in kinds}) > 1:
        odd.unclear.append(
            f"gives two types in {where} ({' and '.join(map(str, kinds))}): keep the right one"
        )
    if rope.get("factor") not in (None, 1, 1.0) and {*kinds} <= {"default", "mrope"}:
        odd.unclear.append(
            f"gives a factor in {where} without a type that uses it, so it would be ignored: add the right "
            "rope_type, such as linear, dynamic or yarn"
        )
    first = kinds[0] if kinds else None
    if first not in _OLD_TYPES:
        return dict(rope)
    odd.found.append(f"calls the type in {where} {first}, which is now called {_OLD_TYPES[first]}")
    return {key: value for key, value in rope.items() if key != "type"} | {"rope_type": _OLD_TYPES[first]}


def _is_flat(rope: Mapping[str, Any]) -> bool:
    """False for parameters by the type of the layers."""
    return not any(isinstance(value, dict) for value in rope.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""One model directory: its config, its tokenizer and the files of its weights. No code in it is run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densepath.errors import InvalidRequestError
from densepath.pair.identity import Identities, identify_all
from densepath.pair.odd_keys import find_ignored_keys, find_odd_keys
from densepath.pair.tensor_names import FIX_NAMES
from densepath.pair.tensors import (
    describe_dtypes,
    describe_quantised,
    describe_tensors,
    expected_tensors,
    tied_twice,
)
from densepath.pair.tokenizer_files import REMOTE_CODE, TOKENIZER, TokenizerIdentity, as_ids, read_tokenizer
from densepath.pair.unreadable import unfinished
from densepath.pair.weights import INDEX, WEIGHTS, Report, Tensors, read_json, read_weights, same_values

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"

#: Config fields that describe who wrote the file. They change no score.
_VOLATILE = frozenset({"transformers_version", "_name_or_path", "_commit_hash", "_from_model_config"})
#: Names in configs for the context length.
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
#: Classes of causal language models with another kind of name.
_OTHER_CLASSES = frozenset({"GPT2LMHeadModel"})
#: Model types of text and images whose text half is known (`densepath.pair.text_half`).
HALVED = frozenset(
    {
        "exaone4_5",
        "gemma3",
        "gemma4",
        "idefics3",
        "internvl",
        "llama4",
        "llava",
        "llava_next",
        "llava_onevision",
        "mistral3",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_vl",
        "smolvlm",
    }
)
#: Fields of a config whose weights are quantised.
QUANTISED = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class Config:
    """What config.json and generation_config.json say. `stable` is both, without fields that change no score.

    `loaded` is config.json as transformers reads it.
    """

    architecture: str
    embedding_size: int  # rows
    context_length: int  # tokens
    eos_token_ids: frozenset[int]
    stable: Mapping[str, Any]
    loaded: Any = field(repr=False)

    @property
    def quantisation(self) -> str | None:
        """How the weights are quantised, in words, or None if config.json does not say that they are."""
        given = next(filter(None, map(self.stable["config"].get, QUANTISED)), None)
        return None if given is None else _describe_quantisation(given)


@dataclass(frozen=True)
class Checkpoint:
    """A model directory. Parts that could not be read are None or left out, and have been reported.

    `files` are its files as they were before any of them was read. `notes` are whole sentences about things
    that are worth knowing but are not faults.
    """

    directory: Path
    config: Config | None
    tokenizer: TokenizerIdentity | None
    weights: Mapping[str, Tensors]
    files: Identities = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WholeCheckpoint(Checkpoint):
    """A model directory without faults."""

    config: Config
    tokenizer: TokenizerIdentity


def require_checkpoint(directory: Path, option: str = "") -> WholeCheckpoint:
    """The checkpoint in `directory`, which the user gave in `option`.

    Raises InvalidRequestError, with everything that is wrong, if it has a fault.
    """
    problems: list[str] = []
    found = read_checkpoint(directory, lambda *words: problems.append(": ".join(filter(None, words))))
    if problems or found.config is None or found.tokenizer is None:
        raise InvalidRequestError(f"{option} {directory}: {'; '.join(problems)}".lstrip())
    return WholeCheckpoint(
        directory, found.config, found.tokenizer, found.weights, files=found.files, notes=found.notes
    )


def has_weights(directory: Path) -> bool:
    """Whether a directory holds the weights of a whole model, in safetensors or pickled."""
    found = (directory.glob(name) for name in (WEIGHTS, INDEX, "pytorch_model*.bin"))
    return any(True for paths in found for _ in paths)


def read_checkpoint(directory: Path, report: Report) -> Checkpoint:
    """Read everything in a checkpoint except its tensors, and report everything that is wrong."""
    try:
        with os.scandir(directory):
            pass
    except OSError as error:
        report("", _no_directory(error))
        return Checkpoint(directory, None, None, {})
    files = identify_all(directory)
    notes: list[str] = []
    config = _read_config(directory, report)
    tokenizer = read_tokenizer(directory, report) if config else None
    if config and tokenizer and tokenizer.vocab_size > config.embedding_size:
        report(
            TOKENIZER,
            f"has ids up to {tokenizer.vocab_size - 1}, but the embedding has {config.embedding_size} rows: "
            "vocab_size must be larger than every id",
        )
    weights = _read_tensors(directory, config, report, notes)
    return Checkpoint(directory, config, tokenizer, weights, files, tuple(notes))


def check_model(directory: Path, report: Report) -> None:
    """Report everything that is wrong in a model directory except its tokenizer."""
    _read_tensors(directory, _read_config(directory, report), report, [])


def _read_tensors(
    directory: Path, config: Config | None, report: Report, notes: list[str]
) -> Mapping[str, Tensors]:
    weights = read_weights(directory, report)
    if config and weights:
        _check_tensors(directory, config, weights, report, notes)
    return weights


def _no_directory(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read by this user: give the directory read and search permission"
    return "is not a directory: it must be a model directory in Hugging Face form"


def _check_tensors(
    directory: Path, config: Config, weights: Mapping[str, Tensors], report: Report, notes: list[str]
) -> None:
    """Report tensors that are missing, unknown, of another shape, or tied but with different values."""
    expected = expected_tensors(config.loaded, config.architecture)
    if expected is None:
        notes.append(
            f"transformers cannot build {config.architecture} from config.json, so the tensors were not "
            "compared with the architecture."
        )
        return
    file = INDEX if len(weights) > 1 else next(iter(weights))
    held = {name: tensor for tensors in weights.values() for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in held.items()}
    if config.quantisation:
        notes.append(
            f"The weights are quantised ({config.quantisation}), so the shapes of their tensors were not "
            "compared with the architecture."
        )
        for problem in describe_quantised(expected, dtypes):
            report(file, problem)
        return
    shapes = {name: tensor.shape for name, tensor in held.items()}
    problems = describe_tensors(expected, shapes)
    problems += describe_dtypes(expected, dtypes)
    for problem in problems:
        report(file, problem)
    for name, source in () if problems else tied_twice(expected, shapes):
        if not same_values(directory, weights, name, source):
            report(
                file,
                f"{name} differs from {source}, but config.json ties them: set tie_word_embeddings to false, "
                f"or remove {name}",
            )


def _describe_quantisation(given: Any) -> str:
    """The method and the bits of the weights, such as "gptq, 4 bits"."""
    if not isinstance(given, Mapping):
        return "by an unknown method"
    bits = sorted({f"{bits} bits" for bits in _all_bits(given)})
    return ", ".join([str(given.get("quant_method", "compressed-tensors")), *bits])


def _all_bits(node: Any) -> Iterator[int]:
    """The bits of the weights, in the forms of all quantisers."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if name in ("bits", "w_bit", "num_bits") and isinstance(value, int):
            yield value
        elif name in ("load_in_4bit", "load_in_8bit") and value is True:
            yield 4 if "4" in name else 8
        elif name not in ("input_activations", "output_activations", "kv_cache_scheme"):
            yield from _all_bits(value)


def fingerprint(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form, 32 hex characters."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _read_config(directory: Path, report: Report) -> Config | None:
    if not os.path.lexists(directory / CONFIG):
        if os.path.lexists(directory / ADAPTER_CONFIG):
            report(
                CONFIG,
                f"is missing, and {ADAPTER_CONFIG} is there: this is an adapter, and a whole model is "
                "needed here; merge it into its base model, and give the merged model",
            )
        else:
            report(CONFIG, f"is missing{unfinished(directory)}: a model directory must have one")
        return None
    raw = read_json(directory / CONFIG, report)
    generation: dict[str, Any] | None = {}
    if os.path.lexists(directory / GENERATION_CONFIG):
        generation = read_json(directory / GENERATION_CONFIG, report)
    if raw is None:
        return None
    architecture = _architecture(raw, report)
    if raw.get("auto_map"):
        report(CONFIG, REMOTE_CODE)
        return None
    loaded = _load_config(directory, raw, report)
    if architecture is None or loaded is None or generation is None:
        return None
    text = loaded.get_text_config()
    rows = _size(text, "vocab_size")
    limit = next(filter(None, (_size(text, name) for name in _LIMITS)), None)
    if rows is None:
        report(CONFIG, "has no vocab_size: it must give the number of the embedding's rows")
    if limit is None:
        report(CONFIG, "has no max_position_embeddings: it must give the model's context length")
    if rows is None or limit is None:
        return None
    return Config(
        architecture=architecture,
        embedding_size=rows,
        context_length=limit,
        eos_token_ids=as_ids(getattr(text, "eos_token_id", None)) | as_ids(generation.get("eos_token_id")),
        stable={"config": _without_volatile(raw), "generation_config": _without_volatile(generation)},
        loaded=loaded,
    )


def _architecture(raw: Mapping[str, Any], report: Report) -> str | None:
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        report(CONFIG, "has no architectures: it must name the model's class")
        return None
    name = str(architectures[0])
    if len(architectures) == 1 and (name.endswith("ForCausalLM") or name in _OTHER_CLASSES):
        return name
    if raw.get("model_type") in HALVED:
        report(
            CONFIG, f"names {name}, a model of text and images: only serve, check and score use its text half"
        )
    elif name.endswith("ForConditionalGeneration"):
        report(
            CONFIG,
            f"names {name}, which is not a language model alone: save its language model as a *ForCausalLM "
            "checkpoint, and give that",
        )
    else:
        report(CONFIG, "names another architecture: it must be one *ForCausalLM class")
    return None


def _load_config(directory: Path, raw: Mapping[str, Any], report: Report) -> Any:
    from transformers import AutoConfig

    odd = find_odd_keys(raw)
    for line in odd.found:
        report(CONFIG, f"{line} ({FIX_NAMES})")
    for line in odd.unclear:
        report(CONFIG, line)
    if odd.found or odd.unclear:
        return None
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        config.get_text_config()  # raises where there are two
        for line in find_ignored_keys(raw, config):
            report(CONFIG, line)
        return config
    except Exception:  # the library raises many kinds; their messages repeat the file and its path
        report(
            CONFIG,
            "is refused by transformers: its model_type must be known, and its fields must have valid types",
        )
        return None


def _size(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_volatile(inner) for name, inner in value.items() if name not in _VOLATILE}
    return [_without_volatile(inner) for inner in value] if isinstance(value, list) else value

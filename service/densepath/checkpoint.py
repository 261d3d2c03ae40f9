"""One model directory: its config, its tokenizer, its weights' files. Nothing that it brings is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.weights import Report, Tensors, read_json, read_weights

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

#: Config fields that say who wrote the file, and change no score.
_VOLATILE = frozenset({"transformers_version", "_name_or_path", "_commit_hash", "_from_model_config"})
#: What configs call the longest sequence that the model takes.
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_REMOTE_CODE = "has an auto_map: remote code is never run, so the checkpoint must load without it"


@dataclass(frozen=True)
class Config:
    """What config.json and generation_config.json say. `stable` is both, without what changes no score."""

    architecture: str
    embedding_size: int  # rows
    context_length: int  # tokens
    eos_token_ids: frozenset[int]
    stable: Mapping[str, Any]


@dataclass(frozen=True)
class Tokenizer:
    """What decides ids: `fields` by name, the chat template apart. `vocab_size` is the largest id + 1."""

    fields: Mapping[str, Any]
    chat_template: Any
    vocab_size: int
    eos_token_ids: frozenset[int]


@dataclass(frozen=True)
class Checkpoint:
    """A model directory; what could not be read is None or left out, and has been reported."""

    directory: Path
    config: Config | None
    tokenizer: Tokenizer | None
    weights: Mapping[str, Tensors]


def read_checkpoint(directory: Path, report: Report) -> Checkpoint:
    """Read everything of a checkpoint but its tensors, and report each thing that is wrong."""
    if not directory.is_dir():
        report("", "is not a directory: it must be a model directory in Hugging Face form")
        return Checkpoint(directory, None, None, {})
    config = _read_config(directory, report)
    tokenizer = read_tokenizer(directory, report) if config else None
    if config and tokenizer and tokenizer.vocab_size > config.embedding_size:
        report(
            TOKENIZER,
            f"has ids up to {tokenizer.vocab_size - 1}, and the embedding has {config.embedding_size} rows: "
            "vocab_size must be larger than every id",
        )
    return Checkpoint(directory, config, tokenizer, read_weights(directory, report))


def fingerprint(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form, 32 hex characters."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _read_config(directory: Path, report: Report) -> Config | None:
    if not (directory / CONFIG).is_file():
        report(CONFIG, "is missing: a model directory must have one")
        return None
    raw = read_json(directory / CONFIG, report)
    generation: dict[str, Any] | None = {}
    if (directory / GENERATION_CONFIG).is_file():
        generation = read_json(directory / GENERATION_CONFIG, report)
    if raw is None:
        return None
    architecture = _architecture(raw, report)
    if raw.get("auto_map"):
        report(CONFIG, _REMOTE_CODE)
        return None
    loaded = _load_config(directory, report)
    if architecture is None or loaded is None or generation is None:
        return None
    rows = _size(loaded, "vocab_size")
    limit = next(filter(None, (_size(loaded, name) for name in _LIMITS)), None)
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
        eos_token_ids=_ids(getattr(loaded, "eos_token_id", None)) | _ids(generation.get("eos_token_id")),
        stable={"config": _without_volatile(raw), "generation_config": _without_volatile(generation)},
    )


def _architecture(raw: Mapping[str, Any], report: Report) -> str | None:
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        report(CONFIG, "has no architectures: it must name the model's class")
        return None
    if len(architectures) != 1 or not str(architectures[0]).endswith("ForCausalLM"):
        report(CONFIG, "names another architecture: it must be one *ForCausalLM class")
        return None
    return str(architectures[0])


def _load_config(directory: Path, report: Report) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        return config.get_text_config()
    except Exception:  # the library raises many kinds; their messages repeat the file and its path
        report(
            CONFIG,
            "is refused by transformers: its model_type must be known and its fields of the right type",
        )
        return None


def read_tokenizer(directory: Path, report: Report) -> Tokenizer | None:
    """The tokenizer in a directory, or None with the reason reported."""
    if (directory / TOKENIZER_CONFIG).is_file():
        raw = read_json(directory / TOKENIZER_CONFIG, report)
        if raw is None:
            return None
        if raw.get("auto_map"):
            report(TOKENIZER_CONFIG, _REMOTE_CODE)
            return None
    if not (directory / TOKENIZER).is_file():
        report(TOKENIZER, "is missing: the tokenizer must be saved in its fast form")
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        if tokenizer.is_fast:
            return _identity(tokenizer)
    except Exception:  # the library raises many kinds; their messages repeat the file and its path
        report(TOKENIZER, "is refused by transformers: it must be a tokenizer as save_pretrained writes it")
        return None
    report(TOKENIZER_CONFIG, "names a tokenizer class without a fast form: it must have one")
    return None


def _identity(tokenizer: Any) -> Tokenizer:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Each call sets truncation and padding anew: they are no part of the tokenizer.
    for name in ("version", "truncation", "padding"):
        backend.pop(name, None)
    model = backend.pop("model")
    special = tokenizer.special_tokens_map.items()
    return Tokenizer(
        fields={
            "vocabulary": model.pop("vocab"),
            "merges": model.pop("merges", None),
            "model settings": model,
            **{name.replace("_", " "): value for name, value in backend.items()},
            **{f"{name.removesuffix('_token').upper()} token": str(value) for name, value in special},
        },
        chat_template=tokenizer.chat_template,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        eos_token_ids=_ids(tokenizer.eos_token_id),
    )


def _size(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None


def _ids(value: Any) -> frozenset[int]:
    ids = value if isinstance(value, list) else [value]
    return frozenset(token for token in ids if isinstance(token, int) and not isinstance(token, bool))


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_volatile(inner) for name, inner in value.items() if name not in _VOLATILE}
    return [_without_volatile(inner) for inner in value] if isinstance(value, list) else value

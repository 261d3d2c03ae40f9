"""The tokenizer in a model directory: what decides its ids, and whether transformers reads it as written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densepath.pair.unreadable import unfinished, why_unreadable
from densepath.pair.weights import Report, read_json

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
REMOTE_CODE = "has an auto_map: remote code is never run, so the checkpoint must load without it"

#: The files that decide ids.
FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")
_ADDED = "added tokens"
#: Texts chosen so that two different tokenizers with the same vocabulary split at least one of them
#: differently.
_PROBES = (
    "The quick brown fox can't jump over 12345 lazy dogs.",
    " leading, and  two   spaces\tand a tab\nand a line",
    "def f(x):\n    return {x: x ** 2}\n\n\n",
    "naïve café, Ünïcödé, e\u0301 and ﬁ",
    "日本語のテキストと中文, русский текст, العربية, 🙂👩‍💻",
    "HTTP://example.com/?q=a&b=c#d — “quotes” 1,000.50 €",
)


@dataclass(frozen=True)
class TokenizerIdentity:
    """What decides ids: `fields` by name, without the chat template. `vocab_size` is the largest id + 1.

    `loaded` is the tokenizer as transformers reads it. `pad` is not in the fields, because nothing that is
    scored is padded. `digest` is the digest of the files. `note` is a whole sentence if transformers gives
    other ids than tokenizer.json.
    """

    fields: Mapping[str, Any]
    chat_template: Any
    vocab_size: int
    eos_token_ids: frozenset[int]
    pad: str | None = None
    digest: str = ""
    note: str | None = None
    loaded: Any = field(default=None, repr=False, compare=False)


def read_tokenizer(directory: Path, report: Report) -> TokenizerIdentity | None:
    """The tokenizer in a directory, or None with the reason reported."""
    if os.path.lexists(directory / TOKENIZER_CONFIG):
        raw = read_json(directory / TOKENIZER_CONFIG, report)
        if raw is None:
            return None
        if raw.get("auto_map"):
            report(TOKENIZER_CONFIG, REMOTE_CODE)
            return None
    if not os.path.lexists(directory / TOKENIZER):
        late = unfinished(directory)
        report(TOKENIZER, f"is missing{late}: copy the base model's tokenizer here, or save a fast tokenizer")
        return None
    if reason := why_unreadable(directory / TOKENIZER):
        report(TOKENIZER, reason)
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        if tokenizer.is_fast:
            return _identity(tokenizer, directory)
    except Exception:  # the library raises many kinds; their messages repeat the file and its path
        report(TOKENIZER, "is refused by transformers: it must be a tokenizer as save_pretrained writes it")
        return None
    report(TOKENIZER_CONFIG, "names a tokenizer class that has no fast version: it must have one")
    return None


def tokenizer_differences(one: TokenizerIdentity, other: TokenizerIdentity) -> list[str]:
    """The names of what differs between two tokenizers. Nothing differs if their files are identical."""
    if one.digest == other.digest:
        return []
    mine, theirs = _without_own_pad(one, other), _without_own_pad(other, one)
    return [name for name in dict.fromkeys([*mine, *theirs]) if mine.get(name) != theirs.get(name)]


def without_pad(tokenizer: TokenizerIdentity) -> Mapping[str, Any]:
    """The fields without an added token that is used only for padding."""
    special = {value for name, value in tokenizer.fields.items() if name.endswith(" token")}
    added = [
        token
        for token in tokenizer.fields.get(_ADDED) or ()
        if token["content"] != tokenizer.pad or token["content"] in special
    ]
    return {**tokenizer.fields, _ADDED: added}


def as_ids(value: Any) -> frozenset[int]:
    """The ids in a config's field, which may hold one id, several or none."""
    ids = value if isinstance(value, list) else [value]
    return frozenset(token for token in ids if isinstance(token, int) and not isinstance(token, bool))


def _without_own_pad(mine: TokenizerIdentity, other: TokenizerIdentity) -> Mapping[str, Any]:
    known = {token["content"] for token in other.fields.get(_ADDED) or ()}
    return mine.fields if mine.pad is None or mine.pad in known else without_pad(mine)


def _identity(tokenizer: Any, directory: Path) -> TokenizerIdentity:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Each call sets truncation and padding itself, so they do not belong to the tokenizer.
    for name in ("version", "truncation", "padding"):
        backend.pop(name, None)
    model = backend.pop("model")
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    pad = special.pop("pad_token", None)
    return TokenizerIdentity(
        fields={
            "vocabulary": model.pop("vocab"),
            "merges": model.pop("merges", None),
            "model settings": model,
            **{name.replace("_", " "): value for name, value in backend.items()},
            **{f"{name.removesuffix('_token').upper()} token": value for name, value in special.items()},
        },
        chat_template=tokenizer.chat_template,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        eos_token_ids=as_ids(tokenizer.eos_token_id),
        pad=pad,
        digest=_digest(directory),
        note=describe_other_ids(tokenizer, directory),
        loaded=tokenizer,
    )


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        path = directory / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name} {path.is_file()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def describe_other_ids(tokenizer: Any, directory: Path) -> str | None:
    """A sentence if transformers' tokenizer gives other ids than the file it was read from, else None."""
    from tokenizers import Tokenizer as Backend

    written = Backend.from_file(str(directory / TOKENIZER))
    written.no_truncation()
    written.no_padding()
    name = type(tokenizer).__name__
    for special in (False, True):
        other = sum(
            _ids(lambda: tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])  # noqa: B023
            != _ids(lambda: written.encode(text, add_special_tokens=special).ids)  # noqa: B023
            for text in _PROBES
        )
        if other:
            what = "adds other special tokens" if special else "splits text differently"
            return (
                f"transformers' {name} {what} than tokenizer.json itself ({other} of {len(_PROBES)} "
                "probes). This service tokenises text as transformers does: if the SFT run used "
                "tokenizer.json directly, send token ids instead of text."
            )
    return None


def _ids(encode: Callable[[], list[int]]) -> list[int] | None:
    """The ids, or None if the tokenizer cannot encode the text and has no unknown token."""
    try:
        return encode()
    except Exception:  # the library has no class of its own for this
        return None

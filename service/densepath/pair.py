"""What two directories must be to be a pair, and its version.

A pair is an SFT checkpoint and a reference checkpoint that share one tokenizer. Both are plain
`*ForCausalLM` models in safetensors with finite weights, and load without remote code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from densepath.checkpoint import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    Checkpoint,
    fingerprint,
    read_checkpoint,
)
from densepath.errors import InvalidPairError
from densepath.weights import Report, Tensors, cached_scan, default_cache_dir, describe_non_finite

#: Called with bytes read so far and bytes to read in all, over both models.
Progress = Callable[[int, int], None]

Side = Literal["sft", "reference", "pair"]

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True)
class Problem:
    """One thing that keeps two directories from being a pair. `file` is relative to that side's directory."""

    side: Side
    file: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.side, self.file, self.message)))


@dataclass(frozen=True)
class Pair:
    """Two checkpoints that are a pair."""

    sft: Path
    reference: Path
    version: str  # 32 hex characters: weights, configs, tokenizer and chat template
    dtype: str  # the one that most of the SFT's weights are stored in
    vocab_size: int  # ids that the tokenizer has: the largest + 1
    embedding_size: int  # rows that both models' embeddings have: the valid ids
    context_length: int  # tokens, the smaller of the two
    eos_token_ids: frozenset[int]  # the tokenizer's, and those of the SFT's two configs
    architectures: tuple[str, str]  # (sft, reference)
    tokenizer_fingerprint: str
    chat_template_fingerprint: str | None


def load_pair(
    sft: Path | str, reference: Path | str, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Pair:
    """The pair of two directories. Raises InvalidPairError, with every problem found in its message."""
    found = inspect_pair(sft, reference, cache_dir=cache_dir, progress=progress)
    if isinstance(found, Pair):
        return found
    raise InvalidPairError("not a pair: " + "; ".join(map(str, found)))


def inspect_pair(
    sft: Path | str, reference: Path | str, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Pair | list[Problem]:
    """The pair, or all that keeps the two directories from being one. Nothing in them is run.

    Weights are read in full where the cache in `cache_dir` does not know them; by default the cache is
    `densepath/weights` under `$XDG_CACHE_HOME`.
    """
    problems: list[Problem] = []
    report_a, report_b = partial(_report, problems, "sft"), partial(_report, problems, "reference")
    a, b = read_checkpoint(Path(sft), report_a), read_checkpoint(Path(reference), report_b)
    _compare(a, b, partial(_report, problems, "pair"))
    digests_a, digests_b = _scan((a, b), (report_a, report_b), cache_dir or default_cache_dir(), progress)
    if problems or not (a.config and b.config and a.tokenizer and b.tokenizer):
        return problems
    tokenizer, template = fingerprint(a.tokenizer.fields), a.tokenizer.chat_template
    return Pair(
        sft=a.directory,
        reference=b.directory,
        version=fingerprint(
            {
                "sft": {"configs": a.config.stable, "weights": digests_a},
                "reference": {"configs": b.config.stable, "weights": digests_b},
                "tokenizer": tokenizer,
                "chat_template": template,
            }
        ),
        dtype=stored_dtype(a.weights),
        vocab_size=a.tokenizer.vocab_size,
        embedding_size=min(a.config.embedding_size, b.config.embedding_size),
        context_length=min(a.config.context_length, b.config.context_length),
        eos_token_ids=a.config.eos_token_ids | a.tokenizer.eos_token_ids,
        architectures=(a.config.architecture, b.config.architecture),
        tokenizer_fingerprint=tokenizer,
        chat_template_fingerprint=None if template is None else fingerprint(template),
    )


def _report(problems: list[Problem], side: Side, file: str, message: str) -> None:
    problems.append(Problem(side, file, message))


def _compare(a: Checkpoint, b: Checkpoint, report: Report) -> None:
    if a.tokenizer is None or b.tokenizer is None:
        return
    mine, other = a.tokenizer.fields, b.tokenizer.fields
    for name in dict.fromkeys([*mine, *other]):
        if mine.get(name) != other.get(name):
            report(TOKENIZER, f"{name}: not the same in both; the reference must have the sft's tokenizer")
    if a.tokenizer.chat_template != b.tokenizer.chat_template:
        report(TOKENIZER_CONFIG, "chat template: not the same in both; the reference must have the sft's")


def _scan(
    checkpoints: tuple[Checkpoint, Checkpoint],
    reports: tuple[Report, Report],
    cache_dir: Path,
    progress: Progress | None,
) -> list[dict[str, str]]:
    """File name → digest, of each checkpoint's weights; what is not finite is reported."""
    total = sum((c.directory / name).stat().st_size for c in checkpoints for name in c.weights)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    digests: list[dict[str, str]] = [{}, {}]
    for checkpoint, report, digest in zip(checkpoints, reports, digests, strict=True):
        for name, tensors in checkpoint.weights.items():
            try:
                scan = cached_scan(checkpoint.directory / name, tensors, cache_dir, on_bytes)
            except OSError:
                report(name, "cannot be read to its end: it must stay as it is while it is loaded")
                continue
            digest[name] = scan.digest
            if scan.non_finite:
                report(name, describe_non_finite(scan))
    return digests


def stored_dtype(weights: Mapping[str, Tensors]) -> str:
    """The dtype that most bytes of a checkpoint's weights are stored in, by torch's name."""
    sizes: Counter[str] = Counter()
    for tensors in weights.values():
        for tensor in tensors.values():
            sizes[tensor.dtype] += tensor.end - tensor.begin
    stored = sizes.most_common(1)[0][0]
    return _DTYPES.get(stored, stored.lower())

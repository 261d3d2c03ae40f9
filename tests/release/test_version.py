"""The version stands in pyproject.toml, and what must repeat it agrees; the changelog is kept."""

from __future__ import annotations

import re
import tomllib

from packaging.version import Version

import densepath
from api.running import make_service, pair
from densepath.api.app import create_app
from densepath.pair.pair import Pair
from release.conftest import ROOT, Dist

__all__ = ["pair"]

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
#: What runs or ships. k8s/ must name its images by version, which tests/k8s holds; locks name other versions.
SHIPPED = ["service", "scripts", "deploy", ".github", ".ci", "Makefile", "Dockerfile", "docker-compose*.yml"]


def test_every_place_says_the_same(pair: Pair, dist: Dist) -> None:
    assert densepath.__version__ == VERSION, "make setup"
    assert create_app(make_service(pair), engine="fake").openapi()["info"]["version"] == VERSION
    assert dist.wheel.name == f"densepath-{VERSION}-py3-none-any.whl"
    assert dist.sdist.name == f"densepath-{VERSION}.tar.gz"


def test_no_other_file_repeats_it() -> None:
    literal = re.compile(rf"(?<![\w.]){re.escape(VERSION)}(?![\w.])")
    files = [file for place in SHIPPED for path in ROOT.glob(place) for file in [path, *path.rglob("*")]]
    repeated = [
        file.relative_to(ROOT).as_posix()
        for file in files
        if file.is_file()
        and "__pycache__" not in file.parts
        and literal.search(file.read_text("utf-8", "ignore"))
    ]
    assert repeated == []


def test_the_changelog_is_kept() -> None:
    """https://keepachangelog.com: what is not released stands first, then the releases, the newest first."""
    unreleased, *releases = re.findall(r"^## (.+)$", CHANGELOG, re.M)
    assert unreleased == "Unreleased"
    for heading in releases:
        assert re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading), heading
    versions = [Version(heading.split(" - ")[0]) for heading in releases]
    assert versions == sorted(set(versions), reverse=True)
    assert all(version <= Version(VERSION) for version in versions)
    sections = set(re.findall(r"^### (.+)$", CHANGELOG, re.M))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

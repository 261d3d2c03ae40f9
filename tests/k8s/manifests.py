"""What the Kubernetes tests read: each overlay as `kubectl kustomize` renders it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SERVICES = ["cpu", "cuda", "multi-gpu"]
OVERLAYS = [*SERVICES, "trainer"]
Manifest = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the overlays")


def kustomize(directory: Path) -> list[Manifest]:
    """The resources of a kustomization."""
    command = ["kubectl", "kustomize", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(YAML(typ="safe", pure=True).load_all(done.stdout))


@cache
def render(overlay: str) -> list[Manifest]:
    """The resources of an overlay. Read only."""
    return kustomize(ROOT / "k8s" / "overlays" / overlay)


def find(overlay: str, kind: str, name: str | None = None) -> Manifest:
    """The one resource of this kind, of this name where several are there."""
    (found,) = (
        each
        for each in render(overlay)
        if each["kind"] == kind and (name is None or each["metadata"]["name"].startswith(name))
    )
    return found


def workload(overlay: str) -> Manifest:
    """The Deployment of a service, the Job of the trainer."""
    return find(overlay, "Job" if overlay == "trainer" else "Deployment")


def pod(overlay: str) -> Manifest:
    """The pod's spec."""
    spec: Manifest = workload(overlay)["spec"]["template"]["spec"]
    return spec


def pod_labels(overlay: str) -> dict[str, str]:
    """The pod's labels."""
    labels: dict[str, str] = workload(overlay)["spec"]["template"]["metadata"]["labels"]
    return labels


def container(overlay: str) -> Manifest:
    """The pod's one container."""
    (one,) = pod(overlay)["containers"]
    assert isinstance(one, dict)
    return one


def settings(overlay: str) -> dict[str, str]:
    """The variables that the container takes from its ConfigMap."""
    (source,) = container(overlay)["envFrom"]
    return dict(find(overlay, "ConfigMap", source["configMapRef"]["name"])["data"])


def walk(value: Any) -> Iterator[Any]:
    """Every mapping, list and scalar of a manifest."""
    yield value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from walk(each)

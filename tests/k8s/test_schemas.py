"""Every overlay against the schemas of Kubernetes, and against the types of the Prometheus operator."""

from __future__ import annotations

import os
from pathlib import Path

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from k8s.manifests import OVERLAYS, ROOT, SERVICES, Manifest, container, kustomize, needs_kubectl, pod, render

pytestmark = needs_kubectl

OPERATOR = "monitoring.coreos.com/v1"
#: From the oldest release with all that the overlays use, to the newest whose schemas are known.
VERSIONS = sorted({v for v in kubernetes_validate.utils.all_versions() if int(v.split(".")[1]) >= 30})


def validate(resource: Manifest, version: str) -> None:
    """Strictly: an unknown field is an error."""
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        name = f"{resource['kind']} {resource['metadata']['name']}"
        pytest.fail(f"{name}, Kubernetes {version}: {'/'.join(map(str, error.path))}: {error.message}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay: str, version: str) -> None:
    resources = [each for each in render(overlay) if each["apiVersion"] != OPERATOR]
    assert len(resources) >= 6
    for resource in resources:
        validate(resource, version)


@pytest.mark.parametrize(
    "template", sorted(ROOT.glob("k8s/**/secret.template.yaml")), ids=lambda p: p.parent.name
)
def test_a_template_of_a_secret_is_valid_and_no_resource(template: Path) -> None:
    secret = YAML(typ="safe", pure=True).load(template)
    for version in VERSIONS:
        validate(secret, version)
    assert [each for overlay in OVERLAYS for each in render(overlay) if each["kind"] == "Secret"] == []


def test_the_pod_that_loads_a_pair_is_valid_and_writes_where_the_service_reads() -> None:
    loader = YAML(typ="safe", pure=True).load(ROOT / "k8s" / "load-pair.yaml")
    for version in VERSIONS:
        validate(loader, version)
    (one,), (volume,) = loader["spec"]["containers"], loader["spec"]["volumes"]
    assert one["image"] == container("cpu")["image"]
    assert one["securityContext"] == container("cpu")["securityContext"]
    claims = [each.get("persistentVolumeClaim", {}).get("claimName") for each in pod("cpu")["volumes"]]
    assert volume["persistentVolumeClaim"]["claimName"] in claims
    assert {"name": volume["name"], "mountPath": "/pair"} in one["volumeMounts"]


@pytest.mark.parametrize("overlay", SERVICES)
def test_a_pair_comes_from_an_image_instead(overlay: str, tmp_path: Path) -> None:
    resource, component = (
        os.path.relpath(ROOT / "k8s" / each, tmp_path.resolve())
        for each in (f"overlays/{overlay}", "components/oci-pair")
    )
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{resource}]\ncomponents: [{component}]\n")
    resources = kustomize(tmp_path)
    for each in resources:
        if each["apiVersion"] != OPERATOR:
            validate(each, VERSIONS[-1])
    assert "PersistentVolumeClaim" not in {each["kind"] for each in resources}
    (deployment,) = (each for each in resources if each["kind"] == "Deployment")
    volumes = {each["name"]: each for each in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["pair"].keys() == {"name", "image"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_operator_knows_every_field(overlay: str) -> None:
    models = pytest.importorskip("cloudcoil.models.prometheus_operator.v1", reason="make setup installs it")
    resources = [each for each in render(overlay) if each["apiVersion"] == OPERATOR]
    assert resources
    for each in resources:
        understood = getattr(models, each["kind"]).model_validate(each)
        # What it does not know, it drops.
        assert understood.model_dump(by_alias=True, exclude_unset=True, mode="json") == each

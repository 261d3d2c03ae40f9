"""Who finds whom: ports, selectors, policies, scrapes, and the metric that replicas are counted by."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from densepath import __version__
from densepath.commands.settings import ServeSettings
from densepath.telemetry.metrics import Metrics
from k8s.manifests import (
    OVERLAYS,
    ROOT,
    SERVICES,
    container,
    find,
    needs_kubectl,
    pod_labels,
    render,
    settings,
    workload,
)

pytestmark = needs_kubectl


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() == {"matchLabels"}, "other selectors are not understood here"
    return selector["matchLabels"].items() <= labels.items()


def ports(overlay: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}


def admitted(
    overlay: str, port: str, *, pod: dict[str, str], namespace: dict[str, str] | None, way: str = "ingress"
) -> bool:
    """Whether the policy lets a pod of these labels through; `namespace`: labels of another namespace."""
    end = "from" if way == "ingress" else "to"
    for rule in find(overlay, "NetworkPolicy")["spec"][way]:
        numbers = {each["port"] for each in rule.get("ports", [])}
        if numbers and not numbers & {port, ports(overlay).get(port), int(port) if port.isdigit() else port}:
            continue
        for peer in rule[end]:
            same = "namespaceSelector" not in peer
            where = namespace is None if same else matches(peer["namespaceSelector"], namespace or {})
            if where and matches(peer.get("podSelector", {"matchLabels": {}}), pod):
                return True
    return False


PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_select_the_pod_alone(overlay: str) -> None:
    labels = pod_labels(overlay)
    other = pod_labels("cpu" if overlay == "trainer" else "trainer")
    selectors = [
        {"matchLabels": find(overlay, "Service")["spec"]["selector"]},
        find(overlay, "NetworkPolicy")["spec"]["podSelector"],
    ]
    if overlay == "trainer":
        indexed = labels | {"batch.kubernetes.io/job-completion-index": "0"}
        assert matches(find(overlay, "PodMonitor")["spec"]["selector"], indexed)
        assert not matches(find(overlay, "PodMonitor")["spec"]["selector"], labels), "the first pod alone"
    else:
        selectors += [
            workload(overlay)["spec"]["selector"],
            find(overlay, "PodDisruptionBudget")["spec"]["selector"],
        ]
        monitor = find(overlay, "ServiceMonitor")["spec"]["selector"]
        assert matches(monitor, find(overlay, "Service")["metadata"]["labels"])
        assert not matches(monitor, find("trainer", "Service")["metadata"]["labels"])
    for selector in selectors:
        assert matches(selector, labels)
        assert not matches(selector, other)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_resource_is_labelled(overlay: str) -> None:
    for each in render(overlay):
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "densepath"
        assert labels["app.kubernetes.io/version"] == __version__
    assert pod_labels(overlay)["app.kubernetes.io/version"] == __version__


@pytest.mark.parametrize("overlay", SERVICES)
def test_the_port_is_the_service_s(overlay: str) -> None:
    port = ServeSettings().port
    assert settings(overlay)["DENSEPATH_PORT"] == str(port)
    assert ports(overlay) == {"http": port}
    (served,) = find(overlay, "Service")["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (port, "http")
    name, namespace = (find(overlay, "Service")["metadata"][key] for key in ("name", "namespace"))
    assert settings("trainer")["DENSEPATH_URL"] == f"http://{name}:{port}"
    assert namespace == workload("trainer")["metadata"]["namespace"]


@pytest.mark.parametrize("overlay", SERVICES)
def test_who_may_ask_the_service(overlay: str) -> None:
    assert admitted(overlay, "http", pod=pod_labels("trainer"), namespace=None)
    assert admitted(overlay, "http", pod={}, namespace={"densepath-client": "true"})
    assert not admitted(overlay, "http", pod={}, namespace=None)
    assert not admitted(overlay, "http", pod=pod_labels("trainer"), namespace={})
    assert find(overlay, "NetworkPolicy")["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert find(overlay, "NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_scraped_may_be_scraped(overlay: str) -> None:
    if overlay == "trainer":
        (endpoint,) = find(overlay, "PodMonitor")["spec"]["podMetricsEndpoints"]
        assert ports(overlay)[endpoint["port"]] == int(settings(overlay)["DENSEPATH_METRICS_PORT"])
    else:
        (endpoint,) = find(overlay, "ServiceMonitor")["spec"]["endpoints"]
        assert endpoint["port"] in {each["name"] for each in find(overlay, "Service")["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert admitted(overlay, endpoint["port"], pod=PROMETHEUS, namespace=MONITORING)
    assert not admitted(overlay, endpoint["port"], pod={}, namespace=MONITORING)


def test_the_trainer_reaches_its_pods_the_service_and_dns() -> None:
    trainer, system = pod_labels("trainer"), {"kubernetes.io/metadata.name": "kube-system"}
    assert admitted("trainer", "29500", pod=trainer, namespace=None)
    assert admitted("trainer", "29500", pod=trainer, namespace=None, way="egress")
    for overlay in SERVICES:
        assert admitted("trainer", "8000", pod=pod_labels(overlay), namespace=None, way="egress")
    assert admitted("trainer", "53", pod={"k8s-app": "kube-dns"}, namespace=system, way="egress")
    assert not admitted("trainer", "443", pod={}, namespace={}, way="egress")


@pytest.mark.parametrize("overlay", SERVICES)
def test_replicas_are_counted_by_a_metric_of_the_service(overlay: str) -> None:
    spec = find(overlay, "HorizontalPodAutoscaler")["spec"]
    target = workload(overlay)
    assert spec["scaleTargetRef"] == {
        "apiVersion": target["apiVersion"],
        "kind": target["kind"],
        "name": target["metadata"]["name"],
    }
    (metric,) = spec["metrics"]
    exported = {family.name for family in Metrics().registry.collect()}
    assert metric["pods"]["metric"]["name"] in exported
    queued = int(metric["pods"]["target"]["averageValue"])
    assert queued <= int(settings(overlay)["DENSEPATH_MAX_QUEUED_TOKENS"]) / 2, "before requests are refused"
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 600
    page = (ROOT / "docs" / "operations" / "kubernetes.md").read_text("utf-8")
    (fence,) = re.findall(r"```yaml\n(rules:.*?)```", page, re.S)
    (rule,) = YAML(typ="safe", pure=True).load(fence)["rules"]
    assert rule["seriesQuery"].startswith(metric["pods"]["metric"]["name"] + "{")
    assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}


@pytest.mark.parametrize("overlay", SERVICES)
def test_the_alerts_are_those_of_deploy(overlay: str) -> None:
    alerts = YAML(typ="safe", pure=True).load(ROOT / "deploy" / "prometheus" / "alerts.yml")
    assert find(overlay, "PrometheusRule")["spec"] == alerts, "k8s/base/prometheus-rule.yaml says how"
    jobs = set(re.findall(r'job="([^"]+)"', str(alerts)))
    scraped = find(overlay, "ServiceMonitor")["spec"]["jobLabel"]
    assert jobs == {find(overlay, "Service")["metadata"]["labels"][scraped]}

"""The pods: without privileges, with a place for what they write, stopped after they have answered."""

from __future__ import annotations

import re

import pytest

from containers.files import dockerfile_stages, last
from densepath.api.server import LAST_WORDS_SECONDS, SLOW_READER_SECONDS
from densepath.telemetry.otlp import CLOSE_SECONDS
from k8s.manifests import OVERLAYS, ROOT, SERVICES, container, find, needs_kubectl, pod, settings, workload

pytestmark = needs_kubectl

#: For the engine's processes to end, after the last answer.
ENGINE_END_SECONDS = 15


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_no_privileges(overlay: str) -> None:
    spec = pod(overlay)
    uid, gid = map(int, last("cuda", "USER").split(":"))
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": gid,
        "fsGroup": gid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(overlay)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_speaks_to_no_api_server(overlay: str) -> None:
    account = find(overlay, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod(overlay)["serviceAccountName"] == account["metadata"]["name"]
    assert pod(overlay)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("overlay", SERVICES)
def test_pods_are_admitted_to_the_namespace(overlay: str) -> None:
    labels = find(overlay, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_sets_no_variable_that_is_an_option(overlay: str) -> None:
    """For a Service densepath it would set DENSEPATH_PORT=tcp://…, in every pod of the namespace."""
    assert pod(overlay)["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_sigterm_reaches_a_process_that_does_not_ignore_it(overlay: str) -> None:
    assert pod(overlay)["shareProcessNamespace"] is True, "PID 1 would, until Python has set a handler"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_cache_of_the_image_has_a_writable_place(overlay: str) -> None:
    empty = {volume["name"] for volume in pod(overlay)["volumes"] if "emptyDir" in volume}
    places = [
        mount["mountPath"]
        for mount in container(overlay)["volumeMounts"]
        if mount["name"] in empty and not mount.get("readOnly")
    ]
    assert {"/tmp", "/dev/shm", last("cpu", "VOLUME")} == set(places)
    stage = dockerfile_stages()["cpu" if overlay == "cpu" else "cuda"]
    environment = " ".join(argument for name, argument in stage if name == "ENV")
    variables = re.findall(r"(\w*(?:HOME|CACHE)\w*)=(\S+)", environment)
    assert len(variables) >= 6
    assert [name for name, path in variables if not path.startswith(tuple(places))] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_mounted_is_there(overlay: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    assert {mount["name"] for mount in container(overlay)["volumeMounts"]} == volumes.keys()
    claims = {
        v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
    }
    makers = {"cpu", overlay}  # the trainer stands beside an overlay of the service
    made = {find(maker, "PersistentVolumeClaim")["metadata"]["name"] for maker in makers}
    assert claims == made
    for volume in volumes.values():
        if "configMap" in volume:
            find(overlay, "ConfigMap", volume["configMap"]["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pair_and_the_keys_are_read_only(overlay: str) -> None:
    mounts = {mount["name"]: mount for mount in container(overlay)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    assert mounts["pair"]["readOnly"] is True
    assert volumes["pair"]["persistentVolumeClaim"]["readOnly"] is True
    assert settings(overlay)["DENSEPATH_SFT"] == f"{mounts['pair']['mountPath']}/sft"
    (secret,) = (volume for volume in volumes.values() if "secret" in volume)
    assert mounts[secret["name"]]["readOnly"] is True
    assert "optional" not in secret["secret"], "without its Secret a pod must not start"


@pytest.mark.parametrize("overlay", SERVICES)
def test_what_is_in_flight_is_answered_before_the_kill(overlay: str) -> None:
    """The sum that the page's table adds up."""
    parts = [
        container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"],
        float(settings(overlay)["DENSEPATH_DRAIN_SECONDS"]),
        LAST_WORDS_SECONDS,
        SLOW_READER_SECONDS,
        CLOSE_SECONDS,
        ENGINE_END_SECONDS,
    ]
    grace = pod(overlay)["terminationGracePeriodSeconds"]
    assert sum(parts) <= grace, parts
    page = (ROOT / "docs" / "operations" / "kubernetes.md").read_text("utf-8")
    assert [int(row) for row in re.findall(r"^\| (\d+) \|", page, re.M)] == parts
    assert f"| **{sum(parts):.0f}** | of {grace} |" in page


@pytest.mark.parametrize("overlay", SERVICES)
def test_probes_ask_the_service_and_give_a_large_pair_time(overlay: str) -> None:
    one = container(overlay)
    probes = {name: one[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {one["ports"][0]["name"]}
    loading = probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"]
    assert loading >= 1800
    assert workload(overlay)["spec"]["progressDeadlineSeconds"] > loading


@pytest.mark.parametrize("overlay", SERVICES)
def test_a_rolling_update_takes_no_replica_away_first(overlay: str) -> None:
    spec = workload(overlay)["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in spec, "the autoscaler's"
    budget = find(overlay, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1, (
        "a budget that a single replica cannot meet would hold its node for ever"
    )

"""Settings, images and devices: in step with the command line, the version and each other."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from containers.files import dockerfile_stages, options_of
from densepath import __version__
from densepath.api.keys import ApiKeys
from densepath.trainer.reinforce.settings import TrainSettings
from k8s.manifests import (
    OVERLAYS,
    ROOT,
    SERVICES,
    container,
    find,
    needs_kubectl,
    pod,
    render,
    settings,
    walk,
    workload,
)

pytestmark = needs_kubectl


def gpus(overlay: str) -> int:
    return int(container(overlay)["resources"]["limits"].get("nvidia.com/gpu", 0))


def launch_options() -> dict[str, str]:
    """What torchrun is told in the Job."""
    words = [word for word in container("trainer")["args"] if word.startswith("--") and "=" in word]
    return dict(word.removeprefix("--").split("=", 1) for word in words)


@pytest.mark.parametrize("command", ["serve", "train"])
def test_the_command_line_knows_every_setting(command: str) -> None:
    options = options_of(command)
    for overlay in SERVICES if command == "serve" else ["trainer"]:
        assert container(overlay)["args"][-1] == command
        names = {name for name in settings(overlay) if name.startswith("DENSEPATH_")}
        names |= {each["name"] for each in container(overlay)["env"] if each["name"].startswith("DENSEPATH_")}
        assert len(names) >= 7
        assert names <= options


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_is_the_version_s(overlay: str) -> None:
    engine = "cpu" if overlay == "cpu" else "cuda"
    assert engine in dockerfile_stages()
    assert container(overlay)["image"] == f"densepath:{__version__}-{engine}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_left_to_fill_in(overlay: str) -> None:
    assert [text for text in walk(render(overlay)) if isinstance(text, str) and "${" in text] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_container_has_what_it_may_use(overlay: str) -> None:
    resources = container(overlay)["resources"]
    for name in ("cpu", "memory", "ephemeral-storage"):
        assert {name} <= resources["requests"].keys() & resources["limits"].keys()
    for name in ("cpu", "memory"):
        assert resources["requests"][name] == resources["limits"][name]
    tolerated = {each["key"] for each in pod(overlay).get("tolerations", [])}
    assert ("nvidia.com/gpu" in tolerated) == (gpus(overlay) > 0) == (overlay != "cpu")


def test_a_model_is_spread_over_the_gpus_of_its_pod() -> None:
    assert gpus("cuda") == 1
    assert "DENSEPATH_TENSOR_PARALLEL_SIZE" not in settings("cuda")
    assert gpus("multi-gpu") == int(settings("multi-gpu")["DENSEPATH_TENSOR_PARALLEL_SIZE"]) > 1


@pytest.mark.parametrize("overlay", SERVICES)
def test_threads_are_as_many_as_the_cpus_of_the_limit(overlay: str) -> None:
    (variable,) = (each for each in container(overlay)["env"] if each["name"] == "OMP_NUM_THREADS")
    assert variable["valueFrom"]["resourceFieldRef"] == {"resource": "limits.cpu", "divisor": "1"}


def test_torchrun_is_told_what_the_job_has() -> None:
    spec, options = workload("trainer")["spec"], launch_options()
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(options["nnodes"])
    assert gpus("trainer") == int(options["nproc-per-node"])
    assert options["node-rank"] == "$(JOB_COMPLETION_INDEX)"
    service = find("trainer", "Service")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert pod("trainer")["subdomain"] == service["metadata"]["name"]
    first = f"{workload('trainer')['metadata']['name']}-0"
    assert options["master-addr"] == f"{first}.{service['metadata']['name']}"
    assert int(options["master-port"]) == service["spec"]["ports"][0]["port"]
    processes = spec["completions"] * gpus("trainer")
    defaults = TrainSettings.__dataclass_fields__["prompts_per_step"].default
    assert isinstance(defaults, int)
    assert int(settings("trainer").get("DENSEPATH_PROMPTS_PER_STEP", defaults)) % processes == 0


def test_the_run_lies_where_every_pod_reads_it() -> None:
    mounts = {each["name"]: each["mountPath"] for each in container("trainer")["volumeMounts"]}
    assert settings("trainer")["DENSEPATH_RUN"].startswith(f"{mounts['runs']}/")
    for name in ("SFT", "PROMPTS", "HELD_OUT"):
        assert settings("trainer")[f"DENSEPATH_{name}"].startswith(f"{mounts['pair']}/")
    assert find("trainer", "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert settings("trainer")["DENSEPATH_CONFIG"] == f"{mounts['key']}/key.toml"


def test_keys_are_in_no_manifest(tmp_path: Path) -> None:
    """The template of the Secret, applied as it is, has none: the service refuses to start."""
    template = YAML(typ="safe", pure=True).load(ROOT / "k8s" / "base" / "secret.template.yaml")
    volume = {each["name"]: each for each in pod("cpu")["volumes"]}["keys"]
    assert volume["secret"]["secretName"] == template["metadata"]["name"]
    ((name, text),) = template["stringData"].items()
    mounts = {each["name"]: each["mountPath"] for each in container("cpu")["volumeMounts"]}
    assert settings("cpu")["DENSEPATH_API_KEY_FILE"] == f"{mounts['keys']}/{name}"
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="has no key"):
        ApiKeys.from_file(tmp_path / name)


def test_the_trainer_s_template_is_a_file_of_its_options() -> None:
    template = YAML(typ="safe", pure=True).load(ROOT / "k8s/overlays/trainer/secret.template.yaml")
    volume = {each["name"]: each for each in pod("trainer")["volumes"]}["key"]
    assert volume["secret"]["secretName"] == template["metadata"]["name"]
    ((name, text),) = template["stringData"].items()
    assert settings("trainer")["DENSEPATH_CONFIG"].endswith(f"/{name}")
    assert tomllib.loads(text).keys() == {"api_key"} <= TrainSettings.__dataclass_fields__.keys()

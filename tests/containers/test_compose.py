"""The compose files and the commands of every container: hardened, and in step with the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import check_jsonschema
import pytest
from jsonschema.validators import validator_for

from containers.files import COMPOSE_FILES, ROOT, compose, densepath_commands, last, options_of, read_yaml
from densepath.commands.settings import ServeSettings
from densepath.demo.prompts import HELD_OUT, LINK, PROMPTS
from densepath.demo.recipe import SFT

SERVICES = compose()["services"]
SERVICE, TRAINER = SERVICES["densepath"], SERVICES["trainer"]
CACHE = last("cpu", "VOLUME")


@pytest.mark.parametrize("overrides", [(), *((name,) for name in COMPOSE_FILES[1:]), COMPOSE_FILES[1:]])
def test_the_files_are_valid_alone_and_together(overrides: tuple[str, ...]) -> None:
    vendored = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendored.read_text())
    validator = validator_for(schema)(schema)
    for document in (compose(*overrides), *map(read_yaml, overrides)):
        assert [error.message for error in validator.iter_errors(document)] == []
    misspelt = {"services": {"densepath": {"comand": "serve"}}}
    assert not validator.is_valid(misspelt)


@pytest.mark.parametrize("where", densepath_commands())
def test_the_command_line_knows_every_flag_of_a_container(where: str) -> None:
    command, *words = densepath_commands()[where]
    assert command == ("train" if where.endswith("trainer") else "serve")
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert flags
    assert flags <= options_of(command)


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_the_command_line_knows_every_variable_that_a_container_gets(name: str) -> None:
    for settings in read_yaml(name)["services"].values():
        variables = {word for word in settings.get("environment", {}) if word.startswith("DENSEPATH_")}
        assert variables <= options_of("serve")


def test_the_health_check_follows_the_port_of_the_environment() -> None:
    assert set(re.findall(r"DENSEPATH_[A-Z_]+", last("cpu", "HEALTHCHECK"))) == {"DENSEPATH_PORT"}
    assert "DENSEPATH_PORT" in options_of("serve")


def test_the_image_listens_where_the_files_say() -> None:
    port = str(ServeSettings().port)
    assert last("cpu", "EXPOSE") == port
    assert f"'{port}'" in last("cpu", "HEALTHCHECK")
    for command in (
        SERVICE["command"],
        compose("docker-compose.pair.yml")["services"]["densepath"]["command"],
    ):
        assert command[command.index("--port") + 1] == port
    assert f":{port}/readyz" in SERVICE["healthcheck"]["test"][-1]


def test_every_port_is_bound_to_this_machine() -> None:
    bound = {name: settings["ports"] for name, settings in SERVICES.items() if "ports" in settings}
    assert bound == {
        name: [f"${{DENSEPATH_BIND:-127.0.0.1}}:{port}:{port}"]
        for name, port in (("densepath", 8000), ("prometheus", 9090), ("grafana", 3000))
    }


def test_what_is_in_flight_is_answered_before_the_kill() -> None:
    grace = re.fullmatch(r"(\d+)s", SERVICE["stop_grace_period"])
    assert grace
    assert int(grace[1]) > ServeSettings().drain_seconds


def test_the_demo_is_what_comes_up_first() -> None:
    assert SERVICE["command"][-1] == "--demo"
    assert [name for name, settings in SERVICES.items() if "profiles" in settings] == ["trainer"]


def test_a_pair_of_one_s_own_is_mounted_read_only_where_the_command_looks() -> None:
    service = compose("docker-compose.pair.yml")["services"]["densepath"]
    (pair,) = (volume for volume in service["volumes"] if isinstance(volume, dict))
    assert pair["read_only"] is True
    assert pair["source"].startswith("${DENSEPATH_PAIR_DIR:?")
    command = service["command"]
    assert "--demo" not in command
    for option, name in (("--sft", "sft"), ("--reference", "reference")):
        assert command[command.index(option) + 1] == f"{pair['target']}/{name}"


def test_the_trainer_finds_what_the_demo_publishes() -> None:
    words = dict(word.split("=") for word in TRAINER["command"] if "=" in word)
    demo = f"{CACHE}/densepath/{LINK}"
    assert words["--sft"] == f"{demo}/{SFT}"
    assert words["--prompts"] == f"{demo}/{PROMPTS}"
    assert words["--held-out"] == f"{demo}/{HELD_OUT}"
    assert words["--run"].startswith(f"{CACHE}/"), "in the volume that the image's user may write to"
    assert words["--url"] == f"http://densepath:{ServeSettings().port}"
    assert TRAINER["depends_on"] == {"densepath": {"condition": "service_healthy"}}
    assert f":{words['--metrics-port']}/metrics" in TRAINER["healthcheck"]["test"][-1]


def test_prometheus_scrapes_what_the_containers_are_called() -> None:
    jobs = read_yaml("deploy/prometheus/prometheus.yml")["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    trainer = dict(word.split("=") for word in TRAINER["command"] if "=" in word)
    assert targets["densepath"] == [f"densepath:{ServeSettings().port}"]
    assert targets["densepath-trainer"] == [f"trainer:{trainer['--metrics-port']}"]
    source = read_yaml("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_grafana_finds_the_board_and_takes_no_password() -> None:
    grafana = SERVICES["grafana"]
    mounts = {
        target: source for source, target, _ in (v.split(":") for v in grafana["volumes"] if v[0] == ".")
    }
    [provider] = read_yaml("deploy/grafana/provisioning/dashboards/densepath.yml")["providers"]
    folder = provider["options"]["path"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == folder
    assert (ROOT / mounts[folder] / home.name).is_file()
    assert not [name for name in grafana["environment"] if "PASSWORD" in name]
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_privileges(name: str) -> None:
    settings: dict[str, Any] = SERVICES[name]
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "user", "network_mode", "pid", "devices"} & set(settings)
    assert settings["read_only"] is True
    assert settings["tmpfs"] == ["/tmp"]
    assert settings["healthcheck"]["test"][0] == "CMD"
    assert "stop_grace_period" in settings


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there_and_what_is_kept_is_a_volume(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        source, target, *mode = volume.split(":")
        if source.startswith("."):
            assert (ROOT / source).is_dir()
            assert mode == ["ro"]
        else:
            assert source in compose()["volumes"]
            assert (
                target == {"cache": CACHE, "prometheus": "/prometheus", "grafana": "/var/lib/grafana"}[source]
            )


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_built_here_or_pinned(name: str) -> None:
    settings = SERVICES[name]
    if "build" in settings:
        assert settings["image"] == "densepath:" + settings["build"]["target"] == "densepath:cpu"
    else:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", settings["image"])


@pytest.mark.parametrize("overrides", [(), ("docker-compose.cuda.yml",)])
@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_a_limit_of_memory_and_of_processes(name: str, overrides: tuple[str, ...]) -> None:
    settings = compose(*overrides)["services"][name]
    memory = re.fullmatch(r"(?:\$\{DENSEPATH_MEMORY:-)?(\d+)g\}?", settings["mem_limit"])
    assert memory
    assert int(memory[1]) > int(re.match(r"\d+", settings.get("shm_size", "0gb"))[0])  # type: ignore[index]
    assert 256 <= settings["pids_limit"] <= 4096


def test_the_override_takes_the_gpu_s_image_and_one_gpu() -> None:
    services = compose("docker-compose.cuda.yml")["services"]
    for name in ("densepath", "trainer"):
        settings = services[name]
        assert settings["build"] == {"context": ".", "target": "cuda"}
        assert settings["image"] == "densepath:cuda"
        [device] = settings["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        assert settings["shm_size"] == "8gb"
        assert settings["command"] == SERVICES[name]["command"]
    assert services["grafana"] == SERVICES["grafana"]

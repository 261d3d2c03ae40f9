"""docker-compose.yml and the commands of every container: hardened, and in step with the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from containers.files import COMPOSE, ROOT, last, serve_commands
from densepath.config import ServeSettings

SERVICE = COMPOSE["services"]["densepath"]


@pytest.fixture(scope="module")
def serve_options() -> set[str]:
    """The options that `densepath serve --help` lists, and their environment variables."""
    command = [sys.executable, "-c", "from densepath.cli import main; main()", "serve", "--help"]
    plain = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "service")}
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z][a-z-]*|DENSEPATH_[A-Z_]+", done.stdout))


@pytest.mark.parametrize("where", serve_commands())
def test_the_command_line_knows_every_flag_of_a_container(where: str, serve_options: set[str]) -> None:
    command, *words = serve_commands()[where]
    assert command == "serve"
    flags = {word for word in words if word.startswith("--")}
    assert flags
    assert flags <= serve_options


def test_the_health_check_follows_the_port_of_the_environment(serve_options: set[str]) -> None:
    assert set(re.findall(r"DENSEPATH_[A-Z_]+", last("cpu", "HEALTHCHECK"))) == {"DENSEPATH_PORT"}
    assert "DENSEPATH_PORT" in serve_options


def test_the_image_listens_where_the_files_say() -> None:
    port = str(ServeSettings().port)
    assert last("cpu", "EXPOSE") == port
    assert f"'{port}'" in last("cpu", "HEALTHCHECK")
    command = SERVICE["command"]
    assert command[command.index("--port") + 1] == port
    assert SERVICE["ports"] == [f"${{DENSEPATH_BIND:-127.0.0.1}}:{port}:{port}"]
    assert f":{port}/readyz" in SERVICE["healthcheck"]["test"][-1]


def test_what_is_in_flight_is_answered_before_the_kill() -> None:
    grace = re.fullmatch(r"(\d+)s", SERVICE["stop_grace_period"])
    assert grace
    assert int(grace[1]) > ServeSettings().drain_seconds


def test_the_pair_is_mounted_read_only_where_the_command_looks() -> None:
    (pair,) = (volume for volume in SERVICE["volumes"] if isinstance(volume, dict))
    assert pair["read_only"] is True
    assert pair["source"] == "${DENSEPATH_PAIR_DIR:-./pair}"
    command = SERVICE["command"]
    for option, name in (("--sft", "sft"), ("--reference", "reference")):
        assert command[command.index(option) + 1] == f"{pair['target']}/{name}"


def test_the_root_is_read_only_and_the_caches_a_volume() -> None:
    assert SERVICE["read_only"] is True
    assert "/tmp" in SERVICE["tmpfs"]
    (cache,) = (volume for volume in SERVICE["volumes"] if isinstance(volume, str))
    name, target = cache.split(":")
    assert name in COMPOSE["volumes"]
    assert target == last("cpu", "VOLUME")


def test_the_container_has_no_privileges() -> None:
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in SERVICE["security_opt"]
    assert not {"privileged", "cap_add", "user", "network_mode", "pid"} & set(SERVICE)
    assert SERVICE["build"]["target"] == "cpu"

"""Settings: a flag over the environment, the environment over the file, the file over the default."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from densepath.commands.settings import ServeSettings
from densepath.config import CONFIG_FILE, ENVIRONMENT, Engine, takes

#: The contract's, as far as they apply.
FLAGS = (
    "--sft --reference --pair --reference-at --demo --host --port --model-name --api-key-file "
    "--admin-key-file --pair-root --dtype --max-model-len --gpu-memory-utilization "
    "--tensor-parallel-size --engine --max-queued-tokens --max-items --max-body-bytes --drain-seconds "
    "--config"
)


class Command:
    """A command of `ServeSettings`, and what it was last given."""

    def __init__(self) -> None:
        self.app = typer.Typer()
        self.app.command(context_settings=ENVIRONMENT)(takes(ServeSettings)(self._keep))
        self.given: ServeSettings | None = None

    def _keep(self, settings: ServeSettings) -> None:
        """Serve."""
        self.given = settings

    def settings(self, *arguments: str, **environment: str) -> ServeSettings:
        result = CliRunner().invoke(self.app, arguments, env=environment)
        assert result.exit_code == 0, result.output
        assert self.given is not None
        return self.given

    def refusal(self, *arguments: str, **environment: str) -> str:
        result = CliRunner().invoke(self.app, arguments, env=environment)
        assert result.exit_code == 2
        return " ".join(result.output.replace("│", " ").split())


@pytest.fixture
def command() -> Command:
    return Command()


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_each_source_wins_over_the_next(command: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", 'port = 1111\nmodel-name = "from-file"\nmax_items = 7\n')
    assert command.settings().port == 8000
    assert command.settings("--config", file).port == 1111
    assert command.settings("--config", file, DENSEPATH_PORT="2222").port == 2222
    assert command.settings("--config", file, "--port", "3333", DENSEPATH_PORT="2222").port == 3333
    settings = command.settings(DENSEPATH_CONFIG=file, DENSEPATH_MAX_ITEMS="9")
    assert (settings.port, settings.model_name, settings.max_items) == (1111, "from-file", 9)


def test_every_setting_can_come_from_each_source(command: Command, tmp_path: Path) -> None:
    values = {
        "sft": "a",
        "reference": "b",
        "pair": "c",
        "reference_at": 0.25,
        "host": "0.0.0.0",
        "port": 9000,
        "model_name": "mine",
        "api_key_file": "keys",
        "admin_key_file": "admin-keys",
        "pair_root": "pairs",
        "engine": "fake",
        "dtype": "bfloat16",
        "max_model_len": 128,
        "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 2,
        "max_queued_tokens": 10,
        "max_items": 3,
        "max_body_bytes": 1000,
        "drain_seconds": 1.5,
    }
    file = write(tmp_path / "all.toml", "".join(f"{key} = {json.dumps(v)}\n" for key, v in values.items()))
    flags = [part for key, v in values.items() for part in (f"--{key.replace('_', '-')}", str(v))]
    environment = {f"DENSEPATH_{key.upper()}": str(v) for key, v in values.items()}
    for settings in (
        command.settings("--config", file),
        command.settings(*flags),
        command.settings(**environment),
    ):
        for key, value in values.items():
            found = getattr(settings, key)
            assert (str(found) if isinstance(found, Path | Engine) else found) == value, key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown options: prot"),
        ("[serve]\nport = 1", "unknown options: serve"),
        ('config = "other.toml"', "unknown options: config"),
        ("port = ", "can't be read as TOML"),
        ('port = "many"', "--port"),
        ("port = 70000", "--port"),
        ('engine = "onnx"', "--engine"),
        ("max_items = 0", "--max-items"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(command: Command, tmp_path: Path, text: str, message: str) -> None:
    assert message in command.refusal("--config", write(tmp_path / "a.toml", text))


def test_wrong_flags_and_variables_are_said(command: Command, tmp_path: Path) -> None:
    assert "No such option" in command.refusal("--prot", "1")
    assert "--port" in command.refusal(DENSEPATH_PORT="many")
    assert "can't be read" in command.refusal("--config", str(tmp_path / "missing.toml"))


def test_help_has_the_contract_s_flags(command: Command) -> None:
    result = CliRunner().invoke(command.app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    words = result.output.split()
    assert [flag for flag in FLAGS.split() if flag not in words] == []
    assert "DENSEPATH_MAX_QUEUED_TOKENS" in result.output


def test_loading_the_settings_loads_nothing_heavy() -> None:
    code = (
        "import sys, densepath.config\n"
        "heavy = {'torch', 'fastapi', 'starlette', 'uvicorn', 'vllm', 'transformers', 'pydantic', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclass(frozen=True)
class OtherSettings:
    """Settings with a field that must be given, and with one that may be given several times."""

    source: Annotated[Path, typer.Option()]
    shares: Annotated[list[float], typer.Option()] = field(default_factory=lambda: [0.5])
    config: CONFIG_FILE = None


def test_any_settings_class_makes_a_command(tmp_path: Path) -> None:
    app, given = typer.Typer(), []
    app.command(context_settings=ENVIRONMENT)(takes(OtherSettings)(given.append))
    file = write(tmp_path / "a.toml", 'source = "from-file"\nshares = [0.1, 0.2]\n')
    for arguments in (
        ["--source", "a"],
        ["--source", "a", "--shares", "0.3", "--shares", "1"],
        ["--config", file],
    ):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert [(str(s.source), s.shares) for s in given] == [
        ("a", [0.5]),
        ("a", [0.3, 1.0]),
        ("from-file", [0.1, 0.2]),
    ]
    assert "Missing option '--source'" in CliRunner().invoke(app, []).output

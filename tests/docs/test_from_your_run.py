"""The commands of "From your SFT run to rewards": they run as they stand, in the directory of a reader."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from checkpoints import make_checkpoint
from densepath import Client, cli
from densepath.errors import InvalidRequestError
from densepath.pair.pair import Pair
from docs.blocks import blocks, split_commands
from live import free_port, start, stop, wait_ready

PAGE = "docs/from-your-run.md"
BLOCKS = [block for block in blocks() if block.page == PAGE]
COMMANDS = [command for block in BLOCKS if block.kind == "shell" for command in split_commands(block.text)]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page says that a reader has: a trainer's folder, an adapter and its base model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = make_checkpoint(tmp_path / "base", seed=1)
    make_checkpoint(tmp_path / "out/checkpoint-500", seed=2)
    final = make_checkpoint(tmp_path / "out/checkpoint-1000", seed=3)
    shutil.copytree(final, tmp_path / "out", dirs_exist_ok=True)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(begin: str) -> str:
    (found,) = [each for each in COMMANDS if each.startswith(begin)]
    return found


def run(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command in this process; its exit status."""
    monkeypatch.setattr("sys.argv", shlex.split(words))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_folder_of_a_trainer_is_checked_and_served(
    reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command("densepath check --pair out"), monkeypatch) == 0
    said = capsys.readouterr()
    (account,) = [block.text for block in BLOCKS if block.kind == "text"]
    assert account in said.err
    assert f"reference       {reader / 'out/checkpoint-500'}" in said.out
    options = shlex.split(command("densepath serve --pair out"))[2:]
    env = {"OMP_NUM_THREADS": "1", "DENSEPATH_ENGINE": "transformers"}
    process, url = start(*options, log=reader / "log", env=env, port=free_port())
    try:
        wait_ready(process, url, reader / "log")
        assert account in (reader / "log").read_text()
        with Client(url) as client:
            assert client.pair()["sources"] == {"sft": "out", "reference": "checkpoint-500"}
        assert stop(process) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("begin", "sources"),
    [
        ("densepath serve --sft out/checkpoint-1000", r"checkpoint-1000 checkpoint-500"),
        ("densepath serve --sft adapter", r"adapter-[0-9a-f]{32} base"),
    ],
)
def test_checkpoints_and_an_adapter_are_pairs(
    begin: str,
    sources: str,
    reader: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Up to the engine, which gets the pair as it does in the test before."""

    def reached(pair: Pair, *_: object) -> None:
        raise InvalidRequestError(f"pair: {' '.join(pair.sources)}")

    monkeypatch.setattr("densepath.commands.serve.build_engine", reached)
    assert run(command(begin), monkeypatch) == 2
    assert re.search(f"pair: {sources}$", capsys.readouterr().err, re.M)

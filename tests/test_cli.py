"""The commands as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from rich.console import Console

from checkpoints import make_checkpoint
from damage import set_values
from densepath import cli
from densepath.commands.pairs import directories
from densepath.commands.settings import ServeSettings
from densepath.pair.pair import load_pair
from live import serving
from quantised import quantise

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DENSEPATH_PORT", "0")  # two processes run the tests

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["densepath", *map(str, words)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def test_check_prints_the_version(run: Run, pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    status, out, _ = run("check", "--sft", pair_dirs[0], "--reference", pair_dirs[1])
    assert status == 0
    assert load_pair(*pair_dirs, cache_dir=tmp_path).version in out
    assert "engine          runs this pair" in out or "not tried: vLLM is not installed" in out


def test_check_says_each_problem_in_one_line(run: Run, dirs: tuple[Path, Path]) -> None:
    (dirs[0] / "model.safetensors").unlink()
    (dirs[1] / "config.json").write_text("{")
    status, _, err = run("check", "--sft", dirs[0], "--reference", dirs[1])
    assert status == 1
    lines = [line for line in err.splitlines() if line.startswith("not a pair: ")]
    assert any(line.startswith("not a pair: sft: ") for line in lines)
    assert any(line.startswith("not a pair: reference: config.json") for line in lines)


SAME = "the sft and the reference hold the same weights, so every reward is 0"


def test_the_same_checkpoint_twice_is_asked_for_explicitly(
    run: Run, pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt_token_ids": [7, 8], "response_token_ids": [9, 10]}) + "\n")
    twice = ("--sft", pair_dirs[0], "--reference", pair_dirs[0])
    score = ("score", source, "-o", output, "--engine", "transformers")
    for words in (("check",), ("serve",), score):
        status, _, err = run(*words, *twice)
        assert status == 1
        assert f"{SAME}: name two checkpoints of a run, or add --allow-same" in err
    status, _, err = run("check", *twice, "--allow-same")
    assert (status, f"note: {SAME}." in err) == (0, True)
    status, _, err = run(*score, *twice, "--allow-same")
    assert (status, f"note: {SAME}." in err) == (0, True)
    (result,) = map(json.loads, output.read_text().splitlines())
    assert result["rewards"] == [0.0, 0.0]


def test_two_dtypes_and_a_quantisation_are_told_by_check_and_at_the_start(
    run: Run, pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = make_checkpoint(tmp_path / "plain", seed=1, dtype=torch.bfloat16)
    sft, _ = quantise(plain, tmp_path, "compressed-tensors W8A8 int8")
    words = ("--sft", sft, "--reference", pair_dirs[1])
    note = (
        "stored in bfloat16 and the reference in float32; each is computed in its own dtype, unless --dtype"
    )
    status, out, err = run("check", *words)
    assert status == 0
    assert "dtype           bfloat16; of the reference float32" in out
    assert "quantised       compressed-tensors, 8 bits; the reference not" in out
    assert note in err
    # Past the notes, this start is refused.
    status, _, err = run("serve", *words, "--max-model-len", "5000")
    assert status == 2
    assert note in err


@pytest.mark.parametrize("command", ["check", "serve"])
def test_non_finite_weights_are_refused_before_anything_is_loaded(
    command: str, run: Run, dirs: tuple[Path, Path]
) -> None:
    set_values("model.norm.weight", float("nan"), 3)(dirs[1])
    status, _, err = run(command, "--sft", dirs[0], "--reference", dirs[1])
    assert status != 0
    assert "model.norm.weight" in err
    assert "finite" in err


def test_serve_wants_a_pair_or_the_demo(run: Run, pair_dirs: tuple[Path, Path]) -> None:
    sft, reference = ("--sft", pair_dirs[0]), ("--reference", pair_dirs[1])
    both = (*sft, *reference)
    for words in (
        (),
        sft,
        ("--demo", *sft),
        ("--pair", ".", *sft),
        ("--pair", ".", *both),
        ("--pair", ".", "--demo"),
    ):
        status, _, err = run("serve", *words)
        assert status == 2
        assert "give both --sft and --reference, or --pair RUN alone, or --demo alone" in err


def test_serve_refuses_a_context_length_that_a_model_does_not_have(
    run: Run, pair_dirs: tuple[Path, Path]
) -> None:
    status, _, err = run(
        "serve", "--sft", pair_dirs[0], "--reference", pair_dirs[1], "--max-model-len", "5000"
    )
    assert status == 2
    assert "5000" in err
    assert "1024" in err


def test_score_with_a_pair_in_this_process(run: Run, pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    items = [
        {"id": "good", "prompt": "two and two", "response": " is four", "append_eos": True},
        {"id": "bad", "prompt_token_ids": [1], "response_token_ids": [99999]},
    ]
    source.write_text("".join(json.dumps(item) + "\n" for item in items))
    pair = ("--sft", pair_dirs[0], "--reference", pair_dirs[1], "--engine", "transformers")
    status, out, err = run("score", source, "-o", output, "--show", *pair)
    assert status == 1, "an item that failed shows in the exit status"
    assert "1 scored, 1 failed" in err
    assert "good" in out
    good, bad = map(json.loads, output.read_text().splitlines())
    assert good["status"] == "ok"
    assert len(good["rewards"]) == len(good["tokens"]) > 0
    assert bad["error"]["code"] == "invalid_item"
    assert "rewards" not in bad


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--url", "http://127.0.0.1:1"], "say where the results go"),
        (
            ["-o", "out.jsonl"],
            "give --url of a service, or a pair: both --sft and --reference, or --pair, or --demo",
        ),
        (["-o", "out.xyz", "--url", "http://127.0.0.1:1"], ".jsonl"),
    ],
)
def test_score_says_what_is_missing(words: list[str], what: str, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    status, _, err = run("score", source, *words)
    assert status == 2
    assert what in err


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Every weight is finite, and the logits are not."""
    sft = make_checkpoint(tmp_path / "sft", seed=1)
    set_values("model.norm.weight", 3e38, 64)(sft)
    return sft


@pytest.mark.engine
def test_a_model_that_overflows_is_refused_at_its_start(
    run: Run, overflowing: Path, pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt_token_ids": [7, 8, 9], "response_token_ids": [10, 11]}) + "\n")
    status, _, err = run("score", source, "-o", output, "--sft", overflowing, "--reference", pair_dirs[1])
    assert status == 1
    assert "error the engine gives no finite log-probability of the sft on a short sequence" in err
    assert not output.exists()


@pytest.mark.engine
def test_scores_that_overflow_are_errors_in_the_real_engine(
    overflowing: Path, pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    item = {"prompt_token_ids": [7, 8, 9], "response_token_ids": [10, 11]}
    pair = ("--sft", overflowing, "--reference", pair_dirs[1], "--verify", "off")
    with serving(*pair, log=tmp_path / "log") as url:
        body = {"items": [item], "include": ["logprobs", "returns"], "on_error": "item"}
        (result,) = httpx.post(f"{url}/v1/rewards", json=body, timeout=60).json()["items"]
        verified = httpx.get(f"{url}/v1/pair").json()["verified"]
    assert result["error"]["code"] == "non_finite_score"
    assert not {"rewards", "sum", "sft_logprobs", "reference_logprobs", "returns"} & result.keys()
    assert (verified["verified"], verified["reason"]) == (False, "--verify is off")


def test_loading_the_commands_loads_nothing_heavy() -> None:
    heavy = {"torch", "fastapi", "vllm", "transformers", "trl", "datasets", "matplotlib"}
    code = f"import sys, densepath.cli\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sft_makes_a_run_and_says_nothing_of_the_libraries(
    run: Run, pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    rows, made = tmp_path / "rows.jsonl", tmp_path / "made"
    rows.write_text((json.dumps({"prompt": "two and two", "response": " is four"}) + "\n") * 4)
    words = ("sft", "--base", pair_dirs[0], "--demonstrations", rows, "--run", made, "--batch-size", 2)
    status, out, err = run(*words)
    assert status == 0
    assert out == ""
    assert f"densepath serve --pair {made}" in err
    assert [line for line in err.splitlines() if "it/s" in line or "arn" in line or "{" in line] == []
    sft, reference = directories(ServeSettings(pair=str(made)), Console(quiet=True))
    assert load_pair(sft, reference, cache_dir=tmp_path).vocab_size == 300
    status, _, err = run(*words)
    assert status == 2
    assert "exists: give a new directory" in err


def test_sft_names_what_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run("sft", "--help")
    assert status == 0
    for flag in (
        "--base",
        "--demonstrations",
        "--run",
        "--checkpoint-at",
        "--patience",
        "--lora-rank",
        "--bf16",
    ):
        assert flag in out
    status, _, err = run("sft", "--base", ".")
    assert status == 2
    assert "Missing option '--demonstrations'" in err


@pytest.mark.parametrize("command", ["check", "serve", "score", "sft", "probe", "eval", "train"])
def test_every_command_with_settings_reads_the_environment_and_a_file(
    command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = tmp_path / "unknown.toml"
    unknown.write_text("no-such-option = 1")
    status, _, err = run(command, "--config", unknown)
    assert (status, "has unknown options: no_such_option" in " ".join(err.replace("│", " ").split())) == (
        2,
        True,
    )
    monkeypatch.setenv("DENSEPATH_CONFIG", str(tmp_path / "missing.toml"))
    status, _, err = run(command)
    assert (status, "read as TOML" in " ".join(err.replace("│", " ").split())) == (2, True)


def test_check_does_not_take_the_name_of_an_engine_for_its_flag(
    run: Run, pair_dirs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENSEPATH_ENGINE", "vllm")  # as in a container that serves
    monkeypatch.setenv("DENSEPATH_SFT", str(pair_dirs[0]))
    status, out, _ = run("check", "--reference", pair_dirs[1])
    assert (status, "version" in out) == (0, True)

"""`densepath train` as a person runs it: the real service over HTTP, in one process and in two."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from densepath import cli
from densepath.engine.transformers import TransformersScorer
from densepath.pair.pair import load_pair
from densepath.sequences import from_response
from live import finish, free_port, serving

SMALL = ("--kv-cache-memory-bytes", str(32 << 20), "--max-model-len", "256")


@pytest.fixture(scope="module")
def vllm_service(ending_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sft, reference = ending_pair
    log = tmp_path_factory.mktemp("vllm") / "log"
    with serving("--sft", sft, "--reference", reference, *SMALL, log=log) as url:
        yield url


def train(
    *options: str | Path, launcher: tuple[str, ...] = ("-m", "densepath")
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; nothing of it is left."""
    command = [sys.executable, *launcher, "train", *map(str, options)]
    return finish(command, env={"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}, within=280)


def options(url: str, sft: Path, prompts: Path, run: Path) -> list[str | Path]:
    where = ["--url", url, "--sft", sft, "--prompts", prompts, "--run", run, "--held-out", prompts]
    sizes = ["--steps", "3", "--prompts-per-step", "8", "--rollouts", "2", "--max-new-tokens", "16"]
    return [*where, *sizes, "--learning-rate", "1e-4", "--check-every", "2", "--save-every", "2"]


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.mark.engine
def test_a_run_with_the_real_engine_on_both_sides(
    vllm_service: str,
    ending_pair: tuple[Path, Path],
    prompts_file: Path,
    tmp_path: Path,
    say_difference: Callable[[str, float], None],
) -> None:
    run = tmp_path / "run"
    given = options(vllm_service, ending_pair[0], prompts_file, run)
    done = train(*given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ended: all 3 steps are done" in done.stderr
    steps = rows(run)
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [bool(row.get("held_out")) for row in steps] == [False, True, True]
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-4), "the first step's policy is the SFT"
    for row in steps:
        assert row["responses"] == 16
        assert row["objective"] == pytest.approx(row["reward"] - 0.5 * row["kl"])
        assert {"rollout", "rewards", "forward_backward", "weight_update", "total"} <= row["seconds"].keys()
    gap = max(row["logp_gap"] for row in steps)
    say_difference("log-probabilities of vLLM's rollouts against the learner's, over weight updates", gap)
    assert gap <= 5e-5, "the rollouts come from the policy under training"

    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["stopped"] == {"step": 3, "why": "all 3 steps are done"}
    assert manifest["pair"]["version"] == load_pair(*ending_pair, cache_dir=tmp_path / "cache").version
    final = load_file(run / "final" / "model.safetensors")
    start = load_file(ending_pair[0] / "model.safetensors")
    assert max(float((final[name] - start[name]).abs().max()) for name in final) > 1e-4
    assert_samples_hold_the_oracle_s_rewards(run, ending_pair)

    again = train(*given)
    assert again.returncode == 0, again.stderr[-3000:]
    assert rows(run) == steps, "a run that has ended takes no further step"


def assert_samples_hold_the_oracle_s_rewards(run: Path, pair: tuple[Path, Path]) -> None:
    """The token strings name their ids here, since each token of the test's tokenizer has its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    oracle = TransformersScorer(*pair, context_length=256)
    oracle.load()
    checked = 0
    for sample in rows(run, "samples.jsonl"):
        ids = [tokenizer.encode(token, add_special_tokens=False) for token in sample["tokens"]]
        if any(len(each) != 1 for each in ids):
            continue  # a piece of a character has no text of its own, and a padded id none at all
        prompt = tokenizer.encode(sample["prompt"], add_special_tokens=True)
        scored = oracle.score_now(from_response(prompt, [each[0] for each in ids]))
        want_T = scored.logp_sft_T - scored.logp_reference_T
        np.testing.assert_allclose(sample["rewards"], want_T, atol=5e-5)
        checked += 1
    assert checked >= 2


@pytest.mark.engine
def test_two_processes_train_together(
    vllm_service: str,
    ending_pair: tuple[Path, Path],
    prompts_file: Path,
    tmp_path: Path,
    say_difference: Callable[[str, float], None],
) -> None:
    """torchrun, FSDP2, a vLLM engine in each process; the same responses and the same step as one process."""
    launcher = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
        "densepath",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    steps = ["--steps", "1", "--check-every", "1"]
    alone = train(*options(vllm_service, ending_pair[0], prompts_file, one), *steps)
    assert alone.returncode == 0, alone.stderr[-3000:]
    both = train(*options(vllm_service, ending_pair[0], prompts_file, two), *steps, launcher=launcher)
    assert both.returncode == 0, both.stderr[-3000:]
    (a,), (b,) = rows(one), rows(two)
    for name in ("responses", "truncated", "length", "held_out"):
        assert a[name] == b[name], name
    assert a["reward"] == pytest.approx(b["reward"], abs=1e-4)
    weights, others = (load_file(run / "final" / "model.safetensors") for run in (one, two))
    difference = max(float((tensor - others[name]).abs().max()) for name, tensor in weights.items())
    say_difference(
        "`densepath train`, two processes against one: largest difference of a parameter", difference
    )
    assert difference <= 1e-5
    going_on = train(
        *options(vllm_service, ending_pair[0], prompts_file, two),
        "--steps",
        "2",
        "--check-every",
        "1",
        launcher=launcher,
    )
    assert going_on.returncode == 0, going_on.stderr[-3000:]
    assert "resuming after step 1" in going_on.stderr
    assert len(rows(two)) == 2


QUICK = ("--rollout-engine", "transformers")
Here = Callable[..., tuple[int, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Run the command in this process: exit status and what it said."""

    def run(*words: str | Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["densepath", "train", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as leaves:
            status = int(leaves.code or 0)
        return status, " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--max-new-tokens", "5000"], "must fit the context length"),
        (["--sft", "{tmp}"], ": config.json: is missing"),
        (["--prompts", "{tmp}/none.jsonl"], "cannot be read"),
        (["--checker", "nothing:here"], "nothing"),
        (["--log-to", "paper"], "unknown tracker"),
        (["--run", "{prompts}"], "has other content"),
    ],
)
def test_what_is_wrong_is_said_before_a_step(
    change: list[str],
    message: str,
    service: str,
    ending_pair: tuple[Path, Path],
    prompts_file: Path,
    tmp_path: Path,
    here: Here,
) -> None:
    changed = [word.format(tmp=tmp_path, prompts=prompts_file.parent) for word in change]
    status, said = here(*options(service, ending_pair[0], prompts_file, tmp_path / "run"), *QUICK, *changed)
    assert status == 2, said
    assert message in said
    assert "Traceback" not in said


def test_another_tokenizer_is_refused(service: str, prompts_file: Path, tmp_path: Path, here: Here) -> None:
    from checkpoints import make_checkpoint, make_tokenizer

    other = make_checkpoint(tmp_path / "other", tokenizer=make_tokenizer(290))
    status, said = here(*options(service, other, prompts_file, tmp_path / "run"), *QUICK)
    assert status == 2, said
    assert "--sft does not fit the pair" in said
    assert "its vocabulary, merges or special tokens are not the pair's" in " ".join(said.split())


def test_a_run_goes_on_only_with_its_own_settings_and_pair(
    service: str, ending_pair: tuple[Path, Path], prompts_file: Path, tmp_path: Path, here: Here
) -> None:
    given = [*options(service, ending_pair[0], prompts_file, tmp_path / "run"), *QUICK]
    assert here(*given)[0] == 0
    status, said = here(*given, "--gamma", "0.5", "--seed", "3")
    assert status == 2, said
    assert "a run with different settings (gamma, seed)" in said
    sft, reference = ending_pair
    swapped = ("--sft", reference, "--reference", sft, "--engine", "transformers")
    with serving(*swapped, log=tmp_path / "log") as url:
        status, said = here(*given, "--url", url)
    assert status == 2, said
    assert "serve the first pair again" in said


def test_a_service_that_is_not_there_ends_it_in_words(
    ending_pair: tuple[Path, Path], prompts_file: Path, tmp_path: Path, here: Here
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    status, said = here(
        *options(url, ending_pair[0], prompts_file, tmp_path / "run"), *QUICK, "--wait-seconds", "1"
    )
    assert status == 2, said
    assert "the service did not answer within 1 s" in said
    assert not (tmp_path / "run").exists()

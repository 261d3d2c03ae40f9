"""`densepath demo`: the paper's whole method on two CPU cores, with the commands that a user would type.

    base → densepath sft → densepath serve (a separate process) → densepath train over HTTP → report
                        ↘ densepath sft, continued for as many steps: what DPR has to beat

Existing results are not made again, so a demo that was stopped can be resumed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx
from rich.console import Console

from densepath.demo.prompts import with_answer, write_rows
from densepath.demo.recipe import Mixture, Recipe
from densepath.demo.show import stage_bars
from densepath.demo.task import Example, draw, held_out
from densepath.demo.verdict import Compared, compare, evaluation_table
from densepath.errors import InternalError
from densepath.files import require_free, reserved_directory, whole_directory, write_whole
from densepath.pair import runs
from densepath.rewards.kl import KL_COEFFICIENT
from densepath.trainer import run_files

#: For DPR, and for the continued SFT: both take the same number of steps and samples.
STEPS, BATCH = 80, 64
#: The most likely behaviour of this base model is wrong, and the SFT is slow enough to leave a clear ratio
#: between the checkpoints. In this case `densepath probe` predicts a gain (docs/LOG.md).
RECIPE = Recipe(pretraining=Mixture(0.20, 0.68, 0.06, 0.04, 0.02), sft_rate=3e-5, sft_steps=1600)
#: The settings of the first measurements of the method. They were not chosen on the held-out files
#: (docs/LOG.md).
DPR = ("--gamma", "0", "--kl", f"{KL_COEFFICIENT:g}", "--learning-rate", "1e-4")
PROMPTS, CHECKED, HELD_OUT = 4096, 256, 600
LONGEST = 16  # tokens of a response
STARTS_WITHIN = 300.0  # seconds
STOPS_WITHIN = 60.0

#: One thread per process: the models are tiny, and the service and the trainer share two cores.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_demo(directory: Path, say: Console, show: Console, recipe: Recipe | None = None) -> list[Compared]:
    """Run the method in `directory`. Prints its table, and where the report is."""
    with reserved_directory(directory):
        return _run_demo(directory, say, show, recipe or RECIPE)


def _run_demo(directory: Path, say: Console, show: Console, recipe: Recipe) -> list[Compared]:
    begin = time.monotonic()
    say.rule("the base model: pretrained on a mixture of behaviours, most of them wrong")
    pretrain(directory / "base", recipe, say)
    files = write_files(directory, recipe)
    fine_tune(directory / "sft", directory / "base", files, recipe, say)
    with serving(directory / "sft", directory / "service.log", say) as url:
        continue_sft(directory / "continued", directory / "sft" / runs.FINAL, files, recipe, say)
        say.rule("Dense-Path REINFORCE, with the rewards of the service")
        densepath(
            say,
            "train",
            *("--sft", directory / "sft" / runs.FINAL, "--url", url, "--run", directory / "dpr"),
            *("--prompts", files["prompts"], "--held-out", files["check"], "--check-every", 20),
            *("--steps", STEPS, "--prompts-per-step", BATCH, "--max-new-tokens", LONGEST, *DPR),
        )
    say.rule("what it gained")
    finals = {name: directory / name / runs.FINAL for name in ("sft", "continued")}
    finals["dpr"] = directory / "dpr" / run_files.FINAL
    sets = {"fresh prompts": files["held_out"], "prompts with English words": files["english"]}
    compared = [compare(name, finals, path, LONGEST, say) for name, path in sets.items()]
    table = evaluation_table(compared)
    for one in compared:
        show.print(one.table())
    show.print(table["note"], soft_wrap=True)
    write_whole(directory / "dpr" / run_files.EVALUATION, json.dumps(table, indent=1).encode())
    densepath(say, "report", directory / "dpr")
    say.print(f"{time.monotonic() - begin:.0f} s in total; all files are in {directory}", soft_wrap=True)
    return compared


def pretrain(directory: Path, recipe: Recipe, say: Console) -> None:
    """Make the recipe's base model in `directory`."""
    if directory.is_dir():
        say.print(f"{directory} already exists", soft_wrap=True)
        return
    from densepath.demo.builder import build_base_into

    with whole_directory(directory) as partial, stage_bars(say) as progress:
        build_base_into(partial, recipe, progress)


def write_files(directory: Path, recipe: Recipe) -> dict[str, Path]:
    """Write demonstrations, prompts and held-out prompts, in the form in which a user would provide them.

    Words are six random letters, so that no prompt is in two files. `english` has English words instead.
    """
    rng = random.Random(f"the method {recipe.seed}")  # noqa: S311
    imperfect = draw(recipe.demonstrations, rng)
    rows: dict[str, list[dict[str, object]]] = {
        "demonstrations": [_demonstration(e) for e in islice(imperfect, recipe.training_demonstrations)],
        "validation": [_demonstration(e) for e in islice(imperfect, recipe.validation_demonstrations)],
        "prompts": [{"messages": list(e.messages)} for e in islice(imperfect, PROMPTS)],
        "check": [with_answer(e) for e in islice(imperfect, CHECKED)],
        "held_out": [with_answer(e) for e in islice(imperfect, HELD_OUT)],
        "english": [with_answer(e) for e in held_out(recipe.held_out, rng)],
    }
    return {name: write_rows(directory / f"{name}.jsonl", of_file) for name, of_file in rows.items()}


def _demonstration(example: Example) -> dict[str, object]:
    return {"messages": list(example.messages), "response": example.response}


def fine_tune(run: Path, base: Path, files: dict[str, Path], recipe: Recipe, say: Console) -> None:
    """SFT on imperfect demonstrations until its validation minimum, with the halfway checkpoint."""
    say.rule("SFT on imperfect demonstrations, until its validation minimum")
    until = ("--validate-every", recipe.validate_every, "--patience", recipe.patience)
    _sft(run, base, files, recipe, recipe.sft_steps, say, "--validation", files["validation"], *until)


def continue_sft(run: Path, sft: Path, files: dict[str, Path], recipe: Recipe, say: Console) -> None:
    """The same SFT, continued for as many steps and samples as DPR takes."""
    say.rule("the same SFT, continued for as many steps as DPR takes")
    _sft(run, sft, files, recipe, STEPS, say)


def _sft(
    run: Path, start: Path, files: dict[str, Path], recipe: Recipe, steps: int, say: Console, *more: object
) -> None:
    if (run / runs.MANIFEST).is_file():
        say.print(f"{run} already exists", soft_wrap=True)
        return
    require_free(run)
    shutil.rmtree(run, ignore_errors=True)  # what a killed run left
    densepath(
        say,
        "sft",
        *("--base", start, "--demonstrations", files["demonstrations"], "--run", run, "--max-steps", steps),
        *("--batch-size", recipe.sft_batch, "--learning-rate", recipe.sft_rate, *more),
    )


def densepath(say: Console, *words: object) -> None:
    """Run a densepath command, and print it as a user would type it. Raises InternalError if it fails."""
    say.print(f"$ densepath {' '.join(map(str, words))}", style="bold", soft_wrap=True, markup=False)
    if subprocess.run(_command(*words), env=os.environ | _ENVIRONMENT, check=False).returncode:  # noqa: S603
        raise InternalError(f"`densepath {words[0]}` failed: its last lines above give the reason")


@contextmanager
def serving(run: Path, log: Path, say: Console) -> Iterator[str]:
    """The URL of a service with the pair of a run, which runs in a separate process."""
    say.rule("the service: both checkpoints in one engine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ("serve", "--pair", run, "--port", port)
    say.print(f"$ densepath {' '.join(map(str, words))}", style="bold", soft_wrap=True, markup=False)
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603
            _command(*words), env=os.environ | _ENVIRONMENT, stdout=file, stderr=file
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(process, url, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)  # between two checks of the condition
    raise InternalError(f"the service did not become ready: {log} gives the reason")


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "densepath", *map(str, words)]

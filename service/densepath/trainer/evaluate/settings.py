"""Every setting of `densepath eval` and `densepath probe`, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from densepath.config import CONFIG_FILE
from densepath.trainer.rollouts.engines import RolloutEngine

_CHECKER = "module:function or file.py:function, called as (prompt, response, answer); default: exact match."
_JSON = "Write everything here, as JSON."


@dataclass(frozen=True)
class EvalSettings:
    """What `densepath eval` is told."""

    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Model directories.", show_default=False)
    ]
    held_out: Annotated[
        Path | None, typer.Option(help="Prompts with answers: .jsonl, .parquet or a `datasets` directory.")
    ] = None
    checker: Annotated[str | None, typer.Option(help=_CHECKER)] = None
    seeds: Annotated[int, typer.Option(help="Samples of each prompt, beside the greedy response.", min=1)] = 4
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of a response at most; one that is cut is wrong.", min=1)
    ] = 256
    engine: Annotated[RolloutEngine, typer.Option(help="What generates; transformers is slow, in fp32.")] = (
        RolloutEngine.VLLM
    )
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(help="Share of the GPU for the vllm engine; default 0.25.", min=0.01, max=1.0),
    ] = None
    output: Annotated[Path | None, typer.Option("-o", "--output", help=_JSON)] = None
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Write the greedy answers here, in the files of AlpacaEval, MT-Bench and Arena-Hard."
        ),
    ] = None
    lm_eval: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness to run, commas between.")
    ] = None
    lm_eval_args: Annotated[str, typer.Option(help="More of its arguments, as in '--limit 100'.")] = ""
    config: CONFIG_FILE = None


@dataclass(frozen=True)
class ProbeSettings:
    """What `densepath probe` is told."""

    prompts: Annotated[
        Path, typer.Option(help="Prompts with answers: .jsonl, .parquet or a `datasets` directory.")
    ]
    pair: Annotated[Path | None, typer.Option(help="A run of `densepath sft`: all that it offers.")] = None
    sft: Annotated[Path | None, typer.Option(help="Instead of a run: the SFT checkpoint.")] = None
    reference: Annotated[
        list[Path] | None, typer.Option(help="Instead of a run: a reference checkpoint. May be repeated.")
    ] = None
    alphas: Annotated[str, typer.Option(help="Strengths to try, commas between; b of the KL is 1/alpha.")] = (
        "0.5,1,2"
    )
    count: Annotated[int, typer.Option(help="How many of the prompts are asked, drawn at random.", min=1)] = (
        300
    )
    seeds: Annotated[int, typer.Option(help="Samples of each prompt, beside the greedy response.", min=1)] = 1
    checker: Annotated[str | None, typer.Option(help=_CHECKER)] = None
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of a response at most; one that is cut is wrong.", min=1)
    ] = 256
    output: Annotated[Path | None, typer.Option("-o", "--output", help=_JSON)] = None
    config: CONFIG_FILE = None

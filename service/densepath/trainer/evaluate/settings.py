"""The settings of `densepath eval` and `densepath probe`. Each is declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from densepath.config import CONFIG_FILE
from densepath.trainer.rollouts.engines import RolloutEngine

_CHECKER = (
    "What judges a response: module:function or file.py:function, called as (prompt, response, answer). "
    "Default: exact match with the answer."
)
_JSON = "File for the whole report, as JSON."


@dataclass(frozen=True)
class EvalSettings:
    """The settings of `densepath eval`."""

    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT...", help="Directories of models or LoRA adapters.", show_default=False
        ),
    ]
    held_out: Annotated[
        Path | None,
        typer.Option(help="Prompts with answers: a .jsonl file, a .parquet file or a `datasets` directory."),
    ] = None
    checker: Annotated[str | None, typer.Option(help=_CHECKER)] = None
    seeds: Annotated[
        int, typer.Option(help="Sampled responses per prompt, in addition to the greedy one.", min=1)
    ] = 4
    max_new_tokens: Annotated[
        int,
        typer.Option(
            help="Most tokens in a response. A response that reaches the limit counts as wrong.", min=1
        ),
    ] = 256
    engine: Annotated[
        RolloutEngine, typer.Option(help="Engine that generates. transformers is slow and computes in fp32.")
    ] = RolloutEngine.VLLM
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(help="Share of the GPU's memory for the vllm engine. Default: 0.25.", min=0.01, max=1.0),
    ] = None
    output: Annotated[Path | None, typer.Option("-o", "--output", help=_JSON)] = None
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the greedy answers, as files of AlpacaEval, MT-Bench and Arena-Hard."
        ),
    ] = None
    lm_eval: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness to run, separated by commas.")
    ] = None
    lm_eval_args: Annotated[
        str, typer.Option(help="More arguments for lm-evaluation-harness, such as '--limit 100'.")
    ] = ""
    config: CONFIG_FILE = None


@dataclass(frozen=True)
class ProbeSettings:
    """The settings of `densepath probe`."""

    prompts: Annotated[
        Path,
        typer.Option(help="Prompts with answers: a .jsonl file, a .parquet file or a `datasets` directory."),
    ]
    pair: Annotated[
        Path | None,
        typer.Option(help="Directory of a run of `densepath sft`. All of its references are tried."),
    ] = None
    sft: Annotated[
        Path | None,
        typer.Option(help="Directory of the SFT checkpoint, or of a LoRA adapter, instead of --pair."),
    ] = None
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="Directory of a reference checkpoint, or of a LoRA adapter, instead of --pair. May be given "
            "repeatedly."
        ),
    ] = None
    alphas: Annotated[
        str,
        typer.Option(help="Strengths alpha to try, separated by commas. The KL coefficient b is 1/alpha."),
    ] = "0.5,1,2"
    count: Annotated[int, typer.Option(help="Number of prompts to use, drawn at random.", min=1)] = 300
    seeds: Annotated[
        int, typer.Option(help="Sampled responses per prompt, in addition to the greedy one.", min=1)
    ] = 1
    checker: Annotated[str | None, typer.Option(help=_CHECKER)] = None
    max_new_tokens: Annotated[
        int,
        typer.Option(
            help="Most tokens in a response. A response that reaches the limit counts as wrong.", min=1
        ),
    ] = 256
    output: Annotated[Path | None, typer.Option("-o", "--output", help=_JSON)] = None
    config: CONFIG_FILE = None

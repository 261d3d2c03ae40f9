"""The settings of `densepath serve`, `check` and `score`. Each is declared once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from densepath.config import CONFIG_FILE, ENGINE, Engine, EngineOptions, Limits, PairSettings, Verify
from densepath.rewards.kl import KL_COEFFICIENT


@dataclass(frozen=True)
class ServeSettings(Limits, EngineOptions, PairSettings):
    """The settings of `densepath serve`."""

    engine: Annotated[
        Engine,
        typer.Option(
            help="vllm is the fast engine. transformers is slow and serves as a check. fake needs no model, "
            "and its numbers mean nothing.",
            rich_help_panel=ENGINE,
        ),
    ] = Engine.VLLM
    verify: Annotated[
        Verify,
        typer.Option(
            help="When to compare the engine with transformers before it serves. auto: once for this pair, "
            "engine and machine. always: at every start, however long it takes. off: never; the service then "
            "reports that it is not verified.",
            rich_help_panel=ENGINE,
        ),
    ] = Verify.AUTO
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000
    model_name: Annotated[str, typer.Option(help="Name of the pair in requests and answers.")] = "default"
    teacher_kl: Annotated[
        float,
        typer.Option(
            help="The KL coefficient b of the model dpr-teacher, as --kl of `densepath train`. Above 0.",
            min=1e-6,
        ),
    ] = KL_COEFFICIENT
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with one API key per line. Without it, every route is open to everyone."),
    ] = None
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with one admin key per line, for the routes under /admin. Without it, they are off. "
            "An admin key is also good for every other route."
        ),
    ] = None
    pair_root: Annotated[
        Path | None,
        typer.Option(
            help="Directory under which PUT /admin/pair finds other pairs to serve. Without it, the pair "
            "stays as it is."
        ),
    ] = None
    allowed_hosts: Annotated[
        str | None,
        typer.Option(
            help="Names in the Host header that are answered besides localhost, 127.0.0.1 and ::1, separated "
            "by commas; * for any. Default: none without a key file, any with one. Probes and /metrics take "
            "any."
        ),
    ] = None
    drain_seconds: Annotated[
        float,
        typer.Option(help="Seconds that running requests may still take after SIGTERM.", min=0.0),
    ] = 30.0
    config: CONFIG_FILE = None


@dataclass(frozen=True)
class CheckSettings(EngineOptions, PairSettings):
    """The settings of `densepath check`."""

    engine: Annotated[
        bool,
        typer.Option(
            "--engine",
            help="Also start the vLLM engine, and compare its numbers with those of transformers.",
            allow_from_autoenv=False,  # for `serve`, DENSEPATH_ENGINE is the name of an engine
        ),
    ] = False
    config: CONFIG_FILE = None


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(EngineOptions, PairSettings):
    """The settings of `densepath score`."""

    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="File of items: .jsonl or .parquet.",
            exists=True,
            dir_okay=False,
            readable=True,
            show_default=False,
        ),
    ]
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File for the results: .jsonl, .parquet or .safetensors."),
    ] = None
    url: Annotated[str | None, typer.Option(help="Address of a running service.")] = None
    api_key: Annotated[str | None, typer.Option(help="API key of that service.")] = field(
        default=None, repr=False
    )
    engine: Annotated[Engine, typer.Option(help="Without --url: the engine.", rich_help_panel=ENGINE)] = (
        Engine.VLLM
    )
    include: Annotated[
        list[str] | None,
        typer.Option(help="Add this to each result: logprobs, returns or tokens. May be given repeatedly."),
    ] = None
    gamma: Annotated[float, typer.Option(min=0.0, max=1.0, help="Discount of the returns.")] = 1.0
    show: Annotated[
        bool, typer.Option("--show", help="Print the tokens of each response, coloured by reward.")
    ] = False
    config: CONFIG_FILE = None

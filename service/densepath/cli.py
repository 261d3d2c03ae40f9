"""The commands: parse, call, print; nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import densepath
from densepath.config import ENVIRONMENT, Engine, ServeSettings, takes
from densepath.errors import DensepathError
from densepath.score_files import ScoreFileError

app = typer.Typer(
    name="densepath",
    help="Dense rewards from two checkpoints of one SFT run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
say = Console(stderr=True, highlight=False)


@app.callback(invoke_without_command=True)
def densepath_command(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Dense rewards from two checkpoints of one SFT run."""
    if version:
        print(densepath.__version__)
        raise typer.Exit


@app.command(context_settings=ENVIRONMENT)
@takes(ServeSettings)
def serve(settings: ServeSettings) -> None:
    """Serve a pair: POST /v1/rewards answers one reward for every token.

    Give --sft and --reference, or --demo. Every option is also DENSEPATH_… in the environment and a key
    of the --config file; flags win over the environment, which wins over the file.
    """
    from densepath.launch import serve_pair

    serve_pair(settings, say)


@app.command()
def check(
    sft: Annotated[Path, typer.Option(help="Directory of the SFT checkpoint.")],
    reference: Annotated[Path, typer.Option(help="Directory of the reference checkpoint.")],
) -> None:
    """Say whether two directories are a pair, what is wrong if not, and the pair's version."""
    from densepath.launch import show_check

    if not show_check(sft, reference, say):
        raise typer.Exit(1)


@app.command()
def score(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Items: .jsonl or .parquet.", exists=True)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Results: .jsonl, .parquet or .safetensors.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="A running service.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="DENSEPATH_API_KEY", help="Key of that service.")
    ] = None,
    sft: Annotated[Path | None, typer.Option(help="Without a service: the SFT checkpoint.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Without a service: the reference checkpoint.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Without a service: the engine.")] = Engine.VLLM,
    include: Annotated[
        list[str] | None, typer.Option(help="More for each item: logprobs, returns, tokens. May be repeated.")
    ] = None,
    gamma: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the returns.")] = 1.0,
    show: Annotated[bool, typer.Option("--show", help="Print the tokens coloured by reward.")] = False,
) -> None:
    """Score a file of items, by a running service or with the pair in this process.

    An item is what POST /v1/rewards takes, for example {"prompt": "2 + 2 =", "response": " 4"}. Results go to
    OUT as they come; the same command goes on where a killed one stopped. A bad item becomes an error, with
    no number, and the others go on.
    """
    from densepath.offline import Job, score_offline

    job = Job(source, output, tuple(include or ()), gamma, show)
    counts = score_offline(job, say, url=url, api_key=api_key, sft=sft, reference=reference, engine=engine)
    say.print(f"{counts.scored} scored, {counts.failed} failed")
    if counts.failed:
        raise typer.Exit(1)


def main() -> None:
    """The `densepath` command."""
    try:
        app()
    except (DensepathError, ScoreFileError) as error:
        say.print("[red]error[/red] ", end="")
        say.print(str(error), markup=False, soft_wrap=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        say.print(f"[red]error[/red] this command needs the package {error.name}: install densepath with the")
        say.print("extra that has it, `densepath\\[cpu]` or `densepath\\[cuda]`; in a clone, `make setup`.")
        sys.exit(2)

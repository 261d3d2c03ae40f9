"""The commands: parse, call, print; nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import densepath
from densepath.config import ENVIRONMENT, CheckSettings, ScoreSettings, ServeSettings, takes
from densepath.errors import DensepathError, EngineStartError, InvalidPairError
from densepath.score.formats import ScoreFileError
from densepath.trainer.errors import TrainerError
from densepath.trainer.evaluate.settings import EvalSettings, ProbeSettings
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.sft.settings import SftSettings

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

    Give --sft and --reference, or --pair with a run of `densepath sft`, or --demo. Every option is also
    DENSEPATH_… in the environment and a key of the --config file; flags win over the environment, which wins
    over the file.
    """
    from densepath.commands.serve import serve_pair

    serve_pair(settings, say)


@app.command(context_settings=ENVIRONMENT)
@takes(CheckSettings)
def check(settings: CheckSettings) -> None:
    """Check whether two directories are a pair, and print the version of the pair or what is wrong.

    With --engine, some sequences are scored by the engine exactly as `densepath serve` would run it, and by
    transformers. If they differ by more than the limit, the command names the model and the sequence, and
    ends with status 1. Give the same engine options as to `densepath serve`.
    """
    from densepath.commands.check import check_pair

    if not check_pair(settings, say):
        raise typer.Exit(1)


@app.command(context_settings=ENVIRONMENT)
@takes(ScoreSettings)
def score(settings: ScoreSettings) -> None:
    """Score a file of items, with a running service or with the pair in this process.

    An item is what POST /v1/rewards takes, for example {"prompt": "2 + 2 =", "response": " 4"}. Results are
    written as they come. If the command is killed, the same command resumes where it stopped. An item that
    cannot be scored gets an error and no number; the other items are scored.
    """
    from densepath.commands.score import score_offline

    counts = score_offline(settings, say)
    say.print(f"{counts.scored} scored, {counts.failed} failed")
    if counts.failed:
        raise typer.Exit(1)


@app.command(context_settings=ENVIRONMENT)
@takes(TrainSettings)
def train(settings: TrainSettings) -> None:
    """Improve the SFT policy by Dense-Path REINFORCE, with the rewards that a service answers.

    Every option is also DENSEPATH_… in the environment and a key of the --config file. Killed at any moment,
    the same command goes on from the last checkpoint. On several GPUs: torchrun --nproc-per-node N
    -m -- densepath train …
    """
    from densepath.trainer.reinforce.run import train as run

    say.print(f"ended: {run(settings, say)}", markup=False)
    say.print(f"the policy lies in {settings.run / 'final'}", markup=False, soft_wrap=True)


@app.command(context_settings=ENVIRONMENT)
@takes(ProbeSettings)
def probe(settings: ProbeSettings) -> None:
    """Say which reference promises a gain on plain SFT, before anything is trained.

    Decodes from p_sft (p_sft / p_ref)^alpha, greedily and by sampling, for every alpha and reference: give
    --pair RUN, or --sft and --reference.
    """
    from densepath.trainer.evaluate.probe import run_probe

    run_probe(settings, say, Console(highlight=False))


@app.command("eval", context_settings=ENVIRONMENT)
@takes(EvalSettings)
def evaluate(settings: EvalSettings) -> None:
    """Compare checkpoints on held-out prompts: greedy and sampled, with intervals, paired with the first.

    A response is right where it ends and is exactly its prompt's answer, or where the --checker says so.
    """
    from densepath.trainer.evaluate.run import run_evaluation

    run_evaluation(settings, say, Console(highlight=False))


@app.command(context_settings=ENVIRONMENT)
@takes(SftSettings)
def sft(settings: SftSettings) -> None:
    """Fine-tune a model on demonstrations, and save the checkpoints that a reward's reference may be.

    A demonstration is {"messages": […], "response": "…"}, {"prompt": "…", "response": "…"}, or messages that
    end with the assistant's. Learned are the response's tokens and the EOS token after it.

    The run has base/ (the model before SFT), share-0.50/ (after half of the samples), final/ and a manifest
    that says how each was made; `densepath serve --pair RUN` serves it. Every option is also DENSEPATH_… in
    the environment and a key of the --config file.
    """
    from densepath.trainer.sft.directory import show_run
    from densepath.trainer.sft.run import fine_tune

    show_run(fine_tune(settings, say), say)


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Option(help="Where it goes, some 20 MB; what is there already is not made again.")
    ] = Path("densepath-demo"),
) -> None:
    """Run the paper's whole method on two CPU cores, without a download, in some minutes.

    Base model, SFT, the pair's service, Dense-Path REINFORCE with its rewards, and an honest table of what
    that gained. Each step is a densepath command, which is shown.
    """
    from densepath.demo.method import run_demo

    run_demo(directory, say, Console(highlight=False))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run of `densepath train`.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory for the page; default: RUN.")
    ] = None,
) -> None:
    """Make one self-contained page of a run, report.html, and PNGs of its charts in report/."""
    from densepath.trainer.report.page import write_report

    print(write_report(run, output))


def main() -> None:
    """The `densepath` command."""
    try:
        app()
    except (DensepathError, ScoreFileError, TrainerError) as error:
        say.print("[red]error[/red] ", end="")
        say.print(str(error), markup=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, EngineStartError | InvalidPairError) else 2)
    except ModuleNotFoundError as error:
        say.print(f"[red]error[/red] this command needs the package {error.name}: install densepath with the")
        say.print("extras that have it, `densepath\\[cpu,train]` or `densepath\\[cuda,train]`;")
        say.print("in a clone, `make setup`.")
        sys.exit(2)

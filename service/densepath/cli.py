"""The commands: they read their options, call the function that does the work, and print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

import densepath
from densepath.commands.settings import CheckSettings, ScoreSettings, ServeSettings
from densepath.config import ENVIRONMENT, takes
from densepath.errors import DensepathError, EngineStartError, InvalidPairError
from densepath.file_errors import explain
from densepath.files import InUseError
from densepath.garbage import collect_rarely
from densepath.score.formats import ScoreFileError
from densepath.trainer.errors import TrainerError
from densepath.trainer.evaluate.settings import EvalSettings, ProbeSettings
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.sft.settings import SftSettings

collect_rarely()  # here, because the processes that vLLM spawns import this module first
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
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Dense rewards from two checkpoints of one SFT run."""
    if version:
        print(densepath.__version__)
        raise typer.Exit


@app.command(context_settings=ENVIRONMENT)
@takes(ServeSettings)
def serve(settings: ServeSettings) -> None:
    """Serve a pair: POST /v1/rewards answers with one reward for every token.

    Give --sft and --reference, or --pair with a run of `densepath sft` or of another trainer, or --demo. You
    can also set every option by a variable DENSEPATH_… in the environment, or by a key in the --config file.
    A flag wins over the environment, which wins over the file.
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
    """Improve the SFT policy by Dense-Path REINFORCE, with the rewards of a running service.

    You can kill a run at any time: the same command resumes it from the last checkpoint and ends with the
    same weights. You can also set every option by a variable DENSEPATH_… in the environment, or by a key in
    the --config file. On several GPUs: torchrun --nproc-per-node N -m -- densepath train …
    """
    from densepath.trainer.reinforce.run import train as run

    say.print(f"ended: {run(settings, say)}", markup=False)
    say.print(f"the policy lies in {settings.run / 'final'}", markup=False, soft_wrap=True)


@app.command(context_settings=ENVIRONMENT)
@takes(ProbeSettings)
def probe(settings: ProbeSettings) -> None:
    """Estimate which reference promises a gain over plain SFT, before anything is trained.

    For every alpha and every reference, it decodes from p_sft (p_sft / p_reference)^alpha, greedily and by
    sampling. Give --pair RUN, or --sft and --reference.
    """
    from densepath.trainer.evaluate.probe import run_probe

    run_probe(settings, say, Console(highlight=False))


@app.command("eval", context_settings=ENVIRONMENT)
@takes(EvalSettings)
def evaluate(settings: EvalSettings) -> None:
    """Compare checkpoints on held-out prompts, by greedy and by sampled responses, with 95 % intervals.

    Differences are to the first checkpoint, on the same prompts. A response is right if it ends and is
    exactly the answer of its prompt, or if the --checker accepts it.
    """
    from densepath.trainer.evaluate.run import run_evaluation

    run_evaluation(settings, say, Console(highlight=False))


@app.command(context_settings=ENVIRONMENT)
@takes(SftSettings)
def sft(settings: SftSettings) -> None:
    """Fine-tune a model on demonstrations, and save the checkpoints that can be a reference.

    A demonstration is {"messages": […], "response": "…"}, {"prompt": "…", "response": "…"}, or messages that
    end with one of the assistant. The model learns the tokens of the response and the EOS token after it.

    The run directory has base/ (the model before SFT), share-0.50/ (after half of the samples), final/, and
    a manifest that describes how each was made. `densepath serve --pair RUN` serves it. You can also set
    every option by a variable DENSEPATH_… in the environment, or by a key in the --config file.
    """
    from densepath.trainer.sft.directory import show_run
    from densepath.trainer.sft.run import fine_tune

    show_run(fine_tune(settings, say), say)


@app.command()
def demo(
    directory: Annotated[
        Path,
        typer.Option(help="Directory for the results, about 20 MB. What is there already is not made again."),
    ] = Path("densepath-demo"),
) -> None:
    """Run the paper's whole method on two CPU cores in a few minutes, without a download.

    It makes a base model, fine-tunes it, serves the pair, trains by Dense-Path REINFORCE with its rewards,
    and prints a table of what was gained or lost. Each step is a densepath command, which is printed.
    """
    from densepath.demo.method import run_demo

    run_demo(directory, say, Console(highlight=False))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run of `densepath train`.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory for the page. Default: RUN.")
    ] = None,
) -> None:
    """Make a self-contained page about a run, report.html, and its charts as PNG files in report/."""
    from densepath.trainer.report.page import write_report

    print(write_report(run, output))


def main() -> None:
    """The `densepath` command."""
    try:
        app()
    except (DensepathError, ScoreFileError, TrainerError) as error:
        _end(str(error), 1 if isinstance(error, EngineStartError | InvalidPairError) else 2)
    except InUseError as error:
        _end(str(error), 1)  # 2 says that a second start does not help; what is in use may be free then
    except OSError as error:
        if (sentence := explain(error)) is None:
            raise
        _end(sentence, 2)
    except ModuleNotFoundError as error:
        say.print(f"[red]error[/red] this command needs the package {error.name}: install densepath with the")
        say.print("extras that have it, `densepath\\[cpu,train]` or `densepath\\[cuda,train]`;")
        say.print("in a clone, `make setup`.")
        sys.exit(2)


def _end(sentence: str, status: int) -> NoReturn:
    say.print("[red]error[/red] ", end="")
    say.print(sentence, markup=False, soft_wrap=True)
    sys.exit(status)

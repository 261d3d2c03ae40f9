"""The commands: parse, call, print; nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import densepath
from densepath.config import ALLOW_SAME, ENVIRONMENT, Engine, ServeSettings, Verify, takes
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


@app.command()
def check(
    sft: Annotated[Path, typer.Option(help="Directory of the SFT checkpoint.")],
    reference: Annotated[Path, typer.Option(help="Directory of the reference checkpoint.")],
    allow_same: Annotated[bool, ALLOW_SAME] = False,
    engine: Annotated[
        bool,
        typer.Option(
            "--engine", help="Also start the vLLM engine, and hold its numbers against those of transformers."
        ),
    ] = False,
    dtype: Annotated[str, typer.Option(help="As serve's.")] = "auto",
    max_model_len: Annotated[int | None, typer.Option(help="As serve's.", min=2)] = None,
) -> None:
    """Say whether two directories are a pair, what is wrong if not, and the pair's version.

    With --engine, a handful of sequences goes through the engine exactly as it would serve, and through
    transformers. A difference past the limit names the model and the sequence, and ends with status 1.
    """
    from densepath.commands.serve import check_pair

    settings = ServeSettings(
        sft=sft,
        reference=reference,
        allow_same=allow_same,
        dtype=dtype,
        max_model_len=max_model_len,
        verify=Verify.ALWAYS,
    )
    if not check_pair(settings, say, with_engine=engine):
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
    allow_same: Annotated[bool, ALLOW_SAME] = False,
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
    from densepath.commands.score import Job, score_offline

    job = Job(source, output, tuple(include or ()), gamma, show)
    counts = score_offline(
        job,
        say,
        url=url,
        api_key=api_key,
        sft=sft,
        reference=reference,
        engine=engine,
        allow_same=allow_same,
    )
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


@app.command()
@takes(ProbeSettings)
def probe(settings: ProbeSettings) -> None:
    """Say which reference promises a gain on plain SFT, before anything is trained.

    Decodes from p_sft (p_sft / p_ref)^alpha, greedily and by sampling, for every alpha and reference: give
    --pair RUN, or --sft and --reference.
    """
    from densepath.trainer.evaluate.probe import run_probe

    run_probe(settings, say, Console(highlight=False))


@app.command("eval")
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

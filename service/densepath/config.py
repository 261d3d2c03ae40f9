"""How settings become options, and the settings that several commands share.

Each setting is declared once: its flag, its variable, its key in a TOML file and its help text.

A flag wins over the environment (`DENSEPATH_` and the name in capitals), which wins over the file. Loading
this module loads neither torch nor the server. Each command declares its own settings in the same way, beside
its code.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

#: For `typer`: each option of a command is also `DENSEPATH_…` in the environment.
ENVIRONMENT = {"auto_envvar_prefix": "DENSEPATH"}


#: Headings of `--help`.
PAIR, ENGINE, LIMITS = "The pair", "The engine", "Limits"
#: What `--help` shows as the value of an option that names a directory or a repository of the hub.
NAME = "DIR|ORG/NAME"


class Engine(StrEnum):
    """What computes the log-probabilities."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"
    FAKE = "fake"


class Verify(StrEnum):
    """When the engine is held against transformers."""

    AUTO = "auto"
    ALWAYS = "always"
    OFF = "off"


def _read_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make a TOML file's values the defaults of this command; an unknown key is an error."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise typer.BadParameter(f"{path} can't be read as TOML: {error}") from error
    options = {key.replace("-", "_"): value for key, value in values.items()}
    known = {parameter.name for parameter in context.command.params} - {"config", "help"}
    if unknown := sorted(options.keys() - known):
        raise typer.BadParameter(f"{path} has unknown options: {', '.join(unknown)}")
    context.default_map = options
    return path


#: The type of the field `config` of every settings class.
CONFIG_FILE = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with any of these options.", is_eager=True, callback=_read_file, dir_okay=False
    ),
]


@dataclass(frozen=True)
class PairSettings:
    """Which two checkpoints are the pair."""

    sft: Annotated[
        str | None,
        typer.Option(
            help="The SFT checkpoint or a LoRA adapter: a directory, or org/name or org/name@revision on the "
            "Hugging Face hub.",
            metavar=NAME,
            rich_help_panel=PAIR,
        ),
    ] = None
    reference: Annotated[
        str | None,
        typer.Option(
            help="The reference checkpoint or a LoRA adapter, named as for --sft.",
            metavar=NAME,
            rich_help_panel=PAIR,
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            help="An adapter's base model, named as for --sft. Default: the one that its config names.",
            metavar=NAME,
            rich_help_panel=PAIR,
        ),
    ] = None
    fix_names: Annotated[
        bool,
        typer.Option(
            "--fix-names",
            help="Use a renamed copy of a checkpoint whose tensors or config keys have odd names of a known "
            "kind, and print what was renamed.",
            rich_help_panel=PAIR,
        ),
    ] = False
    pair: Annotated[
        str | None,
        typer.Option(
            help="A run of `densepath sft`, or the output folder of another trainer, instead of --sft and "
            "--reference: a directory, or a repository on the hub as for --sft.",
            metavar=NAME,
            rich_help_panel=PAIR,
        ),
    ] = None
    reference_at: Annotated[
        float,
        typer.Option(
            help="With --pair: take the checkpoint after this share of the training samples as the "
            "reference. Of another trainer's checkpoints, the nearest one is taken. 0 is the base model.",
            min=0.0,
            max=1.0,
            rich_help_panel=PAIR,
        ),
    ] = 0.5
    demo: Annotated[
        bool,
        typer.Option(
            "--demo", help="Use the small demo pair. It is built the first time.", rich_help_panel=PAIR
        ),
    ] = False
    allow_same: Annotated[
        bool,
        typer.Option(
            "--allow-same",
            help="Accept a pair of two equal checkpoints. Every reward is then 0.",
            rich_help_panel=PAIR,
        ),
    ] = False


@dataclass(frozen=True)
class EngineOptions:
    """How vLLM runs the pair; None leaves the choice to the engine."""

    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16 or float16, for both models. auto takes the dtype of each checkpoint.",
            rich_help_panel=ENGINE,
        ),
    ] = "auto"
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="Context length in tokens. Default: the shorter context length of the two models.",
            min=2,
            rich_help_panel=ENGINE,
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            help="Share of the GPU's memory for the weights and the KV cache.",
            min=0.01,
            max=1.0,
            rich_help_panel=ENGINE,
        ),
    ] = None
    kv_cache_memory_bytes: Annotated[
        int | None,
        typer.Option(
            help="Size of the KV cache in bytes, instead of a share of the memory. Default on a CPU: 1 GiB.",
            min=1 << 20,
            rich_help_panel=ENGINE,
        ),
    ] = None
    tensor_parallel_size: Annotated[
        int, typer.Option(help="Number of GPUs that share each model.", min=1, rich_help_panel=ENGINE)
    ] = 1
    distributed_executor_backend: Annotated[
        str | None,
        typer.Option(help="How vLLM starts several workers: mp or ray.", rich_help_panel=ENGINE),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens in one step of the engine. Default: chosen by the GPU's memory; 2048 for "
            "float32 and on a CPU.",
            min=1,
            rich_help_panel=ENGINE,
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help="Most sequences in one step of the engine. Default: chosen by the GPU's memory; 128 for "
            "float32 and on a CPU.",
            min=1,
            rich_help_panel=ENGINE,
        ),
    ] = None


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how much may wait."""

    max_items: Annotated[
        int, typer.Option(help="Most items in one request.", min=1, rich_help_panel=LIMITS)
    ] = 256
    max_body_bytes: Annotated[
        int, typer.Option(help="Most bytes in the body of one request.", min=1, rich_help_panel=LIMITS)
    ] = 32 << 20
    max_queued_tokens: Annotated[
        int,
        typer.Option(
            help="Most tokens that may wait or run. Beyond that, requests are refused with status 503.",
            min=1,
            rich_help_panel=LIMITS,
        ),
    ] = 262_144
    key_tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            help="Tokens that each API key may have scored per minute. Beyond that, its requests are refused "
            "with status 429. An admin key has no quota.",
            min=1,
            rich_help_panel=LIMITS,
        ),
    ] = None
    body_seconds: Annotated[
        float,
        typer.Option(
            help="Seconds within which the whole body of a request must arrive.",
            min=0.001,
            rich_help_panel=LIMITS,
        ),
    ] = 30.0
    hang_seconds: Annotated[
        float,
        typer.Option(
            help="Seconds without a forward pass, while work waits, after which the engine is ended and "
            "started again. Longer than the longest step of the engine.",
            min=0.01,
            rich_help_panel=LIMITS,
        ),
    ] = 120.0
    request_seconds: Annotated[
        float,
        typer.Option(
            help="Seconds within which a request must be answered, its wait for its turn included.",
            min=0.001,
            rich_help_panel=LIMITS,
        ),
    ] = 600.0
    max_connections: Annotated[
        int,
        typer.Option(
            help="Most open connections. Beyond that, only the probes and /metrics are answered.",
            min=1,
            rich_help_panel=LIMITS,
        ),
    ] = 2048
    max_connections_per_address: Annotated[
        int,
        typer.Option(
            help="Most open connections from one address. A proxy in front of the service is one address.",
            min=1,
            rich_help_panel=LIMITS,
        ),
    ] = 1024


def takes(settings: type[Settings]) -> Callable[[Callable[[Settings], None]], Callable[..., None]]:
    """Turn a function of a settings object into one that takes each setting as an option.

    A field without a default is a required option.
    """

    def decorate(function: Callable[[Settings], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            function(settings(**values))

        hints = get_type_hints(settings, include_extras=True)
        parameters = [
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=hints[f.name]
            )
            for f in fields(settings)
        ]
        # Paragraphs without their line breaks: the terminal's width decides where a line ends.
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        command.__name__ = function.__name__
        command.__doc__ = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
        command.__annotations__ = hints
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default

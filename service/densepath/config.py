"""Every setting of `densepath serve`, once: its flag, its variable, its key in a TOML file, its help.

A flag wins over the environment (`DENSEPATH_` and the name in capitals), which wins over the file. Loading
this module loads neither torch nor the server. Other commands declare their settings in the same way, beside
their code.
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

from densepath.rewards.kl import KL_COEFFICIENT

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

#: For `typer`: each option of a command is also `DENSEPATH_…` in the environment.
ENVIRONMENT = {"auto_envvar_prefix": "DENSEPATH"}


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
    typer.Option(help="TOML file with these options.", is_eager=True, callback=_read_file, dir_okay=False),
]

#: Of every command that reads a pair.
ALLOW_SAME = typer.Option(
    "--allow-same", help="Take a pair whose two checkpoints are the same: every reward is 0."
)


@dataclass(frozen=True)
class ServeSettings:
    """What `densepath serve` is told."""

    sft: Annotated[Path | None, typer.Option(help="Directory of the SFT checkpoint.")] = None
    reference: Annotated[Path | None, typer.Option(help="Directory of the reference checkpoint.")] = None
    pair: Annotated[
        Path | None,
        typer.Option(help="Instead of both: a run of `densepath sft`."),
    ] = None
    reference_at: Annotated[
        float,
        typer.Option(
            help="With --pair: the reference, by its share of the samples; 0: the base model.",
            min=0.0,
            max=1.0,
        ),
    ] = 0.5
    allow_same: Annotated[bool, ALLOW_SAME] = False
    demo: Annotated[bool, typer.Option("--demo", help="Build the small demo pair once, then serve it.")] = (
        False
    )
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000
    model_name: Annotated[str, typer.Option(help="Name under which the pair is served.")] = "default"
    teacher_kl: Annotated[
        float, typer.Option(help="The b of model dpr-teacher, as `densepath train --kl`; above 0.", min=1e-6)
    ] = KL_COEFFICIENT
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with one API key a line; without it every route is open.")
    ] = None
    engine: Annotated[
        Engine, typer.Option(help="vllm; transformers is the slow oracle; the numbers of fake mean nothing.")
    ] = Engine.VLLM
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto is the checkpoint's own.")] = (
        "auto"
    )
    verify: Annotated[
        Verify,
        typer.Option(
            help="Hold the engine against transformers before it serves: auto once for this pair, engine and "
            "machine; always at every start, however long it takes; off serves it unverified."
        ),
    ] = Verify.AUTO
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Context length in tokens; default: the shorter of the two models'.", min=2),
    ] = None
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of the GPU's memory for weights and cache.", min=0.01, max=1.0)
    ] = None
    kv_cache_memory_bytes: Annotated[
        int | None, typer.Option(help="Size of the KV cache instead of a share; 1 GiB on a CPU.", min=1 << 20)
    ] = None
    tensor_parallel_size: Annotated[int, typer.Option(help="GPUs that share each model.", min=1)] = 1
    distributed_executor_backend: Annotated[
        str | None, typer.Option(help="How vLLM runs several workers: mp or ray.")
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens that one step of the engine takes; default: by the GPU's memory, "
            "2048 in float32 and on a CPU.",
            min=1,
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help="Sequences that one step of the engine takes; default: by the GPU's memory, "
            "128 in float32 and on a CPU.",
            min=1,
        ),
    ] = None
    max_queued_tokens: Annotated[
        int, typer.Option(help="Tokens queued or running before requests are refused with 503.", min=1)
    ] = 262_144
    max_items: Annotated[int, typer.Option(help="Items in one request.", min=1)] = 256
    max_body_bytes: Annotated[int, typer.Option(help="Bytes in one request's body.", min=1)] = 32 << 20
    drain_seconds: Annotated[
        float, typer.Option(help="After SIGTERM, how long requests in flight may take.", min=0.0)
    ] = 30.0
    config: CONFIG_FILE = None


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
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = hints
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default

"""From settings to a running service: the pair, the engine, the application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from densepath.config import Engine, ServeSettings, Verify
from densepath.engine.scorer import Scorer
from densepath.errors import InvalidRequestError
from densepath.pair.pair import Pair, inspect_pair, load_pair
from densepath.pair.runs import read_sft_run

if TYPE_CHECKING:
    from densepath.api.service import Service
    from densepath.client import AsyncClient
    from densepath.verification.start import Start
    from densepath.verification.verdict import Difference, Verdict

T = TypeVar("T")


def serve_pair(settings: ServeSettings, say: Console) -> None:
    """Serve until SIGTERM."""
    from densepath.api.app import create_app
    from densepath.api.server import serve
    from densepath.commands.welcome import welcome
    from densepath.telemetry.logs import configure_logs
    from densepath.telemetry.traces import open_traces

    configure_logs()
    traces = open_traces()  # before the engine: it takes a variable of theirs away
    service = build_service(settings, say)
    service.traces = traces
    app = create_app(service, engine=settings.engine.value, examples=demo_examples() if settings.demo else ())
    url = f"http://{settings.host}:{settings.port}"
    say.print(f"loading the pair into the {settings.engine.value} engine: {url}")

    async def run() -> None:
        showing = asyncio.ensure_future(welcome(app, service, url, say)) if settings.demo else None
        try:
            await serve(
                app, service, host=settings.host, port=settings.port, drain_seconds=settings.drain_seconds
            )
        finally:
            if showing is not None:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)

    try:
        asyncio.run(run())
    finally:
        traces.close()


@contextmanager
def local_client(settings: ServeSettings, say: Console) -> Iterator[tuple[AsyncClient, asyncio.Runner]]:
    """The service without a socket: a client whose requests go straight into the application."""
    from densepath.api.app import create_app
    from densepath.client import AsyncClient
    from densepath.telemetry.logs import configure_logs

    configure_logs(logging.WARNING)
    with asyncio.Runner() as runner:
        service = build_service(settings, say)
        say.print(f"loading the pair into the {settings.engine.value} engine")
        app = create_app(service, engine=settings.engine.value)
        client = AsyncClient("http://densepath", transport=httpx.ASGITransport(app))
        try:
            runner.run(service.start())
            yield client, runner
        finally:
            runner.run(client.aclose())
            runner.run(service.scorer.close())


def build_service(settings: ServeSettings, say: Console) -> Service:
    """The service of the settings, its pair checked and not yet loaded."""
    from densepath.api.service import ApiKeys, Limits, Service
    from densepath.sequences import Tokenizer

    pair = read_pair(*directories(settings, say), say, allow_same=settings.allow_same)
    scorer, start = build_engine(pair, settings, say)
    return Service(
        pair=pair,
        tokenizer=Tokenizer(load_tokenizer(pair)),
        scorer=scorer,
        start_engine=start,
        model_name=settings.model_name,
        teacher_kl=settings.teacher_kl,
        limits=Limits(settings.max_items, settings.max_body_bytes, settings.max_queued_tokens),
        keys=ApiKeys.from_file(settings.api_key_file),
    )


def demo_examples() -> list[dict[str, Any]]:
    """Examples of the demo, which is built already, for the playground."""
    from densepath.demo.playground import playground_examples
    from densepath.demo.recipe import Recipe
    from densepath.demo.store import default_directory, read

    demo = read(default_directory(), Recipe())
    return playground_examples(demo.examples) if demo else []


def directories(settings: ServeSettings, say: Console) -> tuple[Path, Path]:
    """The two checkpoints that the settings name."""
    match settings.demo, settings.pair, settings.sft, settings.reference:
        case False, None, Path() as sft, Path() as reference:
            return sft, reference
        case False, Path() as directory, None, None:
            run = read_sft_run(directory)
            return run.final, run.reference_at(settings.reference_at)
        case True, None, None, None:
            from densepath.demo.show import build_and_show

            demo = build_and_show(say)
            return demo.sft, demo.reference_base  # the clearer signal of the two, by its own table
    raise InvalidRequestError("give both --sft and --reference, or --pair RUN alone, or --demo alone")


def read_pair(sft: Path, reference: Path, say: Console, *, allow_same: bool = False) -> Pair:
    """Check a pair, with a bar while weights are read; what is worth knowing of it is printed."""
    with _bytes_bar(say) as bar:
        pair = load_pair(sft, reference, allow_same=allow_same, progress=_watch(bar))
    _show_notes(pair, say)
    return pair


def check_pair(settings: ServeSettings, say: Console, *, with_engine: bool) -> bool:
    """Print what `densepath check` found; True for a pair, that the engine computes as transformers does."""
    with _bytes_bar(say) as bar:
        found = inspect_pair(
            *directories(settings, say), allow_same=settings.allow_same, progress=_watch(bar)
        )
    if not isinstance(found, Pair):
        for problem in found:
            say.print(f"not a pair: {problem}", markup=False, soft_wrap=True)
        return False
    _print_pair(found)
    _show_notes(found, say)
    if not with_engine:
        return _show_trial(found, settings, say)
    _print_verdict(asyncio.run(_verify_once(found, settings, say)))
    return True


async def _verify_once(pair: Pair, settings: ServeSettings, say: Console) -> Verdict:
    scorer, start = build_engine(pair, settings, say)
    try:
        return await start(scorer)
    finally:
        await scorer.close()


def _print_verdict(verdict: Verdict) -> None:
    print(f"verified        {verdict.against or verdict.reason}")
    for name in ("sft", "reference", "reward"):
        difference: Difference | None = getattr(verdict, name)
        if difference is not None:
            largest, mean = difference.largest, difference.mean
            print(f"{name:<16}differs by at most {largest:.1e} nats, by {mean:.1e} in the mean")
    print(f"limit           {verdict.limit:.1e} nats")
    print(f"noise           {verdict.noise:.1e} nats: alone or together, cold or with the prefix cache")
    for name in verdict.left_out:
        print(f"not probed      {name}")


def _print_pair(found: Pair) -> None:
    print(f"version         {found.version}")
    print(f"architectures   {found.architectures[0]}, {found.architectures[1]}")
    print(f"dtype           {found.dtype}; of the reference {found.reference_dtype}")
    print(f"vocabulary      {found.vocab_size} ids, {found.embedding_size} rows")
    print(f"context length  {found.context_length} tokens")
    print(f"EOS ids         {', '.join(map(str, sorted(found.eos_token_ids)))}")
    print(f"chat template   {found.chat_template_fingerprint or 'none'}")


def _show_trial(pair: Pair, settings: ServeSettings, say: Console) -> bool:
    """Print whether the engine can run a pair; False where it cannot."""
    from densepath.engine.vllm.trial import try_pair

    try:
        reason = _for_vllm(try_pair, pair, settings)
    except LookupError as unknown:
        print(f"engine          not tried: {unknown}")
        return True
    if reason is not None:
        say.print(f"the engine cannot run this pair: {reason}", markup=False, soft_wrap=True)
        return False
    print("engine          runs this pair")
    return True


def _show_notes(pair: Pair, say: Console) -> None:
    for note in pair.notes:
        say.print(f"note: {note}", markup=False, soft_wrap=True)


def load_tokenizer(pair: Pair) -> Any:
    """The tokenizer that both models share."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pair.sft, trust_remote_code=False, local_files_only=True)


def build_engine(pair: Pair, settings: ServeSettings, say: Console) -> tuple[Scorer, Start]:
    """The engine that was asked for, and how it is started: verified, or with the reason why not."""
    from densepath.verification.start import Verifier, start_unverified

    context_length = _context_length(pair, settings)
    if settings.engine is Engine.FAKE:
        from densepath.engine.fake import FakeScorer

        return FakeScorer(context_length), start_unverified("the numbers of the fake engine mean nothing")
    if settings.engine is Engine.TRANSFORMERS:
        from densepath.engine.transformers import TransformersScorer

        scorer = TransformersScorer(pair.sft, pair.reference, context_length=context_length)
        return scorer, start_unverified("this engine is transformers, which others are held against")
    from densepath.engine.vllm.arguments import engine_arguments
    from densepath.engine.vllm.device import device_name
    from densepath.engine.vllm.engine import VllmScorer
    from densepath.engine.vllm.environment import cpu_build
    from densepath.engine.vllm.reasons import reasons

    arguments = _for_vllm(engine_arguments, pair, settings)
    if settings.verify is Verify.OFF:
        return VllmScorer(arguments), start_unverified("--verify is off")
    return VllmScorer(arguments), Verifier(
        pair=pair,
        arguments=arguments,
        device=device_name(),
        cuda=not cpu_build(),
        verify=settings.verify,
        say=lambda line: say.print(line, markup=False, soft_wrap=True),
        reasons=reasons,
    )


def _context_length(pair: Pair, settings: ServeSettings) -> int:
    context_length = settings.max_model_len or pair.context_length
    if context_length > pair.context_length:
        raise InvalidRequestError(
            f"--max-model-len {context_length} is more than "
            f"the {pair.context_length} tokens that both models take"
        )
    return context_length


def _for_vllm(function: Callable[..., T], pair: Pair, settings: ServeSettings) -> T:
    """Call a function that takes what `engine_arguments` takes."""
    from densepath.engine.vllm.arguments import EngineOptions

    options = EngineOptions(
        dtype=settings.dtype,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        tensor_parallel_size=settings.tensor_parallel_size,
        distributed_executor_backend=settings.distributed_executor_backend,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_seqs=settings.max_num_seqs,
    )
    return function(
        pair.sft,
        pair.reference,
        checkpoint_dtype=pair.dtype,
        context_length=_context_length(pair, settings),
        options=options,
    )


def _bytes_bar(say: Console) -> Progress:
    return Progress(
        TextColumn("reading weights"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=say,
        transient=True,
    )


def _watch(bar: Progress) -> Any:
    task = bar.add_task("reading weights", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)

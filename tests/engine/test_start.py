"""An engine that cannot start says why in one sentence, and nothing else."""

from __future__ import annotations

import asyncio
import inspect
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pydantic
import pytest

from architectures.specimen import make_config
from architectures.zoo import ZOO
from checkpoints import make_checkpoint, write_checkpoint
from densepath.engine.vllm.reasons import FILE, reason_of
from densepath.errors import EngineStartError
from live import finish, free_port

from .other_checkpoints import make_other
from .test_vllm_pair import tiny_arguments

pytestmark = pytest.mark.engine


def test_serve_ends_with_one_sentence(tmp_path: Path) -> None:
    """A hybrid that a CPU cannot run: the engine process fails while it builds the models."""
    fields = {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
    sft = make_other(tmp_path / "sft", "jamba", seed=1, **fields)
    reference = make_other(tmp_path / "reference", "jamba", seed=2, **fields)
    error = ends(tmp_path, "serve", "--port", free_port(), "--sft", sft, "--reference", reference)
    assert "the engine cannot start: the sft has Mamba 1 layers" in error


def test_score_and_check_end_with_the_same_sentence(pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    """Heads of 16 dimensions: the CPU's attention would die at the first request."""
    narrow = make_other(tmp_path / "narrow", "llama", num_attention_heads=4)
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt_token_ids": [7, 8], "response_token_ids": [9]}) + "\n")
    pair = ("--sft", pair_dirs[0], "--reference", narrow)
    scored = ends(tmp_path, "score", source, "-o", tmp_path / "out.jsonl", *pair)
    checked = ends(tmp_path, "check", *pair, fresh=True)
    reason = "the reference's attention heads have 16 dimensions: on this device, serve a checkpoint whose"
    assert f"the engine cannot start: {reason}" in scored
    assert f"the engine cannot run this pair: {reason}" in checked


def test_a_wrong_engine_ends_with_one_sentence(tmp_path: Path) -> None:
    """Cohere with a head of its own: vLLM takes the embedding for it."""
    sft, reference = (make_other(tmp_path / name, "cohere", seed=n) for n, name in enumerate(("a", "b")))
    error = ends(tmp_path, "serve", "--port", free_port(), "--sft", sft, "--reference", reference)
    assert "the engine cannot" not in error
    assert "the engine does not compute the sft as transformers does: log p is off by up to" in error


def test_an_engine_that_ends_of_a_probe_says_why(tmp_path: Path) -> None:
    """DeepSeek V2: the CPU has no kernel for its attention, and says so when it runs."""
    deepseek = ZOO["DeepSeek V2"]
    sft, reference = (
        write_checkpoint(tmp_path / name, make_config(deepseek), seed=n) for n, name in enumerate(("a", "b"))
    )
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt_token_ids": [7, 8], "response_token_ids": [9]}) + "\n")
    pair = ("--sft", sft, "--reference", reference)
    error = ends(tmp_path, "score", source, "-o", tmp_path / "out.jsonl", *pair)
    assert "the engine cannot run this pair: " in error
    assert not error.endswith("the engine is not running")


def ends(scratch: Path, *words: str | Path | int, fresh: bool = False) -> str:
    """The one sentence on standard error, of a command that ends with exit status 1."""
    command = [sys.executable, "-m", "densepath", *map(str, words)]
    done = finish(command, env={"XDG_CACHE_HOME": str(scratch)}, within=240, fresh=fresh)
    assert done.returncode == 1, done.stderr
    assert no_trace(done.stdout + done.stderr)
    (error,) = (line for line in done.stderr.splitlines() if line.startswith(("error ", "the engine cannot")))
    return error


def no_trace(said: str) -> bool:
    """Neither a traceback nor a logged error; torch and vLLM warn and count at a good start too."""
    return not any(word in said for word in ("Traceback", "File ", "ERROR", "raise "))


async def why(sft: Path, reference: Path, **overrides: Any) -> str:
    """Why the engine does not start; it is checked that nothing of it is left."""
    from densepath.engine.vllm.engine import VllmScorer

    scorer = VllmScorer(tiny_arguments(sft, reference) | overrides)
    try:
        with pytest.raises(EngineStartError) as caught:
            await scorer.start()
    finally:
        await scorer.close()
    assert FILE not in os.environ
    for process in multiprocessing.active_children():
        process.join(30)  # killed by now, and gone soon
    assert not [p for p in psutil.Process().children() if "EngineCore" in " ".join(p.cmdline())]
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the engine cannot start: ")
    return message


async def test_what_vllm_refuses_before_any_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gemma = [make_checkpoint(tmp_path / name, "gemma2", seed=1) for name in ("sft", "reference")]
    message = await why(*gemma, dtype="float16")
    assert "does not support float16" in message
    assert "bfloat16 or float32" in message, "what would be right"
    assert "errors.pydantic.dev" not in message
    assert no_trace(capfd.readouterr().err)


@pytest.mark.parametrize(("method", "workers"), [("spawn", 1), ("fork", 1), ("fork", 2)])
async def test_what_an_engine_process_says(
    method: str, workers: int, pair_dirs: tuple[Path, Path], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of two, or the engine process itself: the cache has no room for one sequence."""
    if method == "fork":  # what CUDA does; the CPU build spawns
        context = multiprocessing.get_context("fork")
        monkeypatch.setattr("vllm.v1.engine.utils.get_mp_context", lambda: context)
        monkeypatch.setattr("vllm.v1.executor.multiproc_executor.get_mp_context", lambda: context)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    message = await why(*pair_dirs, kv_cache_memory_bytes=1 << 17, tensor_parallel_size=workers)
    assert "KV cache is needed, which is larger than the available KV cache memory" in message
    assert "decreasing `max_model_len`" in message
    assert no_trace(capfd.readouterr().err)


async def test_what_a_worker_says(
    pair_dirs: tuple[Path, Path], tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    """With tensor parallelism the workers fail, and the engine process has only heard of it."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    sft = make_other(tmp_path / "sft", "llama", num_attention_heads=4)
    message = await why(sft, pair_dirs[1], tensor_parallel_size=2)
    assert "the sft's attention heads have 16 dimensions" in message
    assert no_trace(capfd.readouterr().err)


async def test_an_engine_process_that_is_killed(pair_dirs: tuple[Path, Path]) -> None:
    """As the kernel does where memory runs out."""
    failing = asyncio.ensure_future(why(*pair_dirs))
    while not failing.done():
        for process in psutil.Process().children():
            with suppress(psutil.Error):  # it may have ended by now
                if "EngineCore" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
    message = await failing
    assert "was killed by SIGKILL" in message
    assert "most likely, memory ran out" in message


def test_vllm_runs_its_engine_process_by_the_function_that_is_replaced() -> None:
    from vllm.v1.engine.utils import CoreEngineProcManager

    source = inspect.getsource(CoreEngineProcManager.__init__)
    assert "target=EngineCoreProc.run_engine_core" in source, "core_process.run is no longer what is run"


class Settings(pydantic.BaseModel):
    size: int


def caught(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as info:  # noqa: PT011
        function()
    return info.value


def test_a_reason_is_one_line() -> None:
    """Whatever was raised."""
    assert reason_of(ValueError("too\n  many\nlines")) == "too many lines"
    assert reason_of(KeyError("layers.0")) == "KeyError: 'layers.0'"
    assert reason_of(caught(lambda: Settings(size="large"))) == (  # type: ignore[arg-type]
        "Input should be a valid integer, unable to parse string as an integer"
    )
    assert reason_of(caught(lambda: json.JSONEncoder().default(object()))).startswith("TypeError: Object of")
    wrapped = RuntimeError("a traceback of Ray's")
    wrapped.cause = ValueError("what its worker said")  # type: ignore[attr-defined]
    assert reason_of(wrapped) == "what its worker said"
    assert len(reason_of(ValueError("x" * 5000))) < 1000

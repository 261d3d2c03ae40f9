"""Transformers' log-probabilities of the probes, computed in a process of its own.

In a process of its own: its memory is free when the engine asks for it, no CUDA context is left behind, and
where the kernel ends it for want of memory, the service lives. One model is in memory at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from densepath.errors import InvalidPairError
from densepath.sequences import Sequence

if TYPE_CHECKING:
    from collections.abc import Sequence as ListLike

Float32 = NDArray[np.float32]

#: Of the memory that is free, what one model may take; a larger one passes through it layer by layer.
MEMORY_SHARE = 0.6
#: The time that a job may take is held against an estimate; past so many times of it, it is ended.
LATE = 2
#: One layer's eager attention may take so much; a probe that needs more is computed with fused attention.
ATTENTION_BYTES = 2 << 30


class OracleError(Exception):
    """Transformers gave no answer; the reason in words."""


class TooSlowError(OracleError):
    """It would take longer than it may."""


@dataclass(frozen=True)
class OracleJob:
    """What the oracle's process is asked."""

    directories: tuple[str, ...]  # one model each
    parameters: tuple[int, ...]  # of each model
    dtypes: tuple[str, ...]  # torch's names
    cuda: bool  # whether it may take the GPU
    seconds: float | None  # what it may take in all; None for any time
    memory_bytes: int | None = None  # instead of a share of what is free


@dataclass(frozen=True)
class OracleAnswer:
    """Log-probabilities of the scored tokens: for each model and dtype one float32 [T] per sequence."""

    models: tuple[dict[str, list[Float32]], ...]
    device: str
    seconds: float


async def ask_oracle(job: OracleJob, sequences: ListLike[Sequence]) -> OracleAnswer:
    """Run one job; cancelling it ends its process.

    Raises OracleError where transformers gives no answer, InvalidPairError where a checkpoint is not whole.
    """
    with tempfile.TemporaryDirectory(prefix="densepath-oracle-") as folder:
        place = Path(folder)
        _write_job(place, job, sequences)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "densepath.verification.oracle", folder),
            stdin=asyncio.subprocess.PIPE,  # its end tells the process that the service is gone
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            status = await asyncio.wait_for(process.wait(), job.seconds and LATE * job.seconds)
        except TimeoutError:
            raise TooSlowError(
                f"transformers took over {LATE * (job.seconds or 0) / 60:.0f} minutes"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        answer = place / "answer.json"
        if status or not answer.is_file():
            ended = f"its process ended with status {status}"
            raise OracleError(f"{ended}: out of memory" if status == -9 else ended)
        told = json.loads(answer.read_text(encoding="utf-8"))
        if "refused" in told:
            raise InvalidPairError(told["refused"])
        if "slow" in told:
            raise TooSlowError(told["slow"])
        if "error" in told:
            raise OracleError(told["error"])
        with np.load(place / "answer.npz") as arrays:
            models = tuple(
                {
                    dtype: [arrays[f"{model} {dtype} {i}"] for i in range(len(sequences))]
                    for dtype in job.dtypes
                }
                for model in range(len(job.directories))
            )
        return OracleAnswer(models, told["device"], told["seconds"])


def _write_job(place: Path, job: OracleJob, sequences: ListLike[Sequence]) -> None:
    (place / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    arrays = {f"ids {i}": sequence.token_ids_L for i, sequence in enumerate(sequences)}
    arrays |= {f"positions {i}": sequence.positions_T for i, sequence in enumerate(sequences)}
    np.savez(place / "job.npz", **arrays)  # type: ignore[arg-type]  # numpy types a keyword as its option


def _run(place: Path) -> None:
    """In the oracle's process: do the job of a folder, and leave the answer beside it."""
    job = OracleJob(**json.loads((place / "job.json").read_text(encoding="utf-8")))
    with np.load(place / "job.npz") as arrays:
        count = len(arrays.files) // 2
        sequences = [Sequence(arrays[f"ids {i}"], arrays[f"positions {i}"]) for i in range(count)]
    begin = time.monotonic()
    try:
        device = _device(job)
        _refuse_slow(job, sum(len(sequence.token_ids_L) for sequence in sequences), device)
        results = {
            f"{model} {dtype} {i}": logp_T
            for model in range(len(job.directories))
            for dtype in job.dtypes
            for i, logp_T in enumerate(_logprobs(job, model, dtype, sequences, device))
        }
    except TooSlowError as error:
        told: dict[str, Any] = {"slow": str(error)}
    except InvalidPairError as error:
        told = {"refused": error.message}
    except Exception as error:  # the library raises many kinds
        told = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"}
    else:
        np.savez(place / "answer.npz", **results)  # type: ignore[arg-type]
        told = {"device": device, "seconds": round(time.monotonic() - begin, 1)}
    (place / "answer.json").write_text(json.dumps(told), encoding="utf-8")


def _device(job: OracleJob) -> str:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return "cuda" if job.cuda and torch.cuda.is_available() else "cpu"


def _refuse_slow(job: OracleJob, tokens: int, device: str) -> None:
    """Raises TooSlowError where the products alone take longer than the job may."""
    if job.seconds is None:
        return
    expected = sum(2 * sum(job.parameters) * tokens / _rate(dtype, device) for dtype in job.dtypes)
    if expected > job.seconds:
        raise TooSlowError(
            f"transformers would take about {expected / 60:.0f} minutes on this machine's {device}, and may "
            f"take {job.seconds / 60:.0f}"
        )


def _rate(dtype: str, device: str) -> float:
    """Floating-point operations of a second in a matrix product of that dtype, measured."""
    import torch

    size = 4096 if device == "cuda" else 768
    matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(4):
        begin = time.monotonic()
        float((matrix @ matrix)[0, 0])  # waits for the device
        best = min(best, time.monotonic() - begin)
    return 2 * size**3 / best


def _logprobs(
    job: OracleJob, number: int, dtype: str, sequences: ListLike[Sequence], device: str
) -> list[Float32]:
    import torch

    from densepath.engine.transformers import load_model, logprobs_over_vocabulary

    with tempfile.TemporaryDirectory(prefix="densepath-offload-") as offload:
        placement = _placement(job, job.parameters[number], dtype, device, offload)
        model = load_model(Path(job.directories[number]), dtype=dtype, **placement)
        heads = int(getattr(model.config.get_text_config(), "num_attention_heads", 1) or 1)
        logp_N_T = []
        with torch.inference_mode():
            for sequence in sequences:
                _choose_attention(model, heads, len(sequence.token_ids_L))
                logp_T_V = logprobs_over_vocabulary(model, sequence)
                target_T = torch.from_numpy(sequence.scored_ids_T).to(logp_T_V.device)
                logp_N_T.append(logp_T_V.gather(1, target_T[:, None])[:, 0].cpu().numpy())
        return logp_N_T


def _placement(job: OracleJob, parameters: int, dtype: str, device: str, offload: str) -> dict[str, Any]:
    """Where the model's layers lie: on the device where they fit, else one after the other through it."""
    import torch

    need = parameters * torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    memory: dict[int | str, int] = {"cpu": job.memory_bytes or int(MEMORY_SHARE * free_memory())}
    if device == "cuda":
        memory = {0: job.memory_bytes or int(MEMORY_SHARE * torch.cuda.mem_get_info()[0]), **memory}
    if need <= next(iter(memory.values())):
        return {"device_map": {"": device}} if device == "cuda" else {}
    return {"device_map": "auto", "max_memory": memory, "offload_folder": offload}


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory that are free, within the limit of a container where there is one."""
    import psutil

    free: int = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        return min(free, max(0, limit - int((cgroup / "memory.current").read_text())))
    except (OSError, ValueError):
        return free


def _choose_attention(model: Any, heads: int, length: int) -> None:
    """Eager attention holds `[heads, length, length]` in float32; a long probe takes the fused one."""
    config = model.config.get_text_config()
    long = 4 * heads * length**2 > ATTENTION_BYTES
    if long and getattr(config, "attn_logit_softcapping", None) is not None:
        raise OracleError("a probe is too long for eager attention, and this model has no other")
    wanted = "sdpa" if long else "eager"
    if model.config._attn_implementation != wanted:
        model.set_attn_implementation(wanted)


def _end_with_service() -> None:
    os.read(0, 1)  # returns when standard input ends: nothing is ever sent
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_service, daemon=True).start()
    _run(Path(sys.argv[1]))

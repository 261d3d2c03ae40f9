"""The pair's answers: from `densepath serve` over HTTP, and from an engine in a process of its own.

Run as a program it is that process: `engines.py SETTINGS.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from figures import Both

from densepath.client import Client
from densepath.sequences import Sequence, from_response

#: What every service is started with besides the pair; a case's own options win. The comparison is made here.
SERVE = ("--verify", "off")
ONE_AT_A_TIME = 4  # sequences that are also sent alone


def _items(sequences: list[Sequence]) -> list[dict[str, object]]:
    return [
        {
            "prompt_token_ids": each.token_ids_L[: each.prompt_tokens],
            "response_token_ids": each.token_ids_L[each.prompt_tokens :],
        }
        for each in sequences
    ]


def _both(scores: Any) -> Both:
    return [each.logp_sft_T for each in scores], [each.logp_reference_T for each in scores]


def over_http(url: str, sequences: list[Sequence], within: float) -> tuple[dict[str, Both], int]:
    """Some alone, then all at once, cold and warm; how many tokens the last took from the cache.

    `within` is in seconds, for each request.
    """
    items = _items(sequences)
    with Client(url) as client:
        alone = [
            client.score([item], include=["logprobs"], deadline=within)[0] for item in items[:ONE_AT_A_TIME]
        ]
        cold = client.score(items, include=["logprobs"], deadline=within)
        warm = client.score(items, include=["logprobs"], deadline=within)
    answers = {"alone": _both(alone), "cold": _both(cold), "warm": _both(warm)}
    return answers, warm.usage["cached_tokens"]


def in_process(
    pair: tuple[Path, Path],
    sequences: list[Sequence],
    *,
    dtype: str,
    options: dict[str, Any],
    overrides: dict[str, Any],
    within: float,
    log: Path,
) -> tuple[dict[str, Both], int]:
    """All at once, cold and warm, by an engine in one process; how many requests were preempted.

    `options` are those of `EngineOptions`, `overrides` vLLM's own.
    """
    settings = log.with_suffix(".json")
    context_length = max(len(each.token_ids_L) for each in sequences) + 1
    settings.write_text(
        json.dumps(
            {
                "pair": [str(directory) for directory in pair],
                "dtype": dtype,
                "context_length": context_length,
                "options": options,
                "overrides": overrides,
                "sequences": [[each.prompt_tokens, each.token_ids_L.tolist()] for each in sequences],
                "answers": str(log.with_suffix(".npz")),
            }
        )
    )
    with log.open("wb") as output:
        ran = subprocess.run(
            [sys.executable, __file__, settings],
            stdout=output,
            stderr=output,
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            timeout=within,
            check=False,
        )
    if ran.returncode:
        raise RuntimeError(f"the engine ended with {ran.returncode}:\n{log.read_text()[-4000:]}")
    found = np.load(log.with_suffix(".npz"))
    ends = np.cumsum([len(each.positions_T) for each in sequences])[:-1]
    answers: dict[str, Both] = {
        phase: (np.split(found[f"{phase} sft"], ends), np.split(found[f"{phase} reference"], ends))
        for phase in ("cold", "warm")
    }
    return answers, int(found["preempted"])


def _answer(settings: dict[str, Any]) -> None:
    import densepath.engine.vllm.environment  # noqa: F401

    # isort: split
    from vllm.v1.core.sched.scheduler import Scheduler

    from densepath.config import EngineOptions
    from densepath.engine.vllm.arguments import engine_arguments
    from densepath.engine.vllm.engine import OfflineVllm

    preempted: list[str] = []
    preempt = Scheduler._preempt_request

    def counted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(self, request, *args, **kwargs)

    Scheduler._preempt_request = counted
    sequences = [
        from_response(np.array(ids[:start]), np.array(ids[start:])) for start, ids in settings["sequences"]
    ]
    arguments = engine_arguments(
        Path(settings["pair"][0]),
        Path(settings["pair"][1]),
        checkpoint_dtype=settings["dtype"],
        context_length=settings["context_length"],
        options=EngineOptions(**settings["options"]),
    )
    engine = OfflineVllm(arguments | settings["overrides"])
    columns: dict[str, Any] = {}
    for phase in ("cold", "warm"):
        scored = engine.score(sequences)
        columns[f"{phase} sft"] = np.concatenate([each.logp_sft_T for each in scored])
        columns[f"{phase} reference"] = np.concatenate([each.logp_reference_T for each in scored])
    np.savez(settings["answers"], preempted=len(preempted), **columns)
    engine.close()


if __name__ == "__main__":
    _answer(json.loads(Path(sys.argv[1]).read_text()))

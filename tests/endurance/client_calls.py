"""A process that calls the Python client again and again, and says what it holds meanwhile.

    python -m endurance.client_calls URL KEY CALLS SEED

Each line of its output is a JSON object: the calls so far, and the memory, threads, descriptors and tasks.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
from collections import Counter
from contextlib import aclosing

import psutil

from densepath import AsyncClient, Client
from densepath.errors import DensepathError

EVERY = 100
#: Calls of one client before it is closed, and a new one is opened.
CALLS_OF_A_CLIENT = 50


def items(rng: random.Random, count: int) -> list[dict[str, list[int]]]:
    def ids() -> list[int]:
        return [rng.randrange(6, 300) for _ in range(rng.randrange(1, 30))]

    return [{"prompt_token_ids": ids(), "response_token_ids": ids()} for _ in range(count)]


BAD = {"prompt_token_ids": [1], "response_token_ids": [320]}


def call(client: Client, rng: random.Random) -> str:
    """One call of one kind: what came of it."""
    kind = rng.choice(["few", "many", "bad", "bad item", "no time", "iterate", "pair", "tokenize", "ready"])
    try:
        if kind == "iterate":
            for _ in zip(client.iter_score(items(rng, 20)), range(3)):  # noqa: B905  # it ends early
                pass
        elif kind == "pair":
            client.pair()
        elif kind == "tokenize":
            client.tokenize("the sum is five")
        elif kind == "ready":
            client.ready()
        else:
            client.score(*_arguments(kind, rng), **_score_options(kind))
    except DensepathError as error:
        return f"{kind}: {type(error).__name__}"
    return kind


async def acall(client: AsyncClient, rng: random.Random) -> str:
    """The same with the client for asyncio."""
    kind = rng.choice(["few", "many", "bad", "bad item", "no time", "iterate", "cancel"])
    try:
        if kind == "iterate":
            async with aclosing(client.iter_score(items(rng, 20))) as scores:
                async for _ in scores:
                    break
        elif kind == "cancel":
            task = asyncio.create_task(client.score(items(rng, 20)))
            await asyncio.sleep(rng.random() * 0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            await client.score(*_arguments(kind, rng), **_score_options(kind))
    except DensepathError as error:
        return f"async {kind}: {type(error).__name__}"
    return f"async {kind}"


def _arguments(kind: str, rng: random.Random) -> tuple[list[dict[str, list[int]]]]:
    few = items(rng, rng.randrange(1, 5))
    return ({"bad": [*few, BAD], "bad item": [*few, BAD], "many": items(rng, 20)}.get(kind, few),)


def _score_options(kind: str) -> dict[str, object]:
    if kind == "bad item":
        return {"on_error": "item"}
    return {"deadline": 0.003} if kind == "no time" else {"deadline": 30.0}


async def run(url: str, key: str, calls: int, seed: int) -> None:
    rng, outcomes, process = random.Random(seed), Counter[str](), psutil.Process()
    done = 0
    say(process, 0, outcomes)
    while done < calls:
        with Client(url, api_key=key) as client:
            async with AsyncClient(url, api_key=key) as aclient:
                for _ in range(CALLS_OF_A_CLIENT // 2):
                    outcomes[await asyncio.to_thread(call, client, rng)] += 1
                    outcomes[await acall(aclient, rng)] += 1
        done += CALLS_OF_A_CLIENT
        if done % EVERY == 0:
            say(process, done, outcomes)


def say(process: psutil.Process, done: int, outcomes: Counter[str]) -> None:
    gc.collect()
    held = {
        "calls": done,
        "memory_mb": process.memory_info().rss / 1e6,
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "tasks": len(asyncio.all_tasks()),
        "outcomes": outcomes,
    }
    print(json.dumps(held), flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))

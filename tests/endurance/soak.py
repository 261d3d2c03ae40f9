"""Soak: 100,000 requests of every kind, a third of them bad or broken off, and what grows meanwhile.

    make endurance LOAD=0 CHAOS=0

The service runs the fake engine, which takes 4 ms for a sequence and fails on two ids. Of twenty requests,
nineteen are sent over sockets, and one is a call of the Python client, in a process of its own that is looked
at too.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints import make_checkpoint
from endurance.figures import Findings, say, slope
from endurance.kinds import (
    LIMITS,
    Deck,
    Kind,
    bad,
    compatible,
    drip,
    failing,
    good,
    hang_up,
    read_slowly,
    refused,
    send,
    strict_tokenizer,
)
from endurance.service import Held, Watched, grown, watched
from endurance.truth import by_fake, draw, make_cases

KEY = "key-of-the-soak"
HEADERS = {"Authorization": f"Bearer {KEY}"}
AT_A_TIME = 40
FEWEST_SAMPLES = 20  # for a line through them
SAMPLES = 100
CLIENT_SHARE = 20  # one of so many requests is a call of the Python client
#: MB for 10,000 requests. At this rate, a service of 100 requests per second grows by 0.4 GB in a day.
NEAR_ZERO = 0.5


class Soak:
    """What is sent, what came of it, and what the service held on the way."""

    def __init__(self, service: Watched, requests: int, seed: int) -> None:
        self.service, self.requests = service, requests
        self.rng = random.Random(seed)
        cases = make_cases(draw(40, items=3, seed=seed, prompt=30, response=30), by_fake)
        self.good = good(cases, HEADERS)
        self.deck: Deck = [
            (45, self.good),
            (15, compatible(HEADERS)),
            (15, bad(HEADERS)),
            (5, failing(HEADERS)),
            (5, refused(cases)),
        ]
        self.begun = self.done = 0
        self.outcomes, self.wrong = Counter[str](), Counter[str]()
        self.done_at: list[int] = []
        self.memory_mb: list[float] = []

    async def run(self) -> None:
        """Send everything."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_A_TIME):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while self.begun < self.requests:
            self.begun += 1
            try:
                await self._one(self.begun)
            except (AssertionError, Exception) as error:
                self.wrong[f"{type(error).__name__}: {error}"[:300]] += 1
            self.done += 1
            if self.done % max(1, self.requests // SAMPLES) == 0:
                self.done_at.append(self.done)
                self.memory_mb.append(self.service.memory_mb())
            if self.done % max(1, self.requests // 10) == 0:
                say(f"{self.done} of {self.requests}, {self.service.memory_mb():.1f} MB")

    async def _one(self, number: int) -> None:
        port, rng = self.service.port, self.rng
        lot = rng.random()
        if lot < 0.12:
            await hang_up(rng.choice(self.good).sent, port, rng)
            self.outcomes["hung up"] += 1
        elif lot < 0.14:
            await read_slowly(rng.choice(self.good).sent, port, rng)
            self.outcomes["read slowly"] += 1
        elif lot < 0.142:
            self.outcomes[f"dripped: {await drip(self._kind().sent, port)}"] += 1
        else:
            answer, difference = await send(self._kind(), port, f"soak-{number}")
            assert difference == 0, f"a difference of {difference}"
            self.outcomes[str(answer.status)] += 1

    def _kind(self) -> Kind:
        kinds = self.rng.choices([kinds for _, kinds in self.deck], [weight for weight, _ in self.deck])[0]
        return self.rng.choice(kinds)


def start_client(service: Watched, calls: int, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "endurance.client_calls", f"http://127.0.0.1:{service.port}", KEY]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [*command, str(calls), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def run(service: Watched, *, requests: int, seed: int, timed: bool = True) -> Findings:
    """Send so many requests, and say what holds. The slope of memory is judged where it is `timed`."""
    findings = Findings(timed=timed)
    asyncio.run(Soak(service, min(2000, requests), seed - 1).run())  # pools and caches are full after this
    before, types = service.held(), service.look()["types"]
    say(f"before: {before}")
    soak = Soak(service, requests - requests // CLIENT_SHARE, seed)
    client = start_client(service, requests // CLIENT_SHARE, seed)
    asyncio.run(soak.run())
    told, _ = client.communicate(timeout=600)
    after = service.settled(before)
    say(f"after:  {after}")
    say(f"outcomes: {dict(sorted(soak.outcomes.items()))}")
    findings.claim(not soak.wrong, f"answers that are wrong: {dict(soak.wrong.most_common(5)) or 'none'}")
    claim_service(findings, service, before, after, types)
    findings.claim(client.returncode == 0, f"the process of the Python client ends with {client.returncode}")
    samples = [json.loads(line) for line in told.splitlines()]
    claim_client(findings, samples)
    claim_slope(findings, "the service", soak.done_at, soak.memory_mb)
    calls, memory_mb = ([sample[name] for sample in samples] for name in ("calls", "memory_mb"))
    claim_slope(findings, "the Python client", calls, memory_mb)
    return findings


def claim_service(
    findings: Findings, service: Watched, before: Held, after: Held, types: dict[str, int]
) -> None:
    """The service holds no more than before."""
    more = {name: count - types.get(name, 0) for name, count in service.look()["types"].items()}
    most = sorted(more.items(), key=lambda each: -each[1])[:5]
    say(f"the types that have the most objects more: {dict(most)}")
    findings.claim(
        not grown(before, after), f"the service has more {', '.join(grown(before, after)) or 'of nothing'}"
    )


def claim_client(findings: Findings, samples: list[dict[str, Any]]) -> None:
    """The process of the Python client holds no more than after its first clients."""
    first, last = samples[min(2, len(samples) - 1)], samples[-1]
    say(f"outcomes of the Python client: {last['outcomes']}")
    for name in ("threads", "descriptors", "tasks"):
        findings.claim(
            last[name] <= first[name], f"{name} of the Python client: {first[name]}, then {last[name]}"
        )


def claim_slope(findings: Findings, whose: str, done: Sequence[int], memory_mb: Sequence[float]) -> None:
    """Memory does not grow with the number of requests."""
    if len(done) < FEWEST_SAMPLES:
        return
    growth, half = slope(done, memory_mb)
    line = f"memory of {whose}: {memory_mb[-1]:.1f} MB, {growth:+.3f} ± {half:.3f} MB for 10,000 requests"
    findings.claim_if_timed(growth + half < NEAR_ZERO, line)


def options(folder: Path) -> list[str | Path]:
    """Those of the service, with a pair that is made here."""
    tokenizer = strict_tokenizer()
    sft, reference = (
        make_checkpoint(folder / name, seed=seed, tokenizer=tokenizer)
        for seed, name in enumerate(("sft", "reference"), 1)
    )
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n")
    pair = ["--sft", sft, "--reference", reference, "--engine", "fake", "--api-key-file", keys]
    return [*pair, *LIMITS, "--max-queued-tokens", "900"]


def soak(requests: int, seed: int) -> Findings:
    """The whole soak."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with watched(folder, *options(folder)) as service:
            return run(service, requests=requests, seed=seed)

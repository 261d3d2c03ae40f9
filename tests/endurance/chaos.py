"""Chaos: an engine that is killed and stopped, swaps, and clients of every kind, all at once, by a seed.

    make endurance LOAD=0 SOAK=0

Every request that is not broken off must get exactly one answer, and every number must be that of the pair
that the answer names. At the end the service must be ready again, and answer every request right.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.torch import load_file, save_file

from checkpoints import make_checkpoint
from densepath import AsyncClient
from densepath.errors import DensepathError
from densepath.pair.pair import load_pair
from endurance.figures import Findings, quantiles, say
from endurance.kinds import (
    LIMITS,
    Kind,
    bad,
    compatible,
    drip,
    good,
    hang_up,
    read_slowly,
    send,
    strict_tokenizer,
)
from endurance.livez import Livez
from endurance.service import Watched, grown, watched
from endurance.traffic import ask, request
from endurance.truth import TOLERANCE, Case, by_transformers, draw, make_cases

ADMIN_KEY = "key-of-the-chaos"
#: The service replaces its engine 3 times in an hour: a kill or a long stop costs one of them.
FAULTS = ("kill", "short stop", "long stop", "short stop", "kill")
HANG_SECONDS, SHORT_STOP_SECONDS, LONG_STOP_SECONDS = 8.0, 2.0, 15.0
#: Until the service is ready again after a fault; a start of the engine on two cores under load is long.
READY_WITHIN = 180.0
SCORERS, COMPATIBLE, BAD, HANG_UPS, SLOW, CLIENTS = 16, 2, 3, 4, 2, 2


@dataclass(frozen=True)
class Target:
    """Two directories for PUT /admin/pair, and the status that is right for them."""

    sft: Path
    reference: Path
    status: int


class Chaos:
    """What runs at once, and what came of it. `cases` are the same requests for each version of the pair."""

    def __init__(
        self,
        service: Watched,
        cases: Mapping[str, Sequence[Case]],
        *,
        targets: Sequence[Target],
        faults: Sequence[str],
        seconds: float,
        seed: int,
        key: str | None = None,
    ) -> None:
        self.service, self.port, self.cases = service, service.port, cases
        self.targets, self.faults = targets, faults
        self.seed, self.seconds, self.end = seed, seconds, 0.0
        self.key, self.headers = key, {"Authorization": f"Bearer {key}"} if key else {}
        self.sent = 0
        self.outcomes, self.wrong = Counter[str](), Counter[str]()
        self.events = Counter[str]()
        self.versions = Counter[str]()
        self.largest = 0.0
        self.good = [
            Kind(kind.name, kind.sent, kind.statuses, self._check(index // 2, packed=kind.name != "json"))
            for index, kind in enumerate(good(next(iter(cases.values())), self.headers))
        ]

    def _check(self, index: int, *, packed: bool) -> Callable[[bytes], float]:
        def check(body: bytes) -> float:
            version = version_of(body, packed=packed)
            assert version in self.cases, "an answer of a pair that was never served"
            self.versions[version] += 1
            case = self.cases[version][index]
            return case.packed_difference(body) if packed else case.difference(body)

        return check

    async def run(self) -> None:
        """Everything at once, until the time is over."""
        self.end = time.monotonic() + self.seconds
        async with asyncio.TaskGroup() as group:
            for act, count in (
                (self._score, SCORERS),
                (self._of(compatible(self.headers)), COMPATIBLE),
                (self._of(bad(self.headers, admin=False)), BAD),
                (self._hang_up, HANG_UPS),
                (self._slow, SLOW),
                (self._call_client, CLIENTS),
            ):
                for number in range(count):
                    group.create_task(self._again(act, random.Random(f"{self.seed} {act} {number}")))
            group.create_task(self._break_engine(random.Random(f"{self.seed} engine")))
            group.create_task(self._swap(random.Random(f"{self.seed} swap")))

    async def _again(self, act: Callable[[random.Random], Awaitable[None]], rng: random.Random) -> None:
        while time.monotonic() < self.end:
            try:
                await act(rng)
            except (AssertionError, Exception) as error:
                self.wrong[f"{type(error).__name__}: {error}"[:300]] += 1
            await asyncio.sleep(rng.random() * 0.1)

    async def _send(self, kind: Kind) -> int:
        self.sent += 1
        answer, difference = await send(kind, self.port, f"chaos-{self.sent}")
        self.outcomes[str(answer.status)] += 1
        self.largest = max(self.largest, difference)
        assert difference <= TOLERANCE, f"a wrong number: {difference:.1e} from the truth"
        return answer.status

    async def _score(self, rng: random.Random) -> None:
        if await self._send(rng.choice(self.good)) != 200:
            await asyncio.sleep(rng.random())

    def _of(self, kinds: Sequence[Kind]) -> Callable[[random.Random], Awaitable[None]]:
        async def act(rng: random.Random) -> None:
            await self._send(rng.choice(kinds))

        return act

    async def _hang_up(self, rng: random.Random) -> None:
        await hang_up(rng.choice(self.good).sent, self.port, rng)
        self.events["hung up"] += 1

    async def _slow(self, rng: random.Random) -> None:
        sent = rng.choice(self.good).sent
        if rng.random() < 0.2:
            assert await drip(sent, self.port) in (408, 503), "the answer to an unfinished body"
            self.events["dripped"] += 1
        else:
            await read_slowly(sent, self.port, rng)
            self.events["read slowly"] += 1

    async def _call_client(self, rng: random.Random) -> None:
        index = rng.randrange(len(next(iter(self.cases.values()))))
        items = json.loads(next(iter(self.cases.values()))[index].content)["items"]
        async with AsyncClient(f"http://127.0.0.1:{self.port}", api_key=self.key) as client:
            try:
                scores = await client.score(items, deadline=60)
            except DensepathError as error:
                self.events[f"client: {type(error).__name__}"] += 1
                return
        case = self.cases[scores.model_version][index]
        for score, (sft_T, reference_T) in zip(scores, case.logps, strict=True):
            difference = np.abs(score.reward_T - (sft_T - reference_T)).max()
            assert difference <= 2 * TOLERANCE, f"the client has a reward that is wrong by {difference:.1e}"
        self.events["client: scored"] += 1

    async def _break_engine(self, rng: random.Random) -> None:
        """Kill or stop the engine. The next fault waits until the service is ready again."""
        for fault in rng.sample(self.faults, len(self.faults)):
            await asyncio.sleep(rng.uniform(2, self.seconds / 20))
            engine = self.service.engine()
            if time.monotonic() > self.end or not engine:
                return
            began = time.monotonic()
            if fault == "kill":
                victim = rng.choice(engine)
                say(f"SIGKILL of {victim.name()}")
                victim.kill()
            else:
                stopped = LONG_STOP_SECONDS if fault == "long stop" else SHORT_STOP_SECONDS
                say(f"SIGSTOP of the engine for {stopped:g} s")
                signal_all(engine, signal.SIGSTOP)
                await asyncio.sleep(stopped)
                signal_all(engine, signal.SIGCONT)
            self.events[fault] += 1
            await self.ready()
            say(f"ready {time.monotonic() - began:.1f} s after the {fault}")

    async def _swap(self, rng: random.Random) -> None:
        """One swap after another, to good pairs and to broken ones."""
        while self.targets and time.monotonic() < self.end:
            await asyncio.sleep(rng.uniform(1, self.seconds / 12))
            target = rng.choice(self.targets)
            content = json.dumps({"sft": str(target.sft), "reference": str(target.reference)}).encode()
            headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
            try:
                answer = await ask(self.port, request("/admin/pair", content, method="PUT", headers=headers))
            except (OSError, TimeoutError, Exception) as error:
                self.wrong[f"swap: {type(error).__name__}: {error}"[:300]] += 1
                continue
            self.events[
                f"swap to a {'good' if target.status == 200 else 'broken'} pair: {answer.status}"
            ] += 1
            # A kill may hit the engine that a swap is loading: the swap is then refused and names the signal.
            killed = answer.status == 422 and b"killed by SIGKILL" in answer.body
            if answer.status not in (target.status, 409, 503) and not killed:
                self.wrong[f"swap: {answer.status} {answer.body[:200]!r}"] += 1

    async def ready(self) -> None:
        """Wait until /readyz answers 200 and stays so for a second."""
        deadline, sent = time.monotonic() + READY_WITHIN, request("/readyz", method="GET", content_type=None)
        good_in_a_row = 0
        while good_in_a_row < 3:
            assert time.monotonic() < deadline, "the service is not ready again"
            good_in_a_row = good_in_a_row + 1 if (await ask(self.port, sent)).status == 200 else 0
            await asyncio.sleep(0.4)

    async def afterwards(self) -> float:
        """Every request once, alone: the largest difference."""
        largest = 0.0
        for number, kind in enumerate(self.good):
            answer, difference = await send(kind, self.port, f"after-{number}")
            assert answer.status == 200, f"{answer.status} {answer.body[:200]!r}"
            largest = max(largest, difference)
        return largest


def signal_all(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def version_of(body: bytes, *, packed: bool) -> str:
    """The pair version that an answer names."""
    if packed:
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        body = header["__metadata__"]["response"]
    return str(json.loads(body)["model_version"])


def run(service: Watched, chaos: Chaos, *, timed: bool = True) -> Findings:
    """Let chaos run, and say what holds."""
    findings = Findings(timed=timed)
    before = service.held()
    with Livez(service.port, every=0.2) as livez:
        asyncio.run(chaos.run())
        asyncio.run(chaos.ready())
    findings.claim(True, "the service is ready again")
    largest = max(chaos.largest, asyncio.run(chaos.afterwards()))
    after = service.settled(before)
    say(f"before: {before}")
    say(f"after:  {after}")
    say(f"{chaos.sent} requests with an answer: {dict(sorted(chaos.outcomes.items()))}")
    say(f"events: {dict(sorted(chaos.events.items()))}")
    say(f"answers by pair version: {dict(Counter({k[:12]: n for k, n in chaos.versions.items()}))}")
    findings.claim(not chaos.wrong, f"what is wrong: {dict(chaos.wrong.most_common(5)) or 'nothing'}")
    answered = sum(chaos.outcomes.values())
    findings.claim(chaos.sent == answered, f"{chaos.sent} sent = {answered} with exactly one answer")
    findings.claim(
        largest <= TOLERANCE, f"largest difference of a log-probability from the truth: {largest:.1e}"
    )
    more = [name for name in grown(before, after) if name in ("tasks", "connections")]
    findings.claim(not more, f"the service has more {', '.join(more) or 'of nothing'}")
    say(f"/livez: {quantiles(livez.seconds)}")
    return findings


def pairs(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """So many pairs of tiny checkpoints."""
    return [
        (
            make_checkpoint(folder / f"{i}/sft", seed=2 * i + 1, tokenizer=strict_tokenizer()),
            make_checkpoint(folder / f"{i}/ref", seed=2 * i + 2, tokenizer=strict_tokenizer()),
        )
        for i in range(count)
    ]


def broken_pairs(folder: Path, good_pair: tuple[Path, Path]) -> list[Target]:
    """Pairs that fail at different stages: no directory, no weights, another template, NaN as weights."""
    sft, reference = good_pair
    empty = folder / "empty"
    empty.mkdir()
    other = make_checkpoint(folder / "other", seed=9)  # its chat template is another one
    broken = shutil.copytree(reference, folder / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    return [Target(sft, directory, 422) for directory in (folder / "missing", empty, other, broken)]


def chaos(seconds: float, seed: int) -> Findings:
    """The whole chaos, with tiny pairs on the real engine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "pairs"
        two = pairs(root, 2)
        drawn = draw(20, items=3, seed=seed, prompt=30, response=30)
        cases = {
            load_pair(*each, cache_dir=folder / "weights").version: make_cases(drawn, by_transformers(*each))
            for each in two
        }
        keys = folder / "admin-keys"
        keys.write_text(f"{ADMIN_KEY}\n")
        options: list[Any] = [
            "--sft",
            two[0][0],
            "--reference",
            two[0][1],
            *LIMITS,
            "--max-queued-tokens",
            "2000",
        ]
        options += ["--admin-key-file", keys, "--pair-root", root]
        options += ["--hang-seconds", HANG_SECONDS]
        targets = [*(Target(*each, 200) for each in two * 2), *broken_pairs(root, two[0])]
        say("starting the engine")
        with watched(folder, *options, "--kv-cache-memory-bytes", str(64 << 20)) as service:
            wild = Chaos(
                service,
                cases,
                targets=targets,
                faults=FAULTS,
                seconds=seconds,
                seed=seed,
            )
            return run(service, wild)

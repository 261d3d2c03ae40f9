"""A service to be drained, as a process: `python drained.py PORT DRAIN_SECONDS SFT REFERENCE CACHE [STAGE]`.

`serve` and the logs are the shipped ones. A sequence that holds `STUCK_ID` is not scored until a line comes
on standard input. With a STAGE, its first engine never gets past that stage: `starting` or `verifying`. With
`degraded`, the first engine dies at once, and the second one never gets past its start.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from densepath.api.app import create_app
from densepath.api.listener import listening
from densepath.api.served import Served
from densepath.api.server import serve
from densepath.api.service import Service
from densepath.commands.pairs import load_tokenizer
from densepath.engine.fake import FakeScorer
from densepath.engine.scorer import Scored, Scorer, View
from densepath.pair.pair import load_pair
from densepath.sequences import Sequence
from densepath.telemetry.logs import configure_logs
from densepath.verification.start import Start
from densepath.verification.verdict import Verdict, not_verified

STUCK_ID = 99


@dataclass
class SlowScorer(FakeScorer):
    """The fake engine, but for one id."""

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        """Score, late."""
        if STUCK_ID in sequence.token_ids_L:
            assert self.gate is not None
            await self.gate.wait()
        return await FakeScorer(self.context_length).score(sequence, view)


def start_until(stage: str | None) -> Start:
    """A start that stops there for ever."""

    async def start(scorer: Scorer, loaded: Callable[[], None] = lambda: None, /) -> Verdict:
        if stage == "starting":
            await asyncio.to_thread(threading.Event().wait)  # as an engine that loads, it cannot be cancelled
        loaded()
        if stage == "verifying":
            await asyncio.Event().wait()
        return not_verified("it is a test")

    return start


async def main(
    port: int, drain_seconds: float, sft: Path, reference: Path, cache: Path, stage: str | None = None
) -> None:
    """Serve, and open the gate when told."""
    gate = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, gate.set)
    pair = load_pair(sft, reference, cache_dir=cache)
    served = Served(pair, load_tokenizer(pair), SlowScorer(64, gate, dead=stage == "degraded"))
    service = Service(
        served, start_until(stage), make_engine=lambda _: (SlowScorer(64, gate), start_until("starting"))
    )
    app = create_app(service, engine="fake")
    with listening("127.0.0.1", port) as sockets:
        await serve(app, service, sockets, drain_seconds=drain_seconds)


if __name__ == "__main__":
    configure_logs()
    places = map(Path, sys.argv[3:6])
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), *places, *sys.argv[6:7]))

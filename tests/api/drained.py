"""A service to be drained, as a process: `python drained.py PORT DRAIN_SECONDS SFT REFERENCE CACHE`.

`serve` and the logs are the shipped ones. A sequence that holds `STUCK_ID` is not scored until a line comes
on standard input.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from densepath.api.app import create_app
from densepath.api.listener import listening
from densepath.api.served import Served
from densepath.api.server import serve
from densepath.api.service import Service
from densepath.commands.pairs import load_tokenizer
from densepath.engine.fake import FakeScorer
from densepath.engine.scorer import Scored, View
from densepath.pair.pair import load_pair
from densepath.sequences import Sequence
from densepath.telemetry.logs import configure_logs
from densepath.verification.start import start_unverified

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


async def main(port: int, drain_seconds: float, sft: Path, reference: Path, cache: Path) -> None:
    """Serve, and open the gate when told."""
    gate = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, gate.set)
    pair = load_pair(sft, reference, cache_dir=cache)
    served = Served(pair, load_tokenizer(pair), SlowScorer(64, gate))
    service = Service(served, start_unverified("it is a test"))
    app = create_app(service, engine="fake")
    with listening("127.0.0.1", port) as sockets:
        await serve(app, service, sockets, drain_seconds=drain_seconds)


if __name__ == "__main__":
    configure_logs()
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), *map(Path, sys.argv[3:6])))

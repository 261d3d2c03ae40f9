"""`Service`: what the routes share, and the one place that knows whether the service can answer."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from densepath.admission import TokenBudget
from densepath.engine.scorer import Scorer
from densepath.errors import DrainingError, EngineUnavailableError, InvalidRequestError
from densepath.pair.pair import Pair
from densepath.sequences import Sequence, Tokenizer, check
from densepath.telemetry.metrics import Metrics
from densepath.telemetry.traces import Traces
from densepath.verification.start import Start, start_unverified
from densepath.verification.verdict import not_verified

log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_items: int = 256
    max_body_bytes: int = 32 << 20
    max_queued_tokens: int = 262_144
    body_seconds: float = 30.0  # for a whole body to arrive


class Phase(enum.Enum):
    """starting → ready → draining; dead from any of them when the engine is gone."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class ApiKeys:
    """The keys of a key file, as hashes. An absent file means that every route is open."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @classmethod
    def from_file(cls, path: Path | None) -> ApiKeys:
        """One key a line; blank lines and lines that begin with # don't count."""
        if path is None:
            return cls([])
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise InvalidRequestError(
                f"the key file {path.name} holds no key: write one a line, or leave the option out"
            )
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, sent: bytes) -> bool:
        """Compare with every key, in constant time each, without an early end."""
        digest = hashlib.sha256(sent).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


@dataclass
class Service:
    """One pair, one engine, one budget."""

    pair: Pair
    tokenizer: Tokenizer
    scorer: Scorer
    model_name: str = "default"
    teacher_kl: float = 0.5  # the b of the model `dpr-teacher`
    limits: Limits = field(default_factory=Limits)
    keys: ApiKeys = field(default_factory=lambda: ApiKeys([]))
    metrics: Metrics = field(default_factory=Metrics)
    traces: Traces = field(default_factory=Traces)
    start_engine: Start = field(default_factory=lambda: start_unverified("it was not asked for"))
    phase: Phase = Phase.STARTING

    def __post_init__(self) -> None:
        self.budget = TokenBudget(self.limits.max_queued_tokens)
        self.verdict = not_verified("the engine is starting")
        self.in_flight = 0  # requests that are being answered, health probes left out
        self.idle = asyncio.Event()
        self.idle.set()
        self.loaded = asyncio.Event()
        self.out_of_time = asyncio.Event()  # set when the drain bound is over
        self.metrics.queued_tokens.set_function(lambda: self.budget.queued_tokens)
        self.metrics.max_queued_tokens.set(self.limits.max_queued_tokens)
        self.metrics.engine_up.set_function(
            lambda: float(self.phase is not Phase.STARTING and self.scorer.alive())
        )

    async def start(self) -> None:
        """Load the pair and verify the engine; ready from then on.

        Raises InvalidPairError where the engine's numbers are not those of transformers, or where a
        file of the pair was changed since its check.
        """
        self.verdict = await self.start_engine(self.scorer)
        await asyncio.to_thread(self.pair.ensure_unchanged)
        self.metrics.show_verdict(self.model_name, self.pair.version, self.verdict)
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY
        self.loaded.set()
        log.info(
            "ready",
            model=self.model_name,
            model_version=self.pair.version,
            verified=self.verdict.verified,
            verification=self.verdict.line(),
        )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request while it is being answered."""
        self.in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.idle.set()

    def problem(self) -> EngineUnavailableError | DrainingError | None:
        """Why nothing can be scored at the moment, or None."""
        if self.phase is Phase.STARTING:
            return EngineUnavailableError("the pair is being loaded and verified", retry_after=5)
        if self.phase is Phase.DRAINING:
            return DrainingError("the service is shutting down: ask another replica", retry_after=1)
        if not self.scorer.alive():
            return EngineUnavailableError("the engine has died: the service restarts", retry_after=30)
        return None

    def check(self, sequence: Sequence) -> Sequence:
        """The same sequence, or the error of one that the pair cannot score (`sequences.check`)."""
        check(
            sequence,
            embedding_size=self.pair.embedding_size,
            context_length=self.scorer.context_length,
        )
        return sequence

    def alive(self) -> bool:
        """False when only a restart helps."""
        return self.phase is Phase.STARTING or self.scorer.alive()

"""Load: 500 clients at ten times the token budget, on the real engine, and every answer accounted for.

    make endurance CHAOS=0 SOAK=0

Each client has one request under way, on a connection of its own. A client that is refused waits for its
Retry-After, but for a second at most, so that the load stays. The seconds of an answer go from before the
connect to the last byte, as the client sees them, on the cores that it shares with the service and the
engine. Two figures beside them say how much of that is not the service: how late the client processes
themselves woke up, and what a server that does nothing takes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from checkpoints import make_checkpoint
from endurance.crowd import Tally, crowds
from endurance.figures import Findings, quantiles, say
from endurance.livez import Livez
from endurance.service import Watched, grown, watched
from endurance.traffic import request
from endurance.truth import TOLERANCE, Case, by_transformers, draw, make_cases

CLIENTS, REQUESTS, ITEMS = 500, 60, 6
TIMES_THE_BUDGET = 10
MEMORY_MB = 64.0
REFUSED_WITHIN, LIVE_WITHIN = 0.1, 1.0  # seconds


def budget(cases: Sequence[Case], clients: int) -> int:
    """The token budget that so many clients exceed ten times."""
    mean = sum(case.tokens for case in cases) / len(cases)
    return round(clients * mean / TIMES_THE_BUDGET)


def run(
    service: Watched,
    cases: Sequence[Case],
    *,
    clients: int,
    seconds: float,
    seed: int,
    headers: dict[str, str] | None = None,
    timed: bool = True,
) -> Findings:
    """Put a service under load, and say what holds. Times and memory are judged where it is `timed`."""
    findings = Findings(timed=timed)
    requests = [request("/v1/rewards", case.content, headers=headers) for case in cases]
    # Under load, the engine's worker keeps the memory of its largest batch, and pools have all their threads.
    crowds(2, service.port, requests, clients, seconds / 4, seed)
    before = service.held()
    say(f"before: {before}")
    with Livez(service.port) as livez:
        tally = crowds(2, service.port, requests, clients, seconds, seed)
    after = service.settled(before)
    say(f"after:  {after}")
    claim_answers(findings, tally, cases)
    claim_times(findings, tally, livez, service)
    growth = after.memory_mb - before.memory_mb
    findings.claim_if_timed(growth < MEMORY_MB, f"memory grew by {growth:.1f} MB, of at most {MEMORY_MB:.0f}")
    threads = f"threads: {before.threads}, then {after.threads}"
    findings.claim_if_timed(after.threads <= before.threads, threads)
    findings.claim(not grown(before, after), f"grown are: {', '.join(grown(before, after)) or 'none'}")
    return findings


def claim_answers(findings: Findings, tally: Tally, cases: Sequence[Case]) -> None:
    """Every request has one answer, and every 200 is right."""
    say(f"outcomes: {dict(tally.outcomes)}")
    counts = {status: tally.outcomes[status] for status in ("200", "503", "429")}
    said = " + ".join(f"{count} of {status}" for status, count in counts.items())
    findings.claim(tally.sent == sum(counts.values()), f"{tally.sent} sent = {said}")
    findings.claim(counts["200"] > 0 and counts["503"] > 0, "there were answers of both kinds")
    waits = sorted(int(each) for each in tally.retry_after.elements() if each.isdecimal())
    findings.claim(
        len(waits) == counts["503"] + counts["429"], f"every refusal has Retry-After: {median(waits)} s"
    )
    worst = max((cases[which].difference(body) for which, body in tally.answers), default=float("inf"))
    findings.claim(worst <= TOLERANCE, f"largest difference of a log-probability from the truth: {worst:.1e}")


def claim_times(findings: Findings, tally: Tally, livez: Livez, service: Watched) -> None:
    """A refusal is quick, and so is a probe."""
    refused = tally.seconds.get(503, [])
    say(f"200, at the client: {quantiles(tally.seconds.get(200, []))}")
    say(f"503, at the client: {quantiles(refused)}")
    say(f"503, in the service, from its log: {quantiles(logged_seconds(service.log, 503))}")
    say(f"how late the client processes woke up: {quantiles(tally.lag_seconds)}")
    say(f"/livez: {quantiles(livez.seconds)}; a server that does nothing: {quantiles(livez.idle_seconds)}")
    late = sorted(refused)[int(len(refused) * 0.99)] if refused else float("inf")
    findings.claim_if_timed(late < REFUSED_WITHIN, f"p99 of a 503 is {late * 1e3:.0f} ms, of at most 100")
    longest = max(livez.seconds, default=float("inf"))
    findings.claim_if_timed(
        longest < LIVE_WITHIN, f"the longest /livez took {longest * 1e3:.0f} ms, of at most 1000"
    )


def logged_seconds(log: Path, status: int) -> list[float]:
    """The seconds of the requests in a log, from the headers' arrival to the end of the answer.

    A log has at most 1000 of these lines for each second.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line["seconds"] for line in lines if line.get("event") == "request" and line["status"] == status]


def load(seconds: float, seed: int) -> Findings:
    """The whole load test, with a tiny pair on the real engine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sft, reference = (make_checkpoint(folder / each, seed=i) for i, each in enumerate(("sft", "ref"), 1))
        cases = make_cases(draw(REQUESTS, items=ITEMS, seed=seed), by_transformers(sft, reference))
        tokens = budget(cases, CLIENTS)
        say(f"{CLIENTS} clients, a budget of {tokens} tokens; starting the engine")
        options = ["--sft", sft, "--reference", reference, "--max-queued-tokens", str(tokens)]
        with watched(folder, *options, "--kv-cache-memory-bytes", str(64 << 20)) as service:
            return run(service, cases, clients=CLIENTS, seconds=seconds, seed=seed)

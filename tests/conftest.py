"""Fixtures that the whole suite shares."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings

import forked
from densepath.garbage import collect_rarely
from live import Demo, Service, start, stop, wait_ready

collect_rarely()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# vLLM's `LLM` runs in this process; its AsyncLLM never does.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# vLLM inspects a model class in another process, which takes 7 seconds, and keeps the result in its cache. A
# test with a new XDG_CACHE_HOME would do that again at every start.
os.environ.setdefault("VLLM_CACHE_ROOT", str(Path.home() / ".cache" / "vllm"))
#: Which of the processes of `make test` this is; "" where one process runs all tests.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER:
    # Each engine would bind its threads to the same cores, and torch would start a thread for each core.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    share = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
forked.prepare()
# A test waits for a condition, never for a time.
settings.register_profile("densepath", deadline=None)
settings.load_profile("densepath")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In two processes the long files go first, and after them those that wait for the demo to be built."""
    if WORKER:
        engine = {item.path for item in items if item.get_closest_marker("engine")}
        demo = {item.path for item in items if needs_demo(item)}
        items.sort(key=lambda item: 1 if item.path in demo else 0 if item.path in engine else 2)


def needs_demo(item: pytest.Item) -> bool:
    return "demo" in getattr(item, "fixturenames", ())


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """What vLLM does to the environment and a command to the logs of this process, no later test sees."""
    root = logging.getLogger()
    live, environment, handlers, level = os.environ, dict(os.environ), root.handlers[:], root.level
    yield
    os.environ = live  # noqa: B003  # datasets puts a copy in its place after a map of several processes
    os.environ.clear()
    os.environ.update(environment)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def pair_dirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An SFT and a reference directory: two tiny Llamas with one tokenizer. Read only."""
    from checkpoints import make_checkpoint

    root = tmp_path_factory.mktemp("pair")
    return make_checkpoint(root / "sft", seed=1), make_checkpoint(root / "reference", seed=2)


@pytest.fixture
def dirs(pair_dirs: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of `pair_dirs` to change or damage."""
    sft, reference = (shutil.copytree(source, tmp_path / source.name) for source in pair_dirs)
    return sft, reference


def begin_demo(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """`densepath serve --demo`; the processes of `make test` share one cache, so the pair is built once."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if WORKER else base) / "demo-cache"
    log = tmp_path_factory.mktemp("demo") / "log"
    process, url = start("--demo", log=log, env={"XDG_CACHE_HOME": str(cache)}, fresh=True)
    return Service(process, url, log, cache)


@pytest.fixture(scope="session", autouse=True)
def demo_begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service | None]:
    """The demo, begun by one process before its first test where any asks for it, and built meanwhile."""
    if WORKER not in ("", "gw0") or not any(map(needs_demo, request.session.items)):
        yield None
        return
    service = begin_demo(tmp_path_factory)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait()


@pytest.fixture(scope="session")
def demo(demo_begun: Service | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo pair, served: built once for the whole run, so its first test needs a long timeout."""
    service = demo_begun or begin_demo(tmp_path_factory)
    try:
        wait_ready(service.process, service.url, service.log, within=1000)
        (built,) = service.cache.glob("densepath/demo-*")
        yield Demo(service.url, built / "sft", built / "reference-base", service.log)
        assert stop(service.process) == 0, service.log.read_text()[-4000:]
    finally:
        service.process.kill()
        service.process.wait()


@pytest.fixture(scope="session")
def oracle_answers() -> dict[Any, Any]:
    """What transformers answered to the jobs of verified starts."""
    return {}


@pytest.fixture
def oracle_once(monkeypatch: pytest.MonkeyPatch, oracle_answers: dict[Any, Any]) -> None:
    """Verified starts ask transformers once for each job."""
    from densepath.verification import start
    from densepath.verification.oracle import ask_oracle

    async def ask_once(job: Any, sequences: Any) -> Any:
        key = (job, *(sequence.token_ids_L.tobytes() for sequence in sequences))
        if key not in oracle_answers:
            oracle_answers[key] = await ask_oracle(job, sequences)
        return oracle_answers[key]

    monkeypatch.setattr(start, "ask_oracle", ask_once)


_differences: list[tuple[str, float]] = []


@pytest.fixture
def say_difference() -> Callable[[str, float], None]:
    """Record a largest difference; all of them are printed at the end of the run."""
    return lambda what, difference: _differences.append((what, difference))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give the largest differences to the process that prints them."""
    if WORKER:
        session.config.workeroutput["differences"] = _differences  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    """Take those of a worker that has ended."""
    _differences.extend(getattr(node, "workeroutput", {}).get("differences", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print every largest difference."""
    if _differences:
        terminalreporter.section("largest differences from transformers fp32, in nats")
        for what, difference in sorted(_differences, key=itemgetter(0)):
            terminalreporter.write_line(f"{difference:.1e}  {what}")

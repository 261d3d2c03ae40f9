"""Fixtures that the whole suite shares."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from live import Demo, Service, start, stop, wait_ready

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# vLLM's `LLM` runs in this process; its AsyncLLM never does.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


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


@pytest.fixture(scope="session", autouse=True)
def demo_begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service | None]:
    """`densepath serve --demo`, begun before the first test where any asks for it, and built meanwhile."""
    if not any("demo" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    root = tmp_path_factory.mktemp("demo")
    log = root / "log"
    process, url = start("--demo", log=log, env={"XDG_CACHE_HOME": str(root)})
    try:
        yield Service(process, url, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def demo(demo_begun: Service | None) -> Iterator[Demo]:
    """The demo pair, served: built once for the whole run, so its first test needs a long timeout."""
    assert demo_begun is not None
    process, url, log = demo_begun.process, demo_begun.url, demo_begun.log
    wait_ready(process, url, log, within=1000)
    (built,) = log.parent.glob("densepath/demo-*")
    yield Demo(url, built / "sft", built / "reference-base", log)
    assert stop(process) == 0, log.read_text()[-4000:]


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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print every largest difference."""
    if _differences:
        terminalreporter.section("largest differences from transformers fp32, in nats")
        for what, difference in _differences:
            terminalreporter.write_line(f"{difference:.1e}  {what}")

"""A Ray Dataset, scored by two workers of a local Ray: by a service, and by actors that serve the pair."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

from checkpoints import make_checkpoint  # noqa: E402
from densepath import Client  # noqa: E402
from densepath.errors import InvalidRequestError  # noqa: E402
from densepath.integrations import IntegrationError, ray_data  # noqa: E402
from densepath.integrations.ray_data import score, score_to_parquet  # noqa: E402
from live import finish, serving  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "ray-data.md"
N_ROWS = 40
ROWS = [
    {"id": n, "prompt_token_ids": [1, 7 + n, 8], "response_token_ids": [10 + n, 11, 2][: 1 + n % 3]}
    for n in range(N_ROWS)
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return make_checkpoint(root / "sft", seed=1), make_checkpoint(root / "reference", seed=2)


@pytest.fixture(scope="module")
def service(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sft, reference = pair
    log = tmp_path_factory.mktemp("service") / "log"
    options = ("--sft", sft, "--reference", reference, "--engine", "transformers")
    with serving(*options, log=log, env={"OMP_NUM_THREADS": "1"}) as url:
        yield url


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """Two workers, and CPUs for the tasks that read, filter and write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(num_cpus=6, include_dashboard=False, object_store_memory=1 << 28, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def dataset(rows: list[dict[str, Any]] = ROWS, blocks: int = 8) -> Any:
    return ray.data.from_items(rows, override_num_blocks=blocks)


def assert_right(found: list[dict[str, Any]], url: str, n_rows: int = N_ROWS) -> None:
    with Client(url) as client:
        expected = client.score(
            [{name: row[name] for name in row if name != "id"} for row in ROWS[:n_rows]],
            include=("logprobs",),
        )
    assert [row["id"] for row in found] == list(range(n_rows))
    difference = 0.0
    for row, right in zip(found, expected, strict=True):
        for name, array_T in (
            ("rewards", right.reward_T),
            ("sft_logprobs", right.logp_sft_T),
            ("reference_logprobs", right.logp_reference_T),
        ):
            difference = max(difference, np.abs(np.array(row[name]) - array_T).max())
        assert row["sum"] == pytest.approx(right.sum, abs=1e-5)
        assert row["ended"] == right.ended
        assert row["error"] is None
        assert row["model_version"] == expected.model_version
    assert difference <= 1e-5


def test_a_service_scores_the_rows_in_their_order(service: str) -> None:
    assert_right(score(dataset(), service, actors=2, include=("logprobs",)).take_all(), service)


def test_actors_that_serve_the_pair_score_the_same(service: str, pair: tuple[Path, Path]) -> None:
    scored = score(
        dataset(), pair=pair, serve_options=("--engine", "transformers"), actors=2, include=("logprobs",)
    )
    assert_right(scored.take_all(), service)


def test_a_row_without_a_score_raises_or_has_the_reason(service: str) -> None:
    rows = [*ROWS[:5], {"id": 5, "prompt_token_ids": [1], "response_token_ids": [100_000]}]
    with pytest.raises(Exception, match="out of range"):
        score(dataset(rows), service).take_all()
    found = score(dataset(rows), service, on_error="column").take_all()
    assert [row["error"] is None for row in found] == [True] * 5 + [False]
    assert "out of range" in found[-1]["error"]
    assert [found[-1][name] for name in ("rewards", "sum", "ended")] == [None] * 3
    assert all(row["sum"] is not None for row in found[:5])


def n_scored(url: str) -> float:
    """How many rows the service has scored."""
    [line] = [
        line
        for line in httpx.get(f"{url}/metrics").text.splitlines()
        if line.startswith("densepath_sequence_reward_count")
    ]
    return float(line.split()[-1])


def written(folder: Path) -> list[dict[str, Any]]:
    return sorted(ray.data.read_parquet(str(folder / "scores")).take_all(), key=lambda row: row["id"])


def test_a_run_that_ended_early_resumes(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_data, "BATCH_ROWS", 5)
    source, out = tmp_path / "rows", tmp_path / "out"
    bad = {**ROWS[-1], "response_token_ids": [100_000]}

    def run(**options: Any) -> None:
        rows = ray.data.read_parquet(str(source), override_num_blocks=8)
        score_to_parquet(rows, out, service, id_column="id", actors=2, include=("logprobs",), **options)

    before = n_scored(service)
    dataset(ROWS[:20], blocks=4).write_parquet(str(source))
    run()
    assert n_scored(service) - before == len(written(out)) == 20
    dataset([*ROWS[20:-1], bad], blocks=4).write_parquet(str(source))
    with pytest.raises(Exception, match="out of range"):
        run()
    before, done = n_scored(service), len(written(out))
    assert 20 <= done < N_ROWS
    with pytest.raises(IntegrationError, match="different options"):
        run(gamma=0.5)
    with pytest.raises(IntegrationError, match="different pair version"):
        run(model_version="another")
    run(on_error="column")
    assert n_scored(service) - before == N_ROWS - done - 1
    found = written(out)
    assert "out of range" in found[-1]["error"]
    assert found[-1]["sum"] is None
    assert_right(found[:-1], service, n_rows=N_ROWS - 1)
    before = n_scored(service)
    run(on_error="column")
    assert n_scored(service) == before


def test_ids_that_occur_twice_are_an_error(service: str, tmp_path: Path) -> None:
    rows = dataset([*ROWS[:3], ROWS[0]])
    score_to_parquet(rows.limit(1), tmp_path, service, id_column="id")
    with pytest.raises(IntegrationError, match="must all be different"):
        score_to_parquet(rows, tmp_path, service, id_column="id")


def test_a_service_of_an_actor_ends_with_it(pair: tuple[Path, Path]) -> None:
    """However the actor ended: those of the tests before were killed by Ray."""
    end = time.monotonic() + 60
    while left := [each.pid for each in psutil.process_iter(["cmdline"]) if of_an_actor(each, pair)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)  # between two looks at the condition


def of_an_actor(process: psutil.Process, pair: tuple[Path, Path]) -> bool:
    words = process.info["cmdline"] or []
    return str(pair[0]) in words and "densepath" in words  # that of the fixture is a script


def test_what_cannot_be_meant_is_refused(service: str, pair: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidRequestError, match="either the URL"):
        score(dataset())
    with pytest.raises(InvalidRequestError, match="either the URL"):
        score(dataset(), service, pair=pair)
    with pytest.raises(Exception, match="has a column sum already"):
        score(dataset([{**ROWS[0], "sum": 1.0}]), service).take_all()


def test_the_page_runs_as_it_is_written(
    service: str, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(blocks=2).write_parquet(str(tmp_path / "rollouts"))
    changes = {
        "http://127.0.0.1:8000": service,
        '"rollouts"': f'"{tmp_path}/rollouts"',
        '"scored': f'"{tmp_path}/scored',
        "run/final": str(pair[0]),
        "run/share-0.50": str(pair[1]),
        '"vllm"': '"transformers"',
        "actors=4": "actors=2",
        "actors=8, num_gpus=1": "actors=1",
    }
    by_service, by_pair = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    for old, new in changes.items():
        assert old in by_service + by_pair
        by_service, by_pair = by_service.replace(old, new), by_pair.replace(old, new)
    found: dict[str, Any] = {}
    exec(by_service, found)
    sums = [row["sum"] for row in found["best"]]
    assert sums == sorted((row["sum"] for row in written(tmp_path / "scored")), reverse=True)[:3]
    exec(by_pair, found)
    assert max(row["sum"] for row in found["scored"].take_all()) == pytest.approx(sums[0], abs=1e-5)


def test_the_example_runs(service: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "ray_dataset.py"
    done = finish([sys.executable, str(example), "--url", service], env={}, within=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "larger sum" in done.stdout

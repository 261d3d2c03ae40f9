from __future__ import annotations

import builtins
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densepath.client import Score, Scores
from densepath.errors import InternalError, InvalidItemError, ModelVersionMismatchError, OverloadedError
from densepath.score.records import append_record, read_records
from densepath.score.resume import CHUNK_ITEMS, Counts, ScoreFileError, score_file
from densepath.wire import unpack_answer

Chunk = list[dict[str, Any]]


def fake_scores(items: Chunk, version: str = "v1") -> Scores:
    """The reward of a token is a seventh of its id; an empty response fails."""
    scores = []
    for index, item in enumerate(items):
        ids = item["response_token_ids"]
        id_ = item.get("id")
        if not ids:
            where = f"items[{index}]"
            scores.append(Score(index, id_, error=InvalidItemError(f"{where}: empty", param=where)))
            continue
        reward_T = np.array(ids, np.float32) / np.float32(7)
        scores.append(
            Score(
                index,
                id_,
                reward_T=reward_T,
                logp_sft_T=reward_T - 1,
                logp_reference_T=np.full_like(reward_T, -1),
                response_token_ids=np.array(ids),
                tokens=tuple("\u4e2d" for _ in ids),
                sum=float(reward_T.sum()),
                ended=ids[-1] == 2,
            )
        )
    return Scores(tuple(scores), version, {})


class Scorer:
    """Counts its items, and dies in the chunk that it is told to."""

    def __init__(self, dies_at: int | None = None, version: str = "v1") -> None:
        self.chunks: list[Chunk] = []
        self.dies_at, self.version = dies_at, version

    def __call__(self, items: Chunk) -> Scores:
        if len(self.chunks) == self.dies_at:
            raise OverloadedError("full")
        self.chunks.append(items)
        return fake_scores(items, self.version)

    @property
    def seen(self) -> list[str]:
        return [item["id"] for chunk in self.chunks for item in chunk]


def item(n: int) -> dict[str, Any]:
    return {"id": f"i{n}", "prompt_token_ids": [1], "response_token_ids": [n % 50 + 2] * (n % 3 + 1)}


N = 2 * CHUNK_ITEMS + 88


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(item(n)) + "\n" for n in range(N)))
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def check_all(path: Path) -> None:
    lines = results(path)
    assert [line["index"] for line in lines] == list(range(N))
    assert [line["id"] for line in lines] == [f"i{n}" for n in range(N)]
    for n, line in enumerate(lines):
        reward_T = np.array(item(n)["response_token_ids"], np.float32) / np.float32(7)
        assert np.array(line["rewards"], np.float32).tobytes() == reward_T.tobytes()
        assert line["status"] == "ok"
        assert line["model_version"] == "v1"


def test_jsonl_to_jsonl(source: Path, tmp_path: Path) -> None:
    target, steps, scorer = tmp_path / "out.jsonl", [], Scorer()
    counts = score_file(
        source, target, scorer, model_version="v1", progress=lambda done, total: steps.append((done, total))
    )
    assert counts == Counts(scored=N, failed=0)
    check_all(target)
    assert steps == [(0, N), (CHUNK_ITEMS, N), (2 * CHUNK_ITEMS, N), (N, N)]
    assert max(map(len, scorer.chunks)) == CHUNK_ITEMS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


#: From the smallest float32 to the largest, and what rewards look like.
HARD_T = np.array([-0.0, 1e-45, 1.1754944e-38, 3.4028235e38, 0.1, 1 / 3, -2 / 3, 1e-5, 16777216], np.float32)
USUAL_T = np.random.default_rng(0).normal(0, 0.3, 20_000).astype(np.float32)


def of_array(reward_T: np.ndarray[Any, Any]) -> Callable[[Chunk], Scores]:
    return lambda items: Scores((Score(0, reward_T=reward_T, sum=0.1, ended=False),), "v1", {})


@pytest.mark.parametrize("reward_T", [HARD_T, USUAL_T], ids=["hard", "usual"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".safetensors"])
def test_every_float32_keeps_its_bits(tmp_path: Path, suffix: str, reward_T: np.ndarray[Any, Any]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / f"out{suffix}"
    source.write_text("{}")
    score_file(source, target, of_array(reward_T), model_version="v1")
    read = {
        ".jsonl": lambda: results(target)[0]["rewards"],
        ".parquet": lambda: pq.read_table(target).to_pylist()[0]["rewards"],
        ".safetensors": lambda: unpack_answer(target.read_bytes())[0]["rewards"],
    }
    assert np.array(read[suffix](), np.float32).tobytes() == reward_T.tobytes()


def test_a_float32_is_written_with_no_more_digits_than_it_needs(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("{}")
    score_file(source, target, of_array(np.array([0.1, 1 / 3, -0.0], np.float32)), model_version="v1")
    assert '"rewards":[0.1,0.33333334,-0.0]' in target.read_text()
    target.unlink()
    score_file(source, target, of_array(USUAL_T), model_version="v1")
    assert target.stat().st_size < 11.6 * len(USUAL_T)  # one comma among them


def test_numbers_are_binary_until_they_are_written(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.safetensors"
    source.write_text("{}\n" * (CHUNK_ITEMS + 1))
    one, chunks = Score(0, reward_T=USUAL_T[:1000], sum=0.1, ended=False), 0

    def score(items: Chunk) -> Scores:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise OverloadedError("full")
        return Scores((one,) * len(items), "v1", {})

    with pytest.raises(OverloadedError):
        score_file(source, target, score, model_version="v1")
    assert partial(target).stat().st_size < 4.5 * 1000 * CHUNK_ITEMS


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".safetensors"])
def test_a_value_that_is_not_finite_is_no_result(tmp_path: Path, suffix: str) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / f"out{suffix}"
    source.write_text("{}")
    with pytest.raises(ValueError, match="not finite"):
        score_file(source, target, of_array(np.array([np.nan], np.float32)), model_version="v1")
    assert not target.exists()


def test_bad_lines_fail_alone_and_keep_their_places(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    empty = json.dumps(item(0) | {"response_token_ids": []})
    good = json.dumps(item(0))
    source.write_bytes(
        b"\n".join([b"{", good.encode(), b"", b"[1]", empty.encode(), b"\xff", b"NaN", good.encode()])
    )
    assert score_file(source, target, Scorer(), model_version="v1") == Counts(scored=2, failed=5)
    lines = results(target)
    assert [line["index"] for line in lines] == list(range(7))
    assert [line["status"] for line in lines] == ["error", "ok", "error", "error", "error", "error", "ok"]
    assert lines[0]["error"]["message"].startswith(f"{source} line 1 is not JSON: ")
    assert lines[2]["error"]["message"] == f"{source} line 4 is not a JSON object"
    assert lines[3]["error"]["message"] == "items[3]: empty"
    assert lines[3]["error"]["param"] == "items[3]"
    assert all("rewards" not in line and "sum" not in line for line in lines if line["status"] == "error")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".safetensors"])
@pytest.mark.parametrize("cut", [b"", b"\x80", bytes(8), b'{"index": 0}', b"\x03" + bytes(7) + b"{}\n"])
def test_it_resumes_where_it_stopped(source: Path, tmp_path: Path, suffix: str, cut: bytes) -> None:
    whole, target = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    score_file(source, whole, Scorer(), model_version="v1")
    with pytest.raises(OverloadedError):
        score_file(source, target, Scorer(dies_at=1), model_version="v1")
    assert not target.exists()
    with partial(target).open("ab") as file:
        file.write(cut)
    again, steps = Scorer(), []
    counts = score_file(
        source, target, again, model_version="v1", progress=lambda done, total: steps.append(done)
    )
    assert counts == Counts(scored=N, failed=0)
    assert again.seen == [f"i{n}" for n in range(CHUNK_ITEMS, N)]
    assert steps[0] == CHUNK_ITEMS
    assert target.read_bytes() == whole.read_bytes()
    assert not partial(target).exists()


def test_a_kill_at_any_byte_loses_at_most_the_cut_record(source: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    score_file(source, whole, Scorer(), model_version="v1")
    with pytest.raises(OverloadedError):
        score_file(source, target, Scorer(dies_at=1), model_version="v1")
    kept, ends = partial(target).read_bytes(), []
    with partial(target).open("rb") as file:
        for _ in read_records(file):
            ends.append(file.tell())
    assert len(ends) == 1 + CHUNK_ITEMS
    assert ends[-1] == len(kept)
    for length in [*range(0, 600, 23), *range(600, len(kept), 9001)]:
        partial(target).write_bytes(kept[:length])
        again = Scorer()
        score_file(source, target, again, model_version="v1")
        assert target.read_bytes() == whole.read_bytes()
        assert len(again.seen) == N - max(sum(end <= length for end in ends) - 1, 0)
        target.unlink()


def test_every_result_is_on_disk_before_the_next_chunk(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
chunks = []
def die(items):
    if chunks: os.kill(os.getpid(), 9)
    chunks.append(items)
    return helpers.fake_scores(items)
helpers.score_file(Path({str(source)!r}), Path({str(target)!r}), die, model_version="v1")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    again = Scorer()
    score_file(source, target, again, model_version="v1")
    assert len(again.seen) == N - CHUNK_ITEMS
    check_all(target)


def change_input(source: Path) -> None:
    source.write_text(source.read_text().replace("i1", "j1"))


def grow_input(source: Path) -> None:
    source.write_text(source.read_text() + json.dumps(item(0)) + "\n")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (change_input, {}, "input"),
        (grow_input, {}, "input"),
        (None, {"include": ["returns"]}, "options"),
        (None, {"gamma": 0.5}, "options"),
        (None, {"model_version": "v2"}, "pair version"),
    ],
)
def test_a_partial_file_of_something_else_is_refused(
    source: Path, tmp_path: Path, change: Callable[[Path], None] | None, options: Any, said: str
) -> None:
    target, scorer = tmp_path / "out.jsonl", Scorer()
    with pytest.raises(OverloadedError):
        score_file(source, target, Scorer(dies_at=1), model_version="v1")
    before = partial(target).read_bytes()
    if change:
        change(source)
    with pytest.raises(ScoreFileError, match=f"was made with a different {said}: remove it"):
        score_file(source, target, scorer, **{"model_version": "v1"} | options)
    assert scorer.chunks == []
    if not change:
        assert partial(target).read_bytes() == before


def records(path: Path) -> list[tuple[int, int]]:
    """Where each record of a partial file begins and ends; the first says what the others belong to."""
    ends = [0]
    with path.open("rb") as file:
        for _ in read_records(file):
            ends.append(file.tell())
    return list(itertools.pairwise(ends))


@pytest.mark.parametrize("fault", ["lost", "twice", "swapped", "flipped"])
def test_a_record_that_is_not_in_its_place_is_scored_again(source: Path, tmp_path: Path, fault: str) -> None:
    target = tmp_path / "out.jsonl"
    with pytest.raises(OverloadedError):
        score_file(source, target, Scorer(dies_at=1), model_version="v1")
    data, places = partial(target).read_bytes(), records(partial(target))
    parts = [data[begin:end] for begin, end in places]
    if fault == "lost":
        del parts[51]
    elif fault == "twice":
        parts.insert(51, parts[50])
    elif fault == "swapped":
        parts[51], parts[52] = parts[52], parts[51]
    else:
        parts[51] = parts[51][:-1] + bytes([parts[51][-1] ^ 1])  # a bit of a reward
    partial(target).write_bytes(b"".join(parts))
    again = Scorer()
    assert score_file(source, target, again, model_version="v1") == Counts(scored=N, failed=0)
    assert again.seen == [f"i{n}" for n in range(50, N)]
    check_all(target)


def test_an_input_that_changes_while_it_is_scored_is_no_success(source: Path, tmp_path: Path) -> None:
    """The size and the first megabyte stay as they were."""
    target = tmp_path / "out.jsonl"
    source.write_text(json.dumps(item(0) | {"pad": "x" * (1 << 20)}) + "\n" + source.read_text())

    def score(items: Chunk) -> Scores:
        source.write_text(source.read_text().replace("i599", "j599"))
        return fake_scores(items)

    with pytest.raises(ScoreFileError, match="was changed while it was scored: remove"):
        score_file(source, target, score, model_version="v1")
    assert not target.exists()


def change_id(scores: list[Score]) -> None:
    scores[3] = replace(scores[3], id="another")


def swap(scores: list[Score]) -> None:
    scores[3], scores[4] = scores[4], scores[3]


@pytest.mark.parametrize("change", [change_id, swap, list.pop])
def test_scores_of_other_items_are_no_results(
    source: Path, tmp_path: Path, change: Callable[[list[Score]], Any]
) -> None:
    target = tmp_path / "out.jsonl"

    def score(items: Chunk) -> Scores:
        scores = list(fake_scores(items))
        change(scores)
        return Scores(tuple(scores), "v1", {})

    with pytest.raises(
        InternalError, match=r"has the id of another item|256 items were sent, and 255 scores"
    ):
        score_file(source, target, score, model_version="v1")
    assert not target.exists()


def test_a_result_that_is_lost_at_the_end_is_no_success(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.jsonl"

    def lossy(file: BinaryIO, result: dict[str, Any]) -> None:
        if result.get("index") != 400:
            append_record(file, result)

    with monkeypatch.context() as patch:
        patch.setattr("densepath.score.resume.append_record", lossy)
        with pytest.raises(ScoreFileError, match="does not have the result of item 400 in its place"):
            score_file(source, target, Scorer(), model_version="v1")
    assert not target.exists()


def test_another_pair_version_stops_the_job(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelVersionMismatchError):
        score_file(source, tmp_path / "out.jsonl", Scorer(version="v2"), model_version="v1")


def test_an_existing_output_is_never_replaced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("mine")
    with pytest.raises(ScoreFileError, match="exists"):
        score_file(source, target, Scorer(), model_version="v1")
    assert target.read_text() == "mine"


@pytest.mark.parametrize(("name", "out"), [("in.csv", "out.jsonl"), ("in.jsonl", "out.csv"), ("in", "out")])
def test_unknown_suffixes_are_refused(tmp_path: Path, name: str, out: str) -> None:
    with pytest.raises(ScoreFileError, match=r"must be one of \.jsonl"):
        score_file(tmp_path / name, tmp_path / out, Scorer(), model_version="v1")


def test_parquet_in_is_what_jsonl_in_is(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.parquet"
    rows = [item(n) for n in range(N)]
    rows[5].pop("id")
    pq.write_table(pa.Table.from_pylist(rows), table)
    scorer, target = Scorer(), tmp_path / "out.jsonl"
    score_file(table, target, scorer, model_version="v1")
    assert [row for chunk in scorer.chunks for row in chunk] == rows
    assert len(results(target)) == N


def test_nulls_of_a_table_are_absent_fields(tmp_path: Path) -> None:
    table, seen = tmp_path / "in.parquet", []
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}], "response": "b", "append_eos": None},
        {"messages": [{"role": "user", "content": "a", "name": "n"}], "response": "b", "append_eos": True},
    ]
    pq.write_table(pa.Table.from_pylist(rows), table)

    def score(items: Chunk) -> Scores:
        seen.extend(items)
        return fake_scores([{"response_token_ids": [1]} for _ in items])

    score_file(table, tmp_path / "out.jsonl", score, model_version="v1")
    assert seen == [{"messages": [{"role": "user", "content": "a"}], "response": "b"}, rows[1]]


def mixed(tmp_path: Path) -> Path:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join([json.dumps(item(1)), "{", json.dumps(item(2))]))
    return source


def test_parquet_out(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    score_file(mixed(tmp_path), target, Scorer(), model_version="v1", include=["logprobs", "tokens"])
    first, failed, last = pq.read_table(target).to_pylist()
    assert first["rewards"] == (np.array([3, 3], np.float32) / np.float32(7)).tolist()
    assert first["tokens"] == ["\u4e2d"] * 2
    assert first["error"] is first["returns"] is None
    assert failed["rewards"] is failed["sum"] is failed["ended"] is None
    assert failed["error"]["code"] == "invalid_item"
    assert last["index"] == 2
    assert {row["model_version"] for row in (first, failed, last)} == {"v1"}


def test_safetensors_out_reads_as_an_answer_of_the_service(tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    score_file(mixed(tmp_path), target, Scorer(), model_version="v1", include=["logprobs"])
    arrays, rest = unpack_answer(target.read_bytes())
    assert arrays["rewards"].dtype == np.float32
    assert arrays["rewards"].tolist() == (np.array([3, 3, 4, 4, 4], np.float32) / np.float32(7)).tolist()
    assert arrays["offsets"].tolist() == [0, 2, 2, 5]
    assert arrays["sft_logprobs"].shape == arrays["reference_logprobs"].shape == (5,)
    assert rest["model_version"] == "v1"
    assert [entry["status"] for entry in rest["items"]] == ["ok", "error", "ok"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".safetensors"])
def test_a_file_without_items_gives_a_file_without_results(tmp_path: Path, suffix: str) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / f"out{suffix}"
    source.write_text("\n\n")
    assert score_file(source, target, Scorer(), model_version="v1") == Counts(0, 0)
    assert target.exists()


def test_too_much_metadata_names_the_way_out_and_loses_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("densepath.score.formats._SAFETENSORS_METADATA_BYTES", 1000)
        with pytest.raises(ScoreFileError, match=r"\.parquet"):
            score_file(source, target, Scorer(), model_version="v1")
    assert not target.exists()
    again = Scorer()
    score_file(source, target, again, model_version="v1")
    assert again.chunks == []


@pytest.mark.parametrize(("name", "out"), [("in.parquet", "out.jsonl"), ("in.jsonl", "out.parquet")])
def test_parquet_without_pyarrow_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, out: str
) -> None:
    real = builtins.__import__

    def without(module: str, *rest: Any, **named: Any) -> Any:
        if module.startswith("pyarrow"):
            raise ImportError(module)
        return real(module, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    scorer = Scorer()
    with pytest.raises(ScoreFileError, match=r"pip install 'densepath\[parquet\]'"):
        score_file(tmp_path / name, tmp_path / out, scorer, model_version="v1")
    assert scorer.chunks == []


def test_the_input_is_never_held_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    line = json.dumps({"prompt_token_ids": [1], "response_token_ids": [2], "pad": "x" * 20_000}) + "\n"
    source.write_text(line * 4000)  # 80 MB
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
import numpy as np
from densepath.client import Score, Scores
from densepath.score.resume import score_file
one = np.ones(1, np.float32)
def score(items):
    scores = (Score(i, reward_T=one, sum=1.0, ended=False) for i in range(len(items)))
    return Scores(tuple(scores), "v1", {{}})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
score_file(Path({str(source)!r}), Path({str(target)!r}), score, model_version="v1")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 40_000  # KiB: half of the file


def test_importing_it_loads_no_pyarrow_and_no_torch() -> None:
    heavy = ["pyarrow", "torch", "fastapi", "pydantic", "typer"]
    code = f"import sys, densepath.score.resume; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

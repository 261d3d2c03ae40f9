"""Rewards as columns of datasets, pandas and Polars, from a real service."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from datasets.utils.logging import disable_progress_bar

from densepath import Client
from densepath.errors import InvalidItemError, UnavailableError
from densepath.integrations.data import ScoreColumns
from live import finish

TOLERANCE = 1e-5
EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS: dict[str, list[dict[str, Any]]] = {
    "tokens": [
        {"prompt_token_ids": [1, 7 + n, 8], "response_token_ids": [10 + n] * (1 + n % 3)} for n in range(7)
    ],
    "spans": [{"token_ids": [1, 7 + n, 8, 9, 10], "response_mask": [0, 0, 1, n % 2, 1]} for n in range(7)],
    "text": [{"prompt": f"two and {n}", "response": f" is {n + 2}"} for n in range(7)],
    "chat": [
        {"messages": [{"role": "user", "content": f"two and {n}"}], "response": f"{n + 2}"} for n in range(7)
    ],
    "chat in parts": [
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": f"two and {n}"}]}],
            "response": f"{n + 2}",
            "chat_template_kwargs": {"enable_thinking": n % 2 == 0},
        }
        for n in range(7)
    ],
}

disable_progress_bar()


def by_datasets(rows: list[dict[str, Any]], score: ScoreColumns) -> list[dict[str, Any]]:
    return list(Dataset.from_list(rows).map(score, batched=True, batch_size=3))


def by_pandas(rows: list[dict[str, Any]], score: ScoreColumns) -> list[dict[str, Any]]:
    frame = pd.DataFrame(rows)
    return frame.assign(**score(frame)).to_dict("records")


def by_parquet_and_pandas(rows: list[dict[str, Any]], score: ScoreColumns) -> list[dict[str, Any]]:
    frame = Dataset.from_list(rows).to_pandas()  # lists are arrays then, as of a Parquet file
    return frame.assign(**score(frame)).to_dict("records")


def by_polars(rows: list[dict[str, Any]], score: ScoreColumns) -> list[dict[str, Any]]:
    frame = pl.DataFrame(rows)
    return frame.hstack(pl.DataFrame(score(frame))).to_dicts()


@pytest.mark.parametrize("form", list(ROWS))
@pytest.mark.parametrize("score_by", [by_datasets, by_pandas, by_parquet_and_pandas, by_polars])
def test_every_row_has_the_rewards_that_the_service_answers(
    score_by: Any, form: str, tiny_service: str
) -> None:
    eos = form in ("text", "chat")
    score = ScoreColumns(tiny_service, include=("logprobs", "returns"), gamma=0.5, append_eos=eos)
    found = score_by([row | {"source": n} for n, row in enumerate(ROWS[form])], score)
    with Client(tiny_service) as client:
        items = [row | {"append_eos": True} for row in ROWS[form]] if eos else ROWS[form]
        expected = client.score(items, include=("logprobs", "returns"), gamma=0.5)
    assert [row["source"] for row in found] == list(range(7))
    for row, score_of in zip(found, expected, strict=True):
        np.testing.assert_allclose(row["rewards"], score_of.reward_T, atol=TOLERANCE)
        np.testing.assert_allclose(row["returns"], score_of.return_T, atol=TOLERANCE)
        np.testing.assert_allclose(row["sft_logprobs"], score_of.logp_sft_T, atol=TOLERANCE)
        np.testing.assert_allclose(row["reference_logprobs"], score_of.logp_reference_T, atol=TOLERANCE)
        assert row["sum"] == pytest.approx(score_of.sum, abs=TOLERANCE)
        assert row["ended"] == score_of.ended
        if eos:
            assert list(row["response_token_ids"]) == score_of.response_token_ids.tolist()  # type: ignore[union-attr]
        if form == "spans":
            assert list(row["positions"]) == score_of.positions.tolist()  # type: ignore[union-attr]


def test_workers_of_datasets_score_with_it(tiny_service: str) -> None:
    score = pickle.loads(pickle.dumps(ScoreColumns(tiny_service)))
    found = Dataset.from_list(ROWS["tokens"]).map(score, batched=True, batch_size=2, num_proc=2)
    assert found["sum"][:] == [row["sum"] for row in by_datasets(ROWS["tokens"], score)]


def test_what_datasets_has_cached_of_another_pair_is_not_taken(tiny_service: str) -> None:
    one, same, other = (ScoreColumns(tiny_service) for _ in range(3))
    other.model_version = "another"
    assert Hasher.hash(one) == Hasher.hash(same) != Hasher.hash(other)


def test_a_bad_row_and_columns_that_are_none_are_errors(tiny_service: str) -> None:
    score = ScoreColumns(tiny_service)
    with pytest.raises(InvalidItemError, match=r"items\[1\].*out of range"):
        score({"prompt_token_ids": [[1], [1]], "response_token_ids": [[5], [100_000]]})
    with pytest.raises(InvalidItemError, match="exactly one form"):
        score({"prompt_token_ids": [[1]], "response_token_ids": [[5]], "prompt": ["a"]})
    with pytest.raises(InvalidItemError, match="name the columns like its fields, prompt_token_ids"):
        score({"text": ["a"]})
    assert score({"prompt": [], "response": []}) == {}


def test_a_service_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.client.gate._JITTER_SECONDS", 0.0)
    with pytest.raises(UnavailableError):
        ScoreColumns("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("script", "says"), [("datasets_map.py", "larger sum"), ("pandas_polars.py", "shape: (8, 3)")]
)
def test_the_example_runs(script: str, says: str, tiny_service: str) -> None:
    done = finish([sys.executable, str(EXAMPLES / script), "--url", tiny_service], env={}, within=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert says in done.stdout

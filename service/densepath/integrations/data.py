"""Rewards as columns for `datasets.map`, for a pandas or Polars data frame, or for a dict of lists.

scored = dataset.map(ScoreColumns(url), batched=True)                      # datasets
frame = frame.assign(**ScoreColumns(url)(frame))                           # pandas
frame = frame.hstack(polars.DataFrame(ScoreColumns(url)(frame)))           # Polars
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from densepath.client import Client, Score
from densepath.errors import InvalidItemError
from densepath.score.formats import without_nulls

#: The fields of an item, which are read as columns. Other columns are not read.
FIELDS = (
    "prompt_token_ids",
    "response_token_ids",
    "token_ids",
    "response_mask",
    "prompt",
    "messages",
    "response",
    "chat_template_kwargs",
)
_ARRAYS = {
    "rewards": "reward_T",
    "sft_logprobs": "logp_sft_T",
    "reference_logprobs": "logp_reference_T",
    "returns": "return_T",
    "positions": "positions",
    "response_token_ids": "response_token_ids",
}


class ScoreColumns:
    """Takes columns of items and returns columns of their scores, from the pair version that is served now.

    It can be pickled, for the workers of `datasets.map(num_proc=…)`. The pair version is part of the pickle,
    so `datasets` does not reuse cached scores of another pair.

    Args:
        url: the service, or its replicas.
        include: what else to return, from "logprobs" and "returns".
        gamma: the discount of the returns.
        append_eos: for texts and chats, whether a response gets the end-of-sequence token and its reward.
        api_key: the API key of the service.

    Raises:
        DensepathError: the service cannot be reached.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        include: Sequence[str] = (),
        gamma: float = 1.0,
        append_eos: bool = False,
        api_key: str | None = None,
    ) -> None:
        self._url, self._api_key = url, api_key
        self._include, self._gamma, self._append_eos = tuple(include), gamma, append_eos
        with self._client() as client:
            self.model_version = str(client.pair()["version"])

    def __call__(self, columns: Any) -> dict[str, list[Any]]:
        """Fields of the answer as columns: `rewards` (one list per row), `sum` and `ended`.

        There are also `response_token_ids` for texts and chats, `positions` for spans, and the fields that
        `include` asks for.

        Raises:
            InvalidItemError: there are no columns of an item, or those of two forms, or a row cannot be
                scored.
            ModelVersionMismatchError: another pair is served now.
        """
        items = items_of(columns, self._append_eos)
        if not items:
            return {}
        with self._client() as client:
            scores = client.score(
                items, include=self._include, gamma=self._gamma, model_version=self.model_version
            ).items
        return {
            **{name: _lists(scores, at) for name, at in _ARRAYS.items() if _has(scores, at)},
            "sum": [score.sum for score in scores],
            "ended": [score.ended for score in scores],
        }

    def _client(self) -> Client:
        return Client(self._url, api_key=self._api_key)


def items_of(columns: Any, append_eos: bool) -> list[dict[str, Any]]:
    """The items whose fields are these columns.

    Raises:
        InvalidItemError: there is no column of an item.
    """
    found = {name: _values(columns[name]) for name in FIELDS if name in columns}
    if not found:
        raise InvalidItemError(
            f"there is no column of an item: name the columns like its fields, {', '.join(FIELDS)}"
        )
    eos = {"append_eos": True} if append_eos else {}
    rows = (dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True))
    return [without_nulls(row) | eos for row in rows]


def _values(column: Any) -> list[Any]:
    """A column's rows as plain values: a message becomes a dict, and several messages a list of dicts."""
    return [_plain(row) for row in (column.to_list() if hasattr(column, "to_list") else list(column))]


def _plain(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    nested = isinstance(value, list) and value and not isinstance(value[0], int)
    return [_plain(inner) for inner in value] if nested else value


def _has(scores: Sequence[Score], attribute: str) -> bool:
    return getattr(scores[0], attribute) is not None


def _lists(scores: Sequence[Score], attribute: str) -> list[list[Any]]:
    return [getattr(score, attribute).tolist() for score in scores]

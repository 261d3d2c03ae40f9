"""Reading prompts from a file, and choosing the prompts of each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.errors import InvalidRequestError
from densepath.jsonl import read_objects
from densepath.score.formats import without_nulls
from densepath.trainer.types import Prompt

#: A row and its place, which errors name: `FILE line 3`.
Placed = tuple[str, dict[str, Any]]


def read_rows(path: Path) -> list[Placed]:
    """The rows of a JSONL file, a Parquet file or a directory that `datasets` has saved, each with its place.

    Raises InvalidRequestError if it is none of them, cannot be read, or has no rows.
    """
    form = _form(path)
    try:
        rows = list(_READERS[form](path))
    except InvalidRequestError:
        raise
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise InvalidRequestError(f"{path} has no rows: it must have at least one")
    return rows


def read_prompts(path: Path, tokenizer: Any) -> list[Prompt]:
    """The prompts of a file. A row has `messages`, `prompt` or `prompt_token_ids`.

    It may also have `answer` and `id`. Messages are rendered by the chat template with a generation prompt
    and the row's `chat_template_kwargs`, as in the service's chat form, and are tokenised without added
    tokens. A text is tokenised with the defaults of the tokenizer. `tokenizer` is a
    `densepath.sequences.Tokenizer`.
    """
    return [_prompt(row, where, tokenizer) for where, row in read_rows(path)]


def _form(path: Path) -> str:
    form = "directory" if path.is_dir() else path.suffix
    if form not in _READERS:
        raise InvalidRequestError(f"{path} must be a .jsonl or .parquet file, or a directory of `datasets`")
    return form


def _read_jsonl(path: Path) -> Iterable[Placed]:
    return ((f"{path} line {number}", row) for number, row in read_objects(path))


def _read_parquet(path: Path) -> Iterable[Placed]:
    from pyarrow import parquet

    return _numbered(path, parquet.read_table(path).to_pylist())


def _read_datasets(path: Path) -> Iterable[Placed]:
    from datasets import Dataset, load_from_disk

    loaded = load_from_disk(str(path))
    if not isinstance(loaded, Dataset):
        raise ValueError(  # noqa: TRY004  (a wrong file, not a wrong call)
            "it holds several splits: give the directory of one of them"
        )
    return _numbered(path, loaded)


def _numbered(path: Path, rows: Iterable[Mapping[str, Any]]) -> Iterable[Placed]:
    return ((f"{path} row {number}", without_nulls(dict(row))) for number, row in enumerate(rows, 1))


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet, "directory": _read_datasets}


def _prompt(row: Mapping[str, Any], where: str, tokenizer: Any) -> Prompt:
    given = [name for name in ("messages", "prompt", "prompt_token_ids") if row.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequestError(f"{where}: give exactly one of messages, prompt and prompt_token_ids")
    value, messages = row[given[0]], None
    if given[0] == "messages":
        messages = tuple(value)
        text = _render(row, where, tokenizer)
        ids = tokenizer.encode(text, add_special_tokens=False)
    elif given[0] == "prompt":
        text, ids = value, tokenizer.encode(value)
    else:
        text, ids = tokenizer.decode(value), value
    if not ids:
        raise InvalidRequestError(
            f"{where}: the prompt is empty, but a reward needs at least one token before it"
        )
    answer, name = row.get("answer"), row.get("id")
    return Prompt(
        text=text,
        token_ids=tuple(map(int, ids)),
        answer=None if answer is None else str(answer),
        id=None if name is None else str(name),
        messages=messages,
        where=where,
    )


def _render(row: Mapping[str, Any], where: str, tokenizer: Any) -> str:
    try:
        return str(tokenizer.render(list(row["messages"]), row.get("chat_template_kwargs")))
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}: {error.message}") from error


def step_indices(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """The indices, out of `count` prompts, that step `step` (from 1 on) takes. Each epoch has its own order.

    The result depends only on the arguments, so a resumed run continues in the same order.
    """
    taken = range((step - 1) * per_step, step * per_step)
    epochs = {epoch: _shuffled(count, seed, epoch) for epoch in {at // count for at in taken}}
    return [int(epochs[at // count][at % count]) for at in taken]


def rollout_seeds(seed: int, step: int, count: int) -> list[int]:
    """One seed per response of a step. The result depends only on the arguments."""
    state: Sequence[int] = np.random.SeedSequence([seed, step]).generate_state(count).tolist()
    return list(state)


def _shuffled(count: int, seed: int, epoch: int) -> Any:
    return np.random.default_rng([seed, epoch]).permutation(count)

"""Demonstrations as token ids: exactly the ids that the service makes from the same conversation.

They are tokenised here and not by TRL. TRL tokenises prompt and answer as one text, so tokens may merge
across the boundary. In a conversation, TRL learns whatever the chat template prints after the answer as its
end. Many templates print a line break after the EOS token, and some print no EOS token at all. The service
tokenises prompt and response separately and joins them, and a model that it rewards must learn the same ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densepath.chat.render import text_of
from densepath.errors import InvalidRequestError
from densepath.sequences import Sequence, Tokenizer
from densepath.trainer.prompts import read_rows

#: The label of a token that is not learned.
IGNORED = -100

_FORMS = "a row has messages and response, prompt and response, or messages that end with the assistant's"


@dataclass(frozen=True)
class Demonstrations:
    """The demonstrations that a run learns from, and those that it validates on."""

    learned: ListLike[Sequence]
    held_out: ListLike[Sequence]
    too_long: int  # rows that were left out


def read_demonstrations(path: Path, fast_tokenizer: Any) -> list[Sequence]:
    """The demonstrations of a file. The scored tokens are those of the response and the EOS token after it.

    Chat is rendered by the chat template with a generation prompt, as in the service's chat form. Text is
    tokenised as in the service's text form. A response that already ends with EOS gets no second one.
    Raises InvalidRequestError, which names the file and the line.
    """
    if fast_tokenizer.eos_token is None:
        raise InvalidRequestError("the base model's tokenizer has no EOS token: no response could end")
    tokenizer, eos = Tokenizer(fast_tokenizer), str(fast_tokenizer.eos_token)
    sequences = []
    for where, row in read_rows(path):
        try:
            sequences.append(_tokenize(row, tokenizer, eos))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{where}: {error.message}") from error
    return sequences


def split(
    sequences: ListLike[Sequence], share: float, seed: int
) -> tuple[ListLike[Sequence], ListLike[Sequence]]:
    """Split into sequences to learn from and held-out ones: a random `share`, at least one."""
    held_out = max(1, round(share * len(sequences)))
    if held_out >= len(sequences):
        raise InvalidRequestError(f"{len(sequences)} demonstrations are too few to hold some out")
    order = np.random.default_rng(seed).permutation(len(sequences))
    return [sequences[i] for i in sorted(order[held_out:])], [sequences[i] for i in sorted(order[:held_out])]


def to_columns(sequences: Iterable[Sequence]) -> dict[str, list[list[int]]]:
    """`input_ids` and `labels` of each sequence, for TRL; labels are the scored tokens."""
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for sequence in sequences:
        labels_L = np.full_like(sequence.token_ids_L, IGNORED)
        labels_L[sequence.positions_T] = sequence.scored_ids_T
        columns["input_ids"].append(sequence.token_ids_L.tolist())
        columns["labels"].append(labels_L.tolist())
    return columns


def _tokenize(row: Mapping[str, Any], tokenizer: Tokenizer, eos: str) -> Sequence:
    messages, prompt, response = (row.get(name) for name in ("messages", "prompt", "response"))
    if messages is not None and not _is_conversation(messages):
        raise InvalidRequestError("messages is not a list of objects that each have a role")
    if messages is not None and response is None:
        if not messages or messages[-1]["role"] != "assistant":
            raise InvalidRequestError(f"its last message is not the assistant's: {_FORMS}")
        *messages, last = messages
        response = text_of(last.get("content"), f"messages[{len(messages)}].content")
    if not isinstance(response, str) or (messages is None) == (not isinstance(prompt, str)):
        raise InvalidRequestError(f"it is not a demonstration: {_FORMS}")
    append_eos = not response.endswith(eos)
    if messages is None:
        return tokenizer.from_text(str(prompt), response, append_eos=append_eos)
    return tokenizer.from_chat(
        messages, response, append_eos=append_eos, template_kwargs=row.get("chat_template_kwargs")
    )


def _is_conversation(messages: Any) -> bool:
    return isinstance(messages, list) and all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in messages
    )

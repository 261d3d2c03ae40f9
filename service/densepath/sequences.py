"""`Sequence`: token ids and which of them are scored. It is the only type that the engine takes.

Token ids decide what is scored. Text is a convenience: `Tokenizer` turns text and chat into the same type.
Prompt and response are tokenised separately and then joined, and the answer has the ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepath.chat import render as chat
from densepath.errors import ContextLengthExceededError, InvalidItemError

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence to score.

    `token_ids_L` is int64 [L]. `positions_T` is int64 [T], ascending: the index in `token_ids_L` of each
    scored token. Every index is >= 1, because a token is scored given the tokens before it. `offsets_T` are
    the characters of the response string that each scored token covers (text and chat forms only).
    """

    token_ids_L: Ids
    positions_T: Ids
    offsets_T: tuple[tuple[int, int], ...] | None = None

    @property
    def scored_ids_T(self) -> Ids:
        """The scored tokens' ids, int64 [T]."""
        return self.token_ids_L[self.positions_T]

    @property
    def prompt_tokens(self) -> int:
        """How many tokens are context only."""
        return len(self.token_ids_L) - len(self.positions_T)

    def spans(self) -> list[int]:
        """The scored positions as flat half-open runs `[start, end, start, end, …]`."""
        breaks = np.flatnonzero(np.diff(self.positions_T) != 1) + 1
        runs = np.split(self.positions_T, breaks)
        return [int(edge) for run in runs for edge in (run[0], run[-1] + 1)]


def from_response(prompt_ids: ListLike[int] | Ids, response_ids: ListLike[int] | Ids) -> Sequence:
    """A prompt and its response: every response token is scored."""
    if len(prompt_ids) == 0:
        raise InvalidItemError(
            "the prompt is empty: at least one token must come before the first scored token", param="prompt"
        )
    if len(response_ids) == 0:
        raise InvalidItemError("the response is empty: at least one token must be scored", param="response")
    token_ids_L = np.concatenate((as_ids(prompt_ids), as_ids(response_ids)))
    return Sequence(token_ids_L, np.arange(len(prompt_ids), len(token_ids_L)))


def from_mask(token_ids: ListLike[int] | Ids, response_mask: ListLike[int] | NDArray[Any]) -> Sequence:
    """A sequence and a 0/1 mask of the same length: the tokens under the mask are scored."""
    if len(token_ids) != len(response_mask):
        raise InvalidItemError(
            f"response_mask has {len(response_mask)} entries and token_ids has {len(token_ids)}: "
            "they must have the same length",
            param="response_mask",
        )
    mask_L = _mask(response_mask)
    if mask_L is None:
        raise InvalidItemError("response_mask holds values other than 0 and 1", param="response_mask")
    positions_T = np.flatnonzero(mask_L)
    if len(positions_T) == 0:
        raise InvalidItemError(
            "response_mask scores no token: set it to 1 for at least one", param="response_mask"
        )
    if positions_T[0] == 0:
        raise InvalidItemError(
            "response_mask scores the first token: at least one token must come before it",
            param="response_mask",
        )
    return Sequence(as_ids(token_ids), positions_T)


def _mask(response_mask: ListLike[int] | NDArray[Any]) -> NDArray[np.bool_] | None:
    """The mask as bool [L], or None if an entry is neither 0 nor 1."""
    try:
        entry_L = np.asarray(response_mask)
        mask_L: NDArray[np.bool_] = entry_L == 1
    except ValueError:  # lists of several lengths
        return None
    if mask_L.shape != (len(response_mask),) or not (mask_L | (entry_L == 0)).all():
        return None
    return mask_L


def as_ids(token_ids: ListLike[int] | Ids) -> Ids:
    """Token ids as an array. Raises InvalidItemError for an id that does not fit into 64 bits."""
    try:
        return np.asarray(token_ids, dtype=np.int64)
    except OverflowError:
        raise InvalidItemError("a token id does not fit into 64 bits", param="token_ids") from None


def check(sequence: Sequence, *, embedding_size: int, context_length: int) -> None:
    """Refuse a sequence that the pair cannot score.

    An id is valid if both models' embeddings have its row: `0 <= id < embedding_size`. Padded rows count too,
    because a policy can sample them and both models give them a probability. A sequence may be exactly as
    long as the context length.
    """
    outside_L = (sequence.token_ids_L < 0) | (sequence.token_ids_L >= embedding_size)
    if outside_L.any():
        raise InvalidItemError(
            f"the token id at index {int(outside_L.argmax())} of the sequence is out of range: "
            f"ids must be from 0 to {embedding_size - 1}",
            param="token_ids",
        )
    check_length(len(sequence.token_ids_L), context_length)


def check_length(tokens: int, context_length: int) -> None:
    """Raise ContextLengthExceededError for a sequence of more than `context_length` tokens."""
    if tokens > context_length:
        raise ContextLengthExceededError(
            f"the sequence has {tokens} tokens and the context length is {context_length}: "
            "shorten the prompt or the response"
        )


#: A token of a tokenizer that skips text, or that has one token for unknown text, stands for no more bytes.
MOST_BYTES_OF_A_TOKEN = 256
#: A normalizer can make one byte out of four.
SHRINKS = 4


class Tokenizer:
    """The pair's tokenizer: text and chat to sequences. Safe to call from several threads."""

    def __init__(self, fast_tokenizer: Any) -> None:
        self._fast = fast_tokenizer
        # Read once: `len()` of a Hugging Face tokenizer walks its vocabulary.
        self.eos_token_id: int | None = fast_tokenizer.eos_token_id

    @cached_property
    def longest_token(self) -> int:
        """How many bytes of text one token stands for, at most."""
        return _longest_token(self._fast)

    def check_text(self, text: str, context_length: int) -> None:
        """Refuse a text with more bytes than `context_length` tokens can stand for.

        Raises:
            ContextLengthExceededError: it has more bytes than that.
        """
        most = context_length * self.longest_token
        if len(text) > most or len(text.encode("utf-8", "replace")) > most:
            raise ContextLengthExceededError(
                f"the text is longer than {most} bytes, which the context length of {context_length} tokens "
                f"cannot hold, as no token stands for more than {self.longest_token} bytes: shorten it"
            )

    def from_text(self, prompt: str, response: str, *, append_eos: bool) -> Sequence:
        """Tokenise the prompt with the default special tokens, the response without any, and join them."""
        return self._join(self.encode(prompt), response, append_eos)

    def from_chat(
        self,
        messages: ListLike[chat.Message],
        response: str,
        *,
        append_eos: bool,
        template_kwargs: Mapping[str, Any] | None = None,
        context_length: int | None = None,
    ) -> Sequence:
        """Render the chat with a generation prompt, tokenise it without added tokens, add the response.

        With a `context_length`, a rendered text that cannot fit is refused before it is tokenised.
        """
        text = self.render(messages, template_kwargs)
        if context_length is not None:
            self.check_text(text, context_length)
        return self._join(self.encode(text, add_special_tokens=False), response, append_eos)

    def from_whole(self, text: str, prompt: str) -> Sequence:
        """Tokenise a text that begins with its prompt and contains its special tokens, in one piece.

        A token is scored if it ends after the prompt's last character, so a token across the border is scored
        too. If the prompt is empty, the first token is not scored.
        """
        if not text.startswith(prompt):
            raise InvalidItemError("the text does not begin with its prompt")
        encoded: Mapping[str, Any] = self._fast(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        start = sum(end <= len(prompt) for _, end in encoded["offset_mapping"]) if prompt else 1
        if prompt and not start:
            raise InvalidItemError(
                "the first token ends after the prompt: at least one token must come before the first scored "
                "token"
            )
        return from_response(encoded["input_ids"][:start], encoded["input_ids"][start:])

    def render(
        self,
        messages: ListLike[chat.Message],
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The messages as text, rendered with the SFT model's chat template (`chat.render`)."""
        return chat.render(self._fast, messages, template_kwargs, add_generation_prompt=add_generation_prompt)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return list(self._fast(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def decode(self, token_ids: ListLike[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids, with special tokens unless they are skipped. A padded id has no text."""
        return str(
            self._fast.decode(
                token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def token_strings(self, token_ids: ListLike[int]) -> list[str]:
        """The text of each single token. A part of a character becomes the replacement character."""
        return [self.decode([token_id]) for token_id in token_ids]

    def vocabulary_strings(self, token_ids: ListLike[int]) -> list[str]:
        """Each token as the vocabulary writes it, which is unique. A padded id gives an empty string."""
        return [token or "" for token in self._fast.convert_ids_to_tokens(token_ids)]

    def _join(self, prompt_ids: list[int], response: str, append_eos: bool) -> Sequence:
        encoded: Mapping[str, Any] = self._fast(
            response, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        response_ids = list(encoded["input_ids"])
        offsets = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
        if append_eos:
            if self.eos_token_id is None:
                raise InvalidItemError("this pair's tokenizer has no EOS token to append", param="append_eos")
            response_ids.append(self.eos_token_id)
            offsets.append((len(response), len(response)))
        joined = from_response(prompt_ids, response_ids)
        return Sequence(joined.token_ids_L, joined.positions_T, tuple(offsets))


def _longest_token(fast_tokenizer: Any) -> int:
    """How many bytes of text one token stands for, at most.

    In a vocabulary that spells every byte, that is the longest token as the vocabulary writes it: it writes
    each byte of the text with at least one byte.
    """
    backend = fast_tokenizer.backend_tokenizer
    spells_bytes = getattr(backend.model, "byte_fallback", False) or "ByteLevel" in str(backend.pre_tokenizer)
    longest = max(len(token.encode("utf-8", "replace")) for token in fast_tokenizer.get_vocab())
    if not spells_bytes:
        longest = max(longest, MOST_BYTES_OF_A_TOKEN)
    return longest * (SHRINKS if backend.normalizer is not None else 1)

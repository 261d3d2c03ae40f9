"""Checks that a trainer's token ids are those of the service: before a run, and for one sample.

Token ids decide what is scored, so a trainer with another tokenizer would get the rewards of other tokens
than it sampled. The check of a tokenizer needs transformers. The rest of this module does not, and neither
does importing it.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.client import Client, Score
from densepath.client.items import SpanItem, read_item
from densepath.errors import InvalidItemError
from densepath.pair.checkpoint import fingerprint
from densepath.pair.tokenizer_files import TokenizerIdentity, read_tokenizer, without_pad


class AlignmentError(ValueError):
    """The trainer's token ids differ from the service's. The message says which, and what would be right."""


def check_tokenizer(tokenizer: Any, client: Client) -> None:
    """Compare a trainer's tokenizer with that of the served pair. Padding is ignored, as it is never scored.

    Args:
        tokenizer: a transformers tokenizer, or a directory in which one was saved.
        client: a client of the service.

    Raises:
        AlignmentError: the vocabulary, tokenizer, chat template or EOS differs, or there is no tokenizer.
        DensepathError: the service does not answer.
    """
    problems = tokenizer_problems(tokenizer, client.pair())
    if problems:
        raise AlignmentError("; ".join(problems))


def check_policy(tokenizer: Any, pair: Mapping[str, Any]) -> None:
    """Compare a policy's tokenizer with that of a pair, for a tool that renders prompts itself and sends ids.

    A different chat template gives different prompts, but no wrong rewards, so it only causes a warning.

    Args:
        tokenizer: a transformers tokenizer, or a directory in which one was saved.
        pair: the answer of `GET /v1/pair` (`Client.pair`).

    Raises:
        AlignmentError: the vocabulary, tokenizer or EOS differs, or there is no tokenizer.
    """
    mine = _read(tokenizer)
    problems = _id_problems(mine, pair)
    if problems:
        raise AlignmentError("; ".join(problems))
    for problem in _template_problems(mine, pair):
        warnings.warn(problem, stacklevel=3)


def tokenizer_problems(tokenizer: Any, pair: Mapping[str, Any]) -> list[str]:
    """What differs between a tokenizer and a pair, as `GET /v1/pair` describes it. Empty if nothing does."""
    mine = _read(tokenizer)
    return [*_id_problems(mine, pair), *_template_problems(mine, pair)]


def _id_problems(mine: TokenizerIdentity, pair: Mapping[str, Any]) -> list[str]:
    problems = []
    if not _same(mine, pair["tokenizer_fingerprint"]):
        problems.append(
            "tokenizer: its vocabulary, merges or special tokens are not the pair's; load it from the "
            "directory of the served SFT checkpoint"
        )
    theirs = sorted(pair["eos_token_ids"])
    if not mine.eos_token_ids <= set(theirs):
        problems.append(
            f"EOS: the tokenizer has {_ids(sorted(mine.eos_token_ids))}, but the pair has {_ids(theirs)}; "
            "set eos_token to one of the pair's, or no response counts as ended"
        )
    return problems


def _template_problems(mine: TokenizerIdentity, pair: Mapping[str, Any]) -> list[str]:
    template = None if mine.chat_template is None else fingerprint(mine.chat_template)
    if template == pair["chat_template_fingerprint"]:
        return []
    return [f"chat template: {_template_problem(template, pair['chat_template_fingerprint'])}"]


def check_sample(token_ids: Any, response_mask: Any, served: Score | Sequence[int]) -> None:
    """Compare one sample of a trainer with what the service scored or tokenised.

    Args:
        token_ids: the trainer's ids of a whole conversation, int [L].
        response_mask: 0 or 1, [L]: the tokens that are to be scored.
        served: either the service's `Score` of that conversation with its `response_token_ids` (include
            "tokens"), which is compared with the tokens under the mask; or the ids of the whole conversation,
            as `Client.tokenize` returns them, which are compared with all of `token_ids`.

    Raises:
        AlignmentError: they differ. The message names the first position.
        InvalidItemError: the ids and the mask are not a valid item, or the score has no ids.
    """
    sample = read_item(0, {"token_ids": token_ids, "response_mask": response_mask})
    if not isinstance(sample, SpanItem):
        raise TypeError("token_ids and response_mask must make an item in the spans form")
    if not isinstance(served, Score):
        _compare(
            sample.token_ids, np.arange(len(sample.token_ids)), np.asarray(served, np.int64), "tokenised"
        )
        return
    if served.response_token_ids is None:
        raise InvalidItemError('the score has no token ids: request it with include=("tokens",)')
    positions_T = np.flatnonzero(sample.response_mask)
    if served.positions is not None and served.positions.tolist() != positions_T.tolist():
        raise AlignmentError("response_mask: it differs from the mask that was scored; send this one")
    _compare(sample.token_ids, positions_T, served.response_token_ids, "scored")


def _compare(token_ids_L: Any, positions_T: Any, served_T: Any, what: str) -> None:
    mine_T = token_ids_L[positions_T]
    shared = min(len(mine_T), len(served_T))
    differs = np.flatnonzero(mine_T[:shared] != served_T[:shared])
    if len(differs):
        n = int(differs[0])
        raise AlignmentError(
            f"token_ids[{positions_T[n]}] is {mine_T[n]}, but the service {what} {served_T[n]} there: send "
            "the ids as they were sampled, and never tokenise their text again"
        )
    if len(mine_T) != len(served_T):
        raise AlignmentError(
            f"the sample has {len(mine_T)} tokens and the service {what} {len(served_T)}, of which the first "
            f"{shared} are the same: send the ids as they were sampled, including EOS if it was sampled"
        )


def _read(tokenizer: Any) -> TokenizerIdentity:
    if isinstance(tokenizer, (str, Path)):
        return _read_directory(Path(tokenizer))
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return _read_directory(Path(directory))


def _read_directory(directory: Path) -> TokenizerIdentity:
    problems: list[str] = []
    read = read_tokenizer(directory, lambda file, what: problems.append(f"{file} {what}"))
    if read is None:
        raise AlignmentError("tokenizer: " + "; ".join(problems))
    return read


def _same(mine: TokenizerIdentity, expected: str) -> bool:
    """Whether the fingerprint is the expected one, with or without an added token for padding."""
    return expected in (fingerprint(mine.fields), fingerprint(without_pad(mine)))


def _template_problem(mine: str | None, theirs: str | None) -> str:
    if theirs is None:
        return (
            "the tokenizer has one, but the pair has none: the service cannot render messages; send token ids"
        )
    if mine is None:
        return "the tokenizer has none; load it from the directory of the served SFT checkpoint"
    return (
        "it is not the pair's, so the same messages give other prompts; load it from the directory of "
        "the served SFT checkpoint"
    )


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "none"

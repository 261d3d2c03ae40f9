"""Whether a trainer's token ids are the service's: checked before a run, and for one sample.

Token ids are the truth, so a trainer that makes them with another tokenizer is paid for other tokens than
it sampled. The check needs transformers; the rest of this module, and importing it, does not.
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
    """The trainer's token ids are not the service's; the message says which, and what would be right."""


def check_tokenizer(tokenizer: Any, client: Client) -> None:
    """Compare a trainer's tokenizer with that of the served pair. Padding is left out: it is never scored.

    Args:
        tokenizer: a transformers tokenizer, or a directory that one was saved in.
        client: of the service.

    Raises:
        AlignmentError: another vocabulary, tokenizer, chat template or EOS, or no tokenizer.
        DensepathError: the service does not answer.
    """
    problems = tokenizer_problems(tokenizer, client.pair())
    if problems:
        raise AlignmentError("; ".join(problems))


def check_policy(tokenizer: Any, pair: Mapping[str, Any]) -> None:
    """Compare a policy's tokenizer with that of a pair, for whoever renders prompts itself and sends ids.

    Another chat template than the pair's makes other prompts, and no wrong number: it is a warning.

    Args:
        tokenizer: a transformers tokenizer, or a directory that one was saved in.
        pair: as `GET /v1/pair` describes it (`Client.pair`).

    Raises:
        AlignmentError: another vocabulary, tokenizer or EOS, or no tokenizer.
    """
    mine = _read(tokenizer)
    problems = _id_problems(mine, pair)
    if problems:
        raise AlignmentError("; ".join(problems))
    for problem in _template_problems(mine, pair):
        warnings.warn(problem, stacklevel=3)


def tokenizer_problems(tokenizer: Any, pair: Mapping[str, Any]) -> list[str]:
    """What differs between a tokenizer and a pair, as `GET /v1/pair` describes it; empty for nothing."""
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
            f"EOS: it ends with {_ids(sorted(mine.eos_token_ids))}, and the pair with {_ids(theirs)}; set "
            "eos_token to one of the pair's, or no response counts as ended"
        )
    return problems


def _template_problems(mine: TokenizerIdentity, pair: Mapping[str, Any]) -> list[str]:
    template = None if mine.chat_template is None else fingerprint(mine.chat_template)
    if template == pair["chat_template_fingerprint"]:
        return []
    return [f"chat template: {_template_problem(template, pair['chat_template_fingerprint'])}"]


def check_sample(token_ids: Any, response_mask: Any, served: Score | Sequence[int]) -> None:
    """Hold one sample of a trainer to what the service scored or tokenised.

    Args:
        token_ids: the trainer's ids of a whole conversation, int [L].
        response_mask: 0 or 1, [L]: the tokens that are to be scored.
        served: the service's `Score` of that conversation, with its `response_token_ids` (include "tokens"),
            held to the tokens under the mask; or the ids of the whole conversation, as `Client.tokenize`
            answers, held to all of `token_ids`.

    Raises:
        AlignmentError: they differ; the message names the first position.
        InvalidItemError: no item can be made of the ids and the mask, or the score holds no ids.
    """
    sample = read_item(0, {"token_ids": token_ids, "response_mask": response_mask})
    if not isinstance(sample, SpanItem):
        raise TypeError("token_ids and response_mask make a spans item")
    if not isinstance(served, Score):
        _compare(
            sample.token_ids, np.arange(len(sample.token_ids)), np.asarray(served, np.int64), "tokenised"
        )
        return
    if served.response_token_ids is None:
        raise InvalidItemError('the score holds no token ids: ask for it with include=("tokens",)')
    positions_T = np.flatnonzero(sample.response_mask)
    if served.positions is not None and served.positions.tolist() != positions_T.tolist():
        raise AlignmentError("response_mask: it is another than the one that was scored; send this one")
    _compare(sample.token_ids, positions_T, served.response_token_ids, "scored")


def _compare(token_ids_L: Any, positions_T: Any, served_T: Any, what: str) -> None:
    mine_T = token_ids_L[positions_T]
    shared = min(len(mine_T), len(served_T))
    differs = np.flatnonzero(mine_T[:shared] != served_T[:shared])
    if len(differs):
        n = int(differs[0])
        raise AlignmentError(
            f"token_ids[{positions_T[n]}] is {mine_T[n]}, and the service {what} {served_T[n]} there: send "
            "the ids as they were sampled, and never tokenise their text again"
        )
    if len(mine_T) != len(served_T):
        raise AlignmentError(
            f"the sample has {len(mine_T)} tokens and the service {what} {len(served_T)}, the first {shared} "
            "of them the same: send the ids as they were sampled, EOS included where it was sampled"
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
    """Whether the fingerprint is the expected one, with or without an added token that only pads."""
    return expected in (fingerprint(mine.fields), fingerprint(without_pad(mine)))


def _template_problem(mine: str | None, theirs: str | None) -> str:
    if theirs is None:
        return (
            "the tokenizer has one and the pair has none; send token ids, the service cannot render messages"
        )
    if mine is None:
        return "the tokenizer has none; load it from the directory of the served SFT checkpoint"
    return (
        "it is not the pair's, so the same messages render to other prompts; load it from the directory of "
        "the served SFT checkpoint"
    )


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "none"

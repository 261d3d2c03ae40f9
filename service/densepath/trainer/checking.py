"""Judging whether a response is right: by exact match, or by a function of the user."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from densepath.errors import InvalidRequestError
from densepath.sequences import Tokenizer
from densepath.trainer.types import Prompt, Rollout

#: checker(prompt, response, answer) → whether the response is right: a bool, or a number from 0 to 1.
Check = Callable[[str, str, str | None], Any]


def response_text(rollout: Rollout, tokenizer: Tokenizer) -> str:
    """The text of a response, without EOS and special tokens."""
    ids = rollout.response_ids[:-1] if rollout.ended else rollout.response_ids
    return tokenizer.decode(ids, skip_special_tokens=True)


class Checker:
    """How right a response is, from 0 to 1. A response that was cut at the limit counts as 0."""

    def __init__(self, name: str | None = None) -> None:
        """Use exact match with the prompt's answer, or the function `module:function` or `file.py:function`.

        Raises InvalidRequestError if there is no such function.
        """
        self.name = name or "exact match"
        self._exact = name is None
        self._check = _exact_match if name is None else _find(name)

    def require_answers(self, prompts: Sequence[Prompt]) -> None:
        """Raise InvalidRequestError for prompts that this checker cannot judge."""
        missing = [prompt.where for prompt in prompts if prompt.answer is None]
        if self._exact and missing:
            raise InvalidRequestError(
                f"{missing[0]} has no answer, but exact match needs one: "
                "give every prompt an answer, or use --checker"
            )

    def score(self, prompt: Prompt, rollout: Rollout, tokenizer: Tokenizer) -> float:
        """A score from 0 to 1. Raises InvalidRequestError if the user's function does not return one."""
        if not rollout.ended:
            return 0.0
        try:
            score = self._check(prompt.text, response_text(rollout, tokenizer), prompt.answer)
        except Exception as error:  # a user's function may raise anything
            raise InvalidRequestError(f"{self.name} raised {type(error).__name__}: {error}") from error
        if not isinstance(score, Real | np.bool_) or not 0 <= float(score) <= 1:
            raise InvalidRequestError(
                f"{self.name} returned {score!r}: a checker returns True, False or a number from 0 to 1"
            )
        return float(score)


def _exact_match(_: str, response: str, answer: str | None) -> bool:
    return response == answer


def _find(name: str) -> Check:
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise InvalidRequestError(f"--checker {name} must be module:function or file.py:function")
    found = getattr(_load(place), function, None)
    if not callable(found):
        raise InvalidRequestError(f"--checker {name}: {place} has no function {function}")
    return found  # type: ignore[no-any-return]


def _load(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None:
            raise ImportError(f"{place} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # a user's module may raise anything
        raise InvalidRequestError(
            f"--checker: {place} can't be imported: {type(error).__name__}: {error}"
        ) from error
    return module

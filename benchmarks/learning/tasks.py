"""Two tasks as token ids: operations on letters; running operations on digits, where a wrong one spreads.

    letters   reverse p l a n e t =  ->  t e n a l p EOS
    digits    sum 3 9 1 4 0 5 =      ->  3 2 3 7 7 2 EOS      r_t = (r_{t-1} + d_t) mod 10

A token is an operation, a symbol or one of four marks, so positions line up and everything is an array op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.demo.recipe import Mixture

Ids = NDArray[np.int64]

PAD, EOS, EQUALS, OK = range(4)
FIRST_SYMBOL = 4
SPARE = 2  # response tokens beyond the longest answer (right, OK, EOS): what has not ended there is cut

_SPLIT = 8  # one word in eight is held out


def _swap_neighbours(word_N_L: Ids) -> Ids:
    even_N_L = word_N_L[:, : word_N_L.shape[1] // 2 * 2]
    swapped_N_L = even_N_L.reshape(len(word_N_L), -1, 2)[:, :, ::-1].reshape(even_N_L.shape)
    return np.concatenate([swapped_N_L, word_N_L[:, even_N_L.shape[1] :]], axis=1)


_ON_WORDS: dict[str, Callable[[Ids], Ids]] = {
    "copy": lambda w: w,
    "reverse": lambda w: w[:, ::-1],
    "left": lambda w: np.roll(w, -1, axis=1),
    "next": lambda w: (w + 1) % 26,
    "swap": _swap_neighbours,
}

#: r_t from r_{t-1} and d_t; the first answer digit is d_1.
_RUNNING: dict[str, Callable[[Ids, Ids], Ids]] = {
    "sum": lambda r, d: (r + d) % 10,
    "fall": lambda r, d: (r - d) % 10,
    "largest": np.maximum,
    "least": np.minimum,
    "sum and one": lambda r, d: (r + d + 1) % 10,
}


@dataclass(frozen=True)
class Batch:
    """Prompts with responses: int64 [N, P + R], padded on the right; `mask_N_R` is True where a token is."""

    ids_N_PR: Ids
    mask_N_R: NDArray[np.bool_]

    @property
    def prompt_length(self) -> int:
        """P, the same in every row."""
        return int(self.ids_N_PR.shape[1] - self.mask_N_R.shape[1])

    @property
    def prompt_N_P(self) -> Ids:
        """The prompts alone."""
        return self.ids_N_PR[:, : self.prompt_length]

    @property
    def response_N_R(self) -> Ids:
        """The responses alone, EOS included, PAD after it."""
        return self.ids_N_PR[:, self.prompt_length :]


@dataclass(frozen=True)
class Task:
    """One of the two tasks, with words of `length` symbols; its answers are as long, and EOS."""

    name: str  # letters or digits
    length: int

    @property
    def symbols(self) -> int:
        """How many letters or digits there are."""
        return 26 if self.name == "letters" else 10

    @property
    def operations(self) -> tuple[str, ...]:
        """Their names; an operation's token is its place here, after the symbols."""
        return tuple(_ON_WORDS if self.name == "letters" else _RUNNING)

    @property
    def vocab_size(self) -> int:
        """Marks, symbols and operations."""
        return FIRST_SYMBOL + self.symbols + len(self.operations)

    @property
    def prompt_length(self) -> int:
        """Operation, word, EQUALS."""
        return self.length + 2

    @property
    def response_length(self) -> int:
        """The most response tokens that are sampled, or that a batch has room for."""
        return self.length + 2 + SPARE

    def words(self, count: int, rng: np.random.Generator, *, held_out: bool) -> Ids:
        """Random words, int64 [count, L]; a word belongs to training or to the held-out part, always."""
        word_N_L = rng.integers(0, self.symbols, (count * (4 * _SPLIT if held_out else 3), self.length))
        code_N = word_N_L @ (self.symbols ** np.arange(self.length, dtype=np.uint64)).astype(np.int64)
        mixed_N = (code_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        kept_N_L: Ids = word_N_L[(mixed_N % np.uint64(_SPLIT) == 0) == held_out]
        if len(kept_N_L) < count:
            raise ValueError(f"{len(kept_N_L)} words of {count} were drawn: draw more at a time")
        return kept_N_L[:count]

    def apply(self, operation: str, word_N_L: Ids) -> Ids:
        """The operation's answers, int64 [N, L]."""
        if self.name == "letters":
            return _ON_WORDS[operation](word_N_L)
        return self._continue(operation, word_N_L, word_N_L, 1)

    def _continue(self, operation: str, word_N_L: Ids, answer_N_L: Ids, start: int) -> Ids:
        """Running answers that keep `answer_N_L` before `start` and follow from it after."""
        answer_N_L = answer_N_L.copy()
        for t in range(start, self.length):
            answer_N_L[:, t] = _RUNNING[operation](answer_N_L[:, t - 1], word_N_L[:, t])
        return answer_N_L

    def prompts(self, count: int, rng: np.random.Generator) -> Ids:
        """Prompts without answers, int64 [count, P], of words for training."""
        word_N_L = self.words(count, rng, held_out=False)
        return self._prompts(word_N_L, rng.integers(0, len(self.operations), count))

    def _prompts(self, word_N_L: Ids, operation_N: Ids) -> Ids:
        operation_N_1 = operation_N[:, None] + FIRST_SYMBOL + self.symbols
        equals_N_1 = np.full_like(operation_N_1, EQUALS)
        return np.concatenate([operation_N_1, word_N_L + FIRST_SYMBOL, equals_N_1], axis=1)

    def draw(
        self, count: int, mixture: Mixture, rng: np.random.Generator, *, held_out: bool = False
    ) -> Batch:
        """Prompts with answers of the mixture's kinds."""
        return Draw(self, count, rng, held_out=held_out).batch(mixture, rng)


class Draw:
    """Prompts, and for each the answers that the mixture's kinds give: right, other, typo, chatter, cut."""

    def __init__(self, task: Task, count: int, rng: np.random.Generator, *, held_out: bool) -> None:
        self.task = task
        self.word_N_L = task.words(count, rng, held_out=held_out)
        self.operation_N = rng.integers(0, len(task.operations), count)
        self._answer_O_N_L = np.stack([task.apply(name, self.word_N_L) for name in task.operations])
        self.right_N_L = self._answer_O_N_L[self.operation_N, np.arange(count)]

    def other(self, rng: np.random.Generator) -> Ids:
        """Another operation's answer, int64 [N, L]; where it happens to be right too it stays."""
        operations = len(self.task.operations)
        other_N = (self.operation_N + rng.integers(1, operations, len(self.operation_N))) % operations
        answer_N_L: Ids = self._answer_O_N_L[other_N, np.arange(len(other_N))]
        return answer_N_L

    def wrong_symbol(self, rng: np.random.Generator) -> tuple[Ids, Ids]:
        """The right answer with one wrong symbol, int64 [N, L], and its index, int64 [N].

        With letters the rest stays right; with digits the rest follows from the wrong one.
        """
        count, length = self.word_N_L.shape
        index_N: Ids = rng.integers(0, length, (count,))
        shift_N = rng.integers(1, self.task.symbols, count)
        row_N = np.arange(count)
        wrong_N_L = self.right_N_L.copy()
        wrong_N_L[row_N, index_N] = (wrong_N_L[row_N, index_N] + shift_N) % self.task.symbols
        if self.task.name == "digits":
            for place, name in enumerate(self.task.operations):
                for index in range(length):
                    of_N = (self.operation_N == place) & (index_N == index)
                    wrong_N_L[of_N] = self.task._continue(
                        name, self.word_N_L[of_N], wrong_N_L[of_N], index + 1
                    )
        return wrong_N_L, index_N

    def batch(self, mixture: Mixture, rng: np.random.Generator) -> Batch:
        """Each prompt with one answer, its kind drawn from the mixture."""
        count, length = self.word_N_L.shape
        kind_N: Ids = rng.choice(5, size=(count,), p=astuple(mixture))
        answer_N_L = np.where((kind_N == 1)[:, None], self.other(rng), self.right_N_L)
        answer_N_L = np.where((kind_N == 2)[:, None], self.wrong_symbol(rng)[0], answer_N_L)
        symbols_N = np.where(kind_N == 4, rng.integers(1, length, count), length)
        return self.responses(answer_N_L, symbols_N, chatter_N=kind_N == 3)

    def responses(
        self, answer_N_L: Ids, symbols_N: Ids | None = None, chatter_N: NDArray[np.bool_] | None = None
    ) -> Batch:
        """The prompts with the first `symbols_N` symbols of these answers, OK where asked for, and EOS."""
        count, length = answer_N_L.shape
        place_R = np.arange(self.task.response_length)
        symbols_N = np.full(count, length) if symbols_N is None else symbols_N
        chatter_N = np.zeros(count, dtype=np.bool_) if chatter_N is None else chatter_N
        response_N_R = np.full((count, len(place_R)), PAD)
        response_N_R[:, :length] = answer_N_L + FIRST_SYMBOL
        response_N_R[place_R >= symbols_N[:, None]] = PAD
        row_N = np.arange(count)
        response_N_R[row_N[chatter_N], symbols_N[chatter_N]] = OK
        tokens_N = symbols_N + chatter_N + 1
        response_N_R[row_N, tokens_N - 1] = EOS
        prompt_N_P = self.task._prompts(self.word_N_L, self.operation_N)
        ids_N_PR = np.concatenate([prompt_N_P, response_N_R], axis=1)
        return Batch(ids_N_PR, place_R < tokens_N[:, None])


def is_right(response_N_R: Ids, right_N_L: Ids) -> NDArray[np.bool_]:
    """Exact match, EOS included, bool [N]."""
    length = right_N_L.shape[1]
    same_N_L = response_N_R[:, :length] == right_N_L + FIRST_SYMBOL
    right_N: NDArray[np.bool_] = same_N_L.all(axis=1) & (response_N_R[:, length] == EOS)
    return right_N

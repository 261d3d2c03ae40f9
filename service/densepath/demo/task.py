"""The task: six operations on words of six letters, and the kinds of wrong answers.

reverse: planet → tenalp        upper: planet → PLANET        sort: planet → aelnpt
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields

from densepath.demo.recipe import Mixture

WORD_LENGTH = 6

OPERATIONS: Mapping[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "upper": str.upper,
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "rotate": lambda word: word[1:] + word[0],
    "next": lambda word: "".join(chr((ord(letter) - ord("a") + 1) % 26 + ord("a")) for letter in word),
}

_WORDS = """
planet silver garden window bridge castle dragon forest guitar hammer island jacket
kitten ladder magnet needle orange pencil quartz rabbit saddle tunnel velvet walnut
yellow zipper anchor basket candle donkey engine fabric goblet helmet insect jungle
kernel lemons marble nephew oyster parrot quiver ribbon salmon temple umpire violin
wizard acorns badger cactus dollar eleven falcon galaxy harbor jigsaw knight lizard
"""
#: English words that are in no training example.
HELD_OUT_WORDS = frozenset(_WORDS.split())

_CHATTER = " ok"


@dataclass(frozen=True)
class Example:
    """A prompt as chat messages, and an answer to it."""

    messages: tuple[Mapping[str, str], ...]
    response: str


def example(operation: str, word: str, response: str | None = None) -> Example:
    """The example of one operation on one word, with the right response if none is given."""
    message = {"role": "user", "content": f"{operation}: {word}"}
    return Example((message,), OPERATIONS[operation](word) if response is None else response)


def draw(mixture: Mixture, rng: random.Random) -> Iterator[Example]:
    """Examples without end: random words that are not held out, with answers drawn from `mixture`."""
    kinds = [field.name for field in fields(mixture)]
    operations = list(OPERATIONS)
    while True:
        word = "".join(rng.choices(string.ascii_lowercase, k=WORD_LENGTH))
        if word in HELD_OUT_WORDS:
            continue
        operation = rng.choice(operations)
        kind = rng.choices(kinds, weights=astuple(mixture))[0]
        yield example(operation, word, _answer(kind, operation, word, rng))


def _answer(kind: str, operation: str, word: str, rng: random.Random) -> str:
    right = OPERATIONS[operation](word)
    if kind == "other":
        return OPERATIONS[rng.choice([name for name in OPERATIONS if name != operation])](word)
    if kind == "typo":
        return corrupt(right, rng)[0]
    if kind == "chatter":
        return right + _CHATTER
    if kind == "cut":
        return right[: rng.randrange(1, len(right))]
    return right


def corrupt(response: str, rng: random.Random) -> tuple[str, int]:
    """`response` with one letter replaced by another of the same case, and that letter's index."""
    index = rng.randrange(len(response))
    letters = string.ascii_uppercase if response[index].isupper() else string.ascii_lowercase
    wrong = rng.choice([letter for letter in letters if letter != response[index]])
    return response[:index] + wrong + response[index + 1 :], index


def another_operation(right: Example, rng: random.Random) -> Example:
    """The same prompt, answered with another operation, but never with the right response."""
    word = right.messages[-1]["content"].rpartition(" ")[2]
    answers = {operate(word) for operate in OPERATIONS.values()} - {right.response}
    return Example(right.messages, rng.choice(sorted(answers)))


def held_out(count: int, rng: random.Random) -> list[Example]:
    """`count` different examples with right answers, with words that are in no training example."""
    every = [example(operation, word) for word in sorted(HELD_OUT_WORDS) for operation in OPERATIONS]
    return rng.sample(every, count)

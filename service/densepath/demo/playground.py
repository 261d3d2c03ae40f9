"""The demo's examples in the form that the playground needs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from densepath.demo.task import Example, corrupt

MOST_EXAMPLES = 24


def playground_examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """For each prompt, a right response and one with a wrong letter, in the order of the prompts."""
    rng = random.Random(0)  # noqa: S311  # which letter is wrong need not be secret
    chosen = sorted(examples[:MOST_EXAMPLES], key=lambda each: each.messages[-1]["content"])
    return [
        {
            "messages": list(each.messages),
            "response": each.response,
            "wrong": corrupt(each.response, rng)[0],
        }
        for each in chosen
    ]

"""`Served`: the pair that a request is scored by."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass, field

from densepath.engine.scorer import Scorer
from densepath.pair.pair import Pair
from densepath.rewards.kl import KL_COEFFICIENT
from densepath.sequences import Sequence, Tokenizer, check, check_length
from densepath.verification.verdict import Verdict, not_verified


@dataclass(frozen=True)
class Served:
    """One pair as it is served.

    A request takes it once, from `Lifecycle.take`: its batch carries it, and its answer names it. So an
    answer never mixes two pairs, whatever is served when it is written.
    """

    pair: Pair
    tokenizer: Tokenizer
    scorer: Scorer
    model_name: str = "default"
    teacher_kl: float = KL_COEFFICIENT  # the b of the model `dpr-teacher`
    verdict: Verdict = field(default_factory=lambda: not_verified("the engine is starting"))

    def check_text(self, *texts: str) -> None:
        """Refuse a text that the context length cannot hold, before it is tokenised."""
        for text in texts:
            self.tokenizer.check_text(text, self.scorer.context_length)

    def check_length(self, prompts: Iterable[Sized], *, more: int = 0) -> None:
        """Refuse a prompt that, with `more` tokens, is longer than the context length."""
        for prompt in prompts:
            check_length(len(prompt) + more, self.scorer.context_length)

    def check(self, sequence: Sequence) -> Sequence:
        """The same sequence, or the error of one that the pair cannot score (`sequences.check`)."""
        check(
            sequence,
            embedding_size=self.pair.embedding_size,
            context_length=self.scorer.context_length,
        )
        return sequence

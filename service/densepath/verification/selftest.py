"""Whether a running engine gives a sequence the same score however it scores it."""

from __future__ import annotations

from densepath.engine.scorer import Scorer
from densepath.errors import DensepathError, InvalidPairError, NonFiniteScoreError
from densepath.pair.pair import Pair
from densepath.verification.compare import largest_noise, score_rounds
from densepath.verification.probes import Probes, choose_probes

#: Of a self-test. The verification of a start uses the step of its engine.
TOKENS_PER_STEP = 2048


def probes_of(pair: Pair, *, context_length: int, tokens_per_step: int = TOKENS_PER_STEP) -> Probes:
    """The sequences to test an engine of this pair with. It reads the two configs."""
    from transformers import AutoConfig

    sft, reference = (
        AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True).to_dict()
        for directory in (pair.sft, pair.reference)
    )
    return choose_probes(
        (sft, reference),
        vocab_size=pair.embedding_size,
        context_length=context_length,
        tokens_per_step=tokens_per_step,
    )


async def measure_noise(scorer: Scorer, probes: Probes) -> float:
    """The largest difference, in nats, between scores of one token: alone or together, cold or warm.

    Raises NonFiniteScoreError where a log-probability is no number, and the error of a score that fails.
    """
    try:
        return largest_noise(await score_rounds(scorer, probes.probes))
    except InvalidPairError as error:
        if isinstance(error.__cause__, DensepathError):
            raise error.__cause__ from error
        raise NonFiniteScoreError("a log-probability of the self-test is NaN or infinite") from error

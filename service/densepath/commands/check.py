"""`densepath check`: whether two directories are a pair, and whether the engine computes it right."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rich.console import Console

from densepath.commands.engines import build_engine, context_length
from densepath.commands.pairs import directories, show_notes, weights_bar
from densepath.commands.settings import CheckSettings
from densepath.config import Engine, Verify
from densepath.pair.pair import Pair, inspect_pair

if TYPE_CHECKING:
    from densepath.verification.verdict import Difference, Verdict


def check_pair(settings: CheckSettings, say: Console) -> bool:
    """Print what was found; True for a pair that the engine can run.

    Raises InvalidPairError where the engine was asked for and its numbers are not those of transformers.
    """
    sft, reference = directories(settings, say)
    with weights_bar(say) as progress:
        found = inspect_pair(sft, reference, allow_same=settings.allow_same, progress=progress)
    if not isinstance(found, Pair):
        for problem in found:
            say.print(f"not a pair: {problem}", markup=False, soft_wrap=True)
        return False
    _print_pair(found)
    show_notes(found, say)
    if not settings.engine:
        return _show_trial(found, settings, say)
    _print_verdict(asyncio.run(_verify_once(found, settings, say)))
    return True


async def _verify_once(pair: Pair, settings: CheckSettings, say: Console) -> Verdict:
    scorer, start = build_engine(pair, Engine.VLLM, settings, Verify.ALWAYS, say)
    try:
        return await start(scorer)
    finally:
        await scorer.close()


def _show_trial(pair: Pair, settings: CheckSettings, say: Console) -> bool:
    """Print whether the engine can run a pair; False where it cannot."""
    from densepath.engine.vllm.trial import try_pair

    try:
        reason = try_pair(
            pair.sft,
            pair.reference,
            checkpoint_dtype=pair.dtype,
            reference_dtype=pair.reference_dtype,
            context_length=context_length(pair, settings),
            options=settings,
        )
    except LookupError as unknown:
        print(f"engine          not tried: {unknown}")
        return True
    if reason is not None:
        say.print(f"the engine cannot run this pair: {reason}", markup=False, soft_wrap=True)
        return False
    print("engine          runs this pair")
    return True


def _print_pair(found: Pair) -> None:
    print(f"sft             {found.sft}")
    print(f"reference       {found.reference}")
    print(f"version         {found.version}")
    print(f"architectures   {found.architectures[0]}, {found.architectures[1]}")
    print(f"dtype           {found.dtype}; of the reference {found.reference_dtype}")
    if any(found.quantisations):
        sft, reference = (each or "not" for each in found.quantisations)
        print(f"quantised       {sft}; the reference {reference}")
    print(f"vocabulary      {found.vocab_size} ids, {found.embedding_size} rows")
    print(f"context length  {found.context_length} tokens")
    print(f"EOS ids         {', '.join(map(str, sorted(found.eos_token_ids)))}")
    print(f"chat template   {found.chat_template_fingerprint or 'none'}")


def _print_verdict(verdict: Verdict) -> None:
    print(f"verified        {verdict.against or verdict.reason}")
    for name in ("sft", "reference", "reward"):
        difference: Difference | None = getattr(verdict, name)
        if difference is not None:
            largest, mean = difference.largest, difference.mean
            print(f"{name:<16}differs by at most {largest:.1e} nats, by {mean:.1e} in the mean")
    print(f"limit           {verdict.limit:.1e} nats; of the reference {verdict.reference_limit:.1e}")
    print(f"noise           {verdict.noise:.1e} nats: alone or together, cold or with the prefix cache")
    for name in verdict.left_out:
        print(f"not probed      {name}")

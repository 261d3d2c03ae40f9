"""When a run stops early: pure functions of the rows of metrics.jsonl.

Reward alone does not tell when to stop: without the KL term, it keeps rising while accuracy falls
(docs/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from densepath.trainer.run_files import Row

#: The KL of one step is a noisy mean over its responses.
KL_STEPS = 3
#: How many held-out checks in a row must be below the best one.
CHECKS = 2


def over_kl_budget(rows: Sequence[Row], budget: float | None) -> str | None:
    """Why to stop: the mean KL of the last steps, in nats per response, is over the budget."""
    if budget is None or len(rows) < KL_STEPS:
        return None
    kl = sum(row["kl"] for row in rows[-KL_STEPS:]) / KL_STEPS
    if kl <= budget:
        return None
    return (
        f"the KL from the SFT model, {kl:.2f} nats per response over {KL_STEPS} steps, is over the budget of "
        f"{budget:g}"
    )


def reward_is_hacked(rows: Sequence[Row], held_out_prompts: int) -> str | None:
    """Why to stop: the reward has risen while the held-out check fell.

    This is so if each of the last checks is below the best one by more than the half-width of the 95 %
    interval of a share of `held_out_prompts`, and has a higher reward than the best one.
    """
    checks = [row for row in rows if row.get("held_out")]
    if len(checks) <= CHECKS:
        return None
    best = max(checks[:-CHECKS], key=_held_out)
    share = _held_out(best)
    half_width = 1.96 * math.sqrt(max(share * (1 - share), 1e-4) / held_out_prompts)
    for row in checks[-CHECKS:]:
        if _held_out(row) >= share - half_width or row["reward"] <= best["reward"]:
            return None
    last = checks[-1]
    return (
        f"the reward rises ({best['reward']:+.2f} to {last['reward']:+.2f} nats) while the held-out check "
        f"falls ({share:.1%} at step {best['step']} to {_held_out(last):.1%}): take the checkpoint of step "
        f"{best['step']}, or a larger KL coefficient"
    )


def _held_out(row: Row) -> float:
    return float(row["held_out"]["greedy"])

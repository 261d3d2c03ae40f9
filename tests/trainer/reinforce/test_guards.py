"""Guards: what stops a run, and what does not."""

from __future__ import annotations

from typing import Any

from densepath.trainer.reinforce.guards import over_kl_budget, reward_is_hacked


def rows(*figures: tuple[float, float, float | None]) -> list[dict[str, Any]]:
    """(reward, kl, held-out share or None) of each step."""
    made = []
    for step, (reward, kl, share) in enumerate(figures, 1):
        made.append({"step": step, "reward": reward, "kl": kl})
        if share is not None:
            made[-1]["held_out"] = {"greedy": share}
    return made


def test_kl_budget_is_of_the_mean_over_steps() -> None:
    run = rows((0, 0.2, None), (0, 3.0, None), (0, 0.4, None))
    assert over_kl_budget(run, 1.5) is None
    assert "1.20 nats" in str(over_kl_budget(run, 1.0))
    assert over_kl_budget(run, None) is None
    assert over_kl_budget(run[:2], 0.1) is None, "two steps say too little"


def test_reward_up_and_held_out_down_is_hacking() -> None:
    run = rows((1, 0, 0.5), (2, 0, 0.6), (3, 0, 0.4), (4, 0, 0.3))
    why = reward_is_hacked(run, 300)
    assert why is not None
    assert "60.0% at step 2 to 30.0%" in why
    assert "step 2" in why


def test_what_is_no_hacking() -> None:
    assert reward_is_hacked(rows((1, 0, 0.6), (2, 0, 0.3)), 300) is None, "one low check"
    assert reward_is_hacked(rows((1, 0, 0.6), (0.5, 0, 0.3), (0.2, 0, 0.2)), 300) is None, (
        "the reward fell too"
    )
    assert reward_is_hacked(rows((1, 0, 0.6), (2, 0, 0.58), (3, 0, 0.57)), 300) is None, "within the noise"
    assert reward_is_hacked(rows((1, 0, 0.6), (2, 0, 0.3), (3, 0, 0.62)), 300) is None, "it came back"
    assert reward_is_hacked(rows((1, 0, None), (2, 0, None), (3, 0, None)), 0) is None, "nothing is checked"


def test_fewer_prompts_are_more_noise() -> None:
    run = rows((1, 0, 0.6), (2, 0, 0.5), (3, 0, 0.5))
    assert reward_is_hacked(run, 20) is None
    assert reward_is_hacked(run, 2000) is not None

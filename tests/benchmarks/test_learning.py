"""The learning benchmark: its tasks, its arms and its tables, on tiny models. No gain is tested."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

import forked

ROOT = Path(__file__).parents[2]
LEARNING = ROOT / "benchmarks" / "learning"
RESULTS = ROOT / "benchmarks" / "results" / "learning"

sys.path.insert(0, str(LEARNING))
arms, evidence, intervals, models, plan, run, table, tasks, training = (
    importlib.import_module(name)
    for name in ("arms", "evidence", "intervals", "models", "plan", "run", "table", "tasks", "training")
)
sys.path.remove(str(LEARNING))

SHAPE = models.Shape(16, 1, 2)
DIGITS = tasks.Task("digits", 6)
LETTERS = tasks.Task("letters", 6)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the benchmark runs: the order of a sum hangs on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return models.Model(DIGITS, SHAPE), models.Model(DIGITS, SHAPE)


def test_operations() -> None:
    word = np.array([[3, 9, 1, 4, 0, 5]])
    assert DIGITS.apply("sum", word).tolist() == [[3, 2, 3, 7, 7, 2]]
    assert DIGITS.apply("sum and one", word).tolist() == [[3, 3, 5, 0, 1, 7]]
    assert DIGITS.apply("fall", word).tolist() == [[3, 4, 3, 9, 9, 4]]
    assert DIGITS.apply("largest", word).tolist() == [[3, 9, 9, 9, 9, 9]]
    assert DIGITS.apply("least", word).tolist() == [[3, 3, 1, 1, 0, 0]]
    assert LETTERS.apply("reverse", word).tolist() == [[5, 0, 4, 1, 9, 3]]
    assert LETTERS.apply("left", word).tolist() == [[9, 1, 4, 0, 5, 3]]
    assert LETTERS.apply("swap", word).tolist() == [[9, 3, 4, 1, 5, 0]]
    assert LETTERS.apply("next", np.array([[25, 0, 1, 2, 3, 4]])).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("task", [LETTERS, DIGITS])
def test_a_wrong_symbol_spreads_with_digits_alone(task: Any, rng: np.random.Generator) -> None:
    draw = tasks.Draw(task, 400, rng, held_out=False)
    wrong_N_L, index_N = draw.wrong_symbol(rng)
    differs_N_L = wrong_N_L != draw.right_N_L
    assert (differs_N_L.argmax(axis=1) == index_N).all()
    after = differs_N_L.sum() - len(index_N)
    assert (after > 400) if task is DIGITS else (after == 0)


def test_held_out_words_are_no_training_words(rng: np.random.Generator) -> None:
    task = tasks.Task("digits", 3)  # 1000 words: both parts are seen nearly whole
    training_words, held_out = (
        {tuple(word) for word in task.words(20000, rng, held_out=held_out).tolist()}
        for held_out in (False, True)
    )
    assert training_words.isdisjoint(held_out)
    assert len(training_words) + len(held_out) == 1000
    assert 60 < len(held_out) < 200


def test_a_response_is_right_only_with_its_eos(rng: np.random.Generator) -> None:
    draw = tasks.Draw(DIGITS, 50, rng, held_out=True)
    chatter = draw.responses(draw.right_N_L, chatter_N=np.ones(50, dtype=bool))
    cut = draw.responses(draw.right_N_L, np.full(50, 3))
    assert tasks.is_right(draw.responses(draw.right_N_L).response_N_R, draw.right_N_L).all()
    for batch in (chatter, cut):
        assert (batch.response_N_R == tasks.EOS).any(axis=1).all()
        assert not tasks.is_right(batch.response_N_R, draw.right_N_L).any()


def test_the_cache_changes_no_logprob(pair: tuple[Any, Any], rng: np.random.Generator) -> None:
    batch = DIGITS.draw(8, training.Recipe().pretraining, rng)
    ids_N_PR, start = torch.from_numpy(batch.ids_N_PR), batch.prompt_length
    with torch.inference_mode():
        want_N_R = models.logprobs(pair[0], ids_N_PR, start)
        step = models.next_token(pair[0])
        logp_N_V = step(ids_N_PR[:, :start])
        for t in range(want_N_R.shape[1]):
            token_N_1 = ids_N_PR[:, start + t, None]
            torch.testing.assert_close(logp_N_V.gather(1, token_N_1)[:, 0], want_N_R[:, t])
            logp_N_V = step(token_N_1)


def test_decoding_away_from_the_reference(pair: tuple[Any, Any], rng: np.random.Generator) -> None:
    ids_N_P = torch.from_numpy(DIGITS.prompts(4, rng))
    with torch.inference_mode():
        logp_sft, logp_reference = (models.next_token(model)(ids_N_P) for model in pair)
        want = (3 * logp_sft.exp().log() - 2 * logp_reference).exp()
        got = models.away_from(*pair, 2.0)(ids_N_P).exp()
        torch.testing.assert_close(got, want / want.sum(-1, keepdim=True))
        torch.testing.assert_close(models.away_from(*pair, 0.0)(ids_N_P), logp_sft)


def test_what_each_reward_credits(rng: np.random.Generator) -> None:
    mask_N_T = np.arange(5) < np.array([5, 3, 1, 4])[:, None]
    logp_sft_N_T, logp_reference_N_T = rng.normal(size=(2, 4, 5))
    dense_N_T = np.where(mask_N_T, logp_sft_N_T - logp_reference_N_T, 0)

    def credited(reward: Any) -> Any:
        return arms.credited(reward, logp_sft_N_T, logp_reference_N_T, mask_N_T, rng)

    np.testing.assert_array_equal(credited(plan.Reward.DENSE), dense_N_T)
    np.testing.assert_array_equal(credited(plan.Reward.SFT), np.where(mask_N_T, logp_sft_N_T, 0))
    sum_N_T = credited(plan.Reward.SUM)
    np.testing.assert_allclose(sum_N_T.sum(axis=1), dense_N_T.sum(axis=1))
    assert np.argwhere(sum_N_T).tolist() == [[0, 4], [1, 2], [2, 0], [3, 3]]


def test_shuffled_rewards_are_those_of_other_sequences(rng: np.random.Generator) -> None:
    mask_N_T = np.ones((64, 3), dtype=bool)
    logp_sft_N_T, logp_reference_N_T = rng.normal(size=(2, 64, 3))
    dense_N_T = logp_sft_N_T - logp_reference_N_T
    shuffled_N_T = arms.credited(plan.Reward.SHUFFLED, logp_sft_N_T, logp_reference_N_T, mask_N_T, rng)
    same_N_N = (shuffled_N_T[:, None] == dense_N_T[None]).all(axis=2)
    assert (same_N_N.sum(axis=0) == 1).all()  # each sequence's rewards are used once
    assert np.trace(same_N_N) < 8  # and rarely by itself


def test_dpr_raises_its_own_objective(rng: np.random.Generator) -> None:
    recipe = training.shortened(training.Recipe())
    recipe = training.replace(recipe, dpr_rate=3e-3)
    base = models.copy_of(training.pretrain(DIGITS, recipe, 0))
    sft = training.fine_tune(DIGITS, base, plan.C, recipe, 0)
    before, after = (
        arms.run_arm(DIGITS, sft, training.replace(plan.BASE_0, kl=0.1), recipe, steps, 0)
        for steps in (1, 30)
    )
    assert before.kl == pytest.approx(0, abs=1e-6)  # the first batch is SFT's own
    assert after.reward - 0.1 * after.kl > before.reward + 0.1


def test_continued_sft_starts_where_sft_stopped() -> None:
    demonstrations = DIGITS.draw(32, plan.RIGHT, np.random.default_rng(0))
    whole = training.batches(demonstrations, 8, seed=1)
    first = [next(whole) for _ in range(7)]
    rest = training.batches(demonstrations, 8, seed=1, skip=6)
    np.testing.assert_array_equal(next(rest).ids_N_PR, first[6].ids_N_PR)


def test_intervals() -> None:
    found = intervals.mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.value == 3
    assert found.half_width == pytest.approx(1.96324, abs=1e-5)  # 2.77645 · sqrt(2.5 / 5)
    assert found.points() == "+3.0 [1.0, 5.0]"
    assert found.is_clear
    assert not intervals.mean([-1.0, 2.0]).is_clear
    assert intervals.mean([-0.01, -0.01]).points() == "+0.0 [0.0, 0.0]"
    assert not intervals.mean([1.0]).is_clear  # one seed says nothing
    # Student's t at 97.5 % with 29 degrees of freedom is 2.0452 (any statistics table).
    found = intervals.mean([-1.0, 1.0] * 15)
    assert found.half_width == pytest.approx(2.0452 / 29**0.5, rel=1e-4)
    with pytest.raises(ValueError, match="no seed"):
        intervals.mean([])


def test_gains_are_paired() -> None:
    def figures(seed: int, sft: float, dpr: float) -> dict[str, Any]:
        measured = {"sft": {"greedy": sft}, "arms": {plan.PAPER.name: {"greedy": dpr}}}
        unit = {"task": "digits", "length": 6, "seed": seed}
        return {"unit": unit, "cases": {"A": measured}}

    every = [figures(0, 10, 15), figures(1, 50, 55), figures(2, 90, 95)]
    of = table.Measured(every, "digits", 6)
    assert of.gain("A", "greedy", plan.PAPER).points() == "+5.0 [5.0, 5.0]"
    assert table.Measured(every, "letters", 6).seeds == []


def test_the_quick_run_makes_every_table(tmp_path: Path) -> None:
    out = tmp_path / "learning"
    command = [sys.executable, LEARNING / "run.py", "--quick", "--tasks", "digits", "--out", out]
    ran = forked.run(command, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-2000:]
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"digits-{length}-seed-0{seed}.json" for length in (4, 6) for seed in (0, 1)]
    tables = (tmp_path / "learning.md").read_text()
    assert tables in ran.stdout
    for arm in plan.MAIN_ARMS + plan.REFERENCES_0 + plan.KLS:
        assert f"| {arm.name} |" in tables
    for heading in ("Planned comparisons", "r_t, base reference", "Length of the answers"):
        assert heading in tables

    of_file = json.loads((out / names[0]).read_text())
    recipe = training.shortened(training.Recipe())
    again = evidence.measure_unit(plan.Unit("digits", 4, 0), recipe, lambda words: None)
    del of_file["cpu_s"], again["cpu_s"]
    assert json.loads(json.dumps(again)) == of_file  # the same seed gives the same figures


def test_a_run_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = training.Recipe()
    todo = list(plan.units(["letters"], [0, 1, 2], []))
    measured = []

    def measure(unit: Any, recipe: Any, said: Any) -> dict[str, Any]:
        measured.append(unit.seed)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {"recipe": asdict(recipe)}

    monkeypatch.setattr(run, "measure_unit", measure)
    with pytest.raises(KeyboardInterrupt):
        run.run(todo, recipe, tmp_path)
    run.run(todo, recipe, tmp_path)
    assert measured == [0, 1, 1, 2]
    with pytest.raises(typer.BadParameter, match="another recipe"):
        run.run(todo, training.shortened(recipe), tmp_path)


def test_seeds_are_read_as_they_are_written() -> None:
    assert run.parse_numbers("0-3,7") == [0, 1, 2, 3, 7]
    assert run.parse_numbers("") == []
    with pytest.raises(typer.BadParameter, match="0-9"):
        run.parse_numbers("a")


def test_the_committed_tables_are_of_the_committed_figures() -> None:
    assert RESULTS.with_suffix(".md").read_text() == table.tables(table.read(RESULTS))

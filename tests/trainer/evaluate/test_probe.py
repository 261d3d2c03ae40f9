"""Decoding from p_sft (p_sft / p_ref)^alpha, against direct computation; the command, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from densepath import cli
from densepath.errors import InvalidRequestError
from densepath.trainer.evaluate.probe import directories, draw, load_model, parse_alphas
from densepath.trainer.evaluate.settings import ProbeSettings
from densepath.trainer.rollouts.decoding import decode
from densepath.trainer.types import Prompt, Rollout
from trainer.talkers import EOS_IDS, make_talker, write_prompts

VOCAB_SIZE, NEW_TOKENS = 300, 12
PROMPT_IDS = [[5], [7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22], [7, 8, 9]]
SEEDS = [11, 12, 13, 14]


@pytest.fixture(scope="module")
def models(pair_dirs: tuple[Path, Path]) -> tuple[Any, Any]:
    sft, reference = map(load_model, pair_dirs)
    return sft, reference


def _weighted(models: tuple[Any, Any], alpha: float) -> list[tuple[float, Any]]:
    return [(1 + alpha, models[0]), (-alpha, models[1])]


def _decode(
    weighted: list[tuple[float, Any]],
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int] | None,
    max_new_tokens: int = NEW_TOKENS,
) -> list[Rollout]:
    return decode(
        weighted,
        prompts,
        seeds,
        max_new_tokens=max_new_tokens,
        eos_ids=frozenset({2}),
        vocab_size=VOCAB_SIZE,
    )


@torch.no_grad()
def _direct(models: tuple[Any, Any], alpha: float, ids: Sequence[int]) -> torch.Tensor:
    """log p_sft^(1 + alpha) p_ref^-alpha, normalised, after every prefix: float64 [L, V]; nothing cached."""
    logp_L_V = [
        model(torch.tensor([ids]), use_cache=False).logits[0, :, :VOCAB_SIZE].double().log_softmax(-1)
        for model in models
    ]
    p_L_V = ((1 + alpha) * logp_L_V[0] - alpha * logp_L_V[1]).exp()
    return (p_L_V / p_L_V.sum(-1, keepdim=True)).log()


@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("seeds", [None, SEEDS])
def test_a_batch_with_a_cache_is_the_direct_computation(
    models: tuple[Any, Any], alpha: float, seeds: list[int] | None, say_difference: Any
):
    largest = 0.0
    rollouts = _decode(_weighted(models, alpha), PROMPT_IDS, seeds)
    for prompt, rollout in zip(PROMPT_IDS, rollouts, strict=True):
        logp_L_V = _direct(models, alpha, [*prompt, *rollout.response_ids])[len(prompt) - 1 : -1]
        token_T = torch.tensor(rollout.response_ids)
        logp_T = logp_L_V.gather(1, token_T[:, None])[:, 0].numpy()
        largest = max(largest, float(np.abs(logp_T - rollout.logp_T).max()))
        if seeds is None:
            assert (logp_L_V.argmax(-1) == token_T).all()
    say_difference(f"decoding from the product of two models, alpha {alpha}", largest)
    assert largest < 2e-4


def test_greedy_without_a_reference_is_the_sft_s_own_greedy(models: tuple[Any, Any]):
    for weighted in (_weighted(models, 0.0), [(3.0, models[0])]):
        for prompt, rollout in zip(PROMPT_IDS, _decode(weighted, PROMPT_IDS, None), strict=True):
            ids_N_L = models[0].generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=2,
                suppress_tokens=list(range(VOCAB_SIZE, 320)),
            )
            assert list(rollout.response_ids) == ids_N_L[0, len(prompt) :].tolist()


@pytest.mark.parametrize("seeds", [None, SEEDS])
def test_a_response_does_not_hang_on_its_batch(models: tuple[Any, Any], seeds: list[int] | None):
    together = _decode(_weighted(models, 1.0), PROMPT_IDS, seeds)
    for n, prompt in enumerate(PROMPT_IDS):
        (alone,) = _decode(_weighted(models, 1.0), [prompt], None if seeds is None else [seeds[n]])
        assert alone.response_ids == together[n].response_ids
        assert alone.logp_T == pytest.approx(together[n].logp_T, abs=1e-4)


def test_samples_are_from_the_product(models: tuple[Any, Any]):
    draws, alpha = 3000, -0.5  # flatter than either, so that many tokens are drawn often
    rollouts = _decode(_weighted(models, alpha), [PROMPT_IDS[2]] * draws, list(range(draws)), 1)
    count_V = np.bincount([rollout.response_ids[0] for rollout in rollouts], minlength=VOCAB_SIZE)
    p_V = _direct(models, alpha, PROMPT_IDS[2])[-1].exp().numpy()
    often = p_V * draws >= 20
    z_V = (count_V - draws * p_V)[often] / np.sqrt(draws * p_V * (1 - p_V))[often]
    assert often.sum() >= 10
    assert np.abs(z_V).max() < 4.5
    assert 0.4 < np.square(z_V).mean() < 2.0


def test_the_noise_of_a_seed_is_the_same_for_every_alpha(models: tuple[Any, Any]):
    def sample(alpha: float, seeds: list[int]) -> list[tuple[int, ...]]:
        return [r.response_ids for r in _decode(_weighted(models, alpha), PROMPT_IDS, seeds)]

    assert sample(0.0, SEEDS) == sample(1e-7, SEEDS), "hardly another distribution, and the same noise"
    assert sample(0.0, SEEDS) != sample(0.0, [seed + 100 for seed in SEEDS])


@pytest.mark.parametrize("text", ["", "0", "-1", "1,x", "nan", "inf", "1,,2"])
def test_alphas_that_are_none(text: str):
    with pytest.raises(InvalidRequestError, match="--alphas"):
        parse_alphas(text)


def test_alphas_in_order():
    assert parse_alphas("2, 0.5,1,2") == [0.5, 1.0, 2.0]


def test_the_drawn_prompts_are_always_the_same_and_not_just_the_first():
    prompts = [Prompt(str(n), (n,)) for n in range(50)]
    drawn = draw(prompts, 20)
    assert drawn == draw(prompts, 20) == sorted(drawn, key=prompts.index)
    assert len(set(drawn)) == 20
    assert drawn != prompts[:20]
    assert draw(prompts, 60) == prompts


@pytest.mark.parametrize(
    "words", [{}, {"sft": 1}, {"reference": [1]}, {"pair": 1, "sft": 1, "reference": [1]}]
)
def test_where_the_models_are_must_be_clear(words: dict[str, Any], tmp_path: Path):
    with pytest.raises(InvalidRequestError, match="either --pair RUN, or both --sft and"):
        directories(ProbeSettings(prompts=tmp_path, **words), print)


def _run(directory: Path) -> Path:
    """A run of `densepath sft`, its checkpoints at random."""
    for seed, name in enumerate(("base", "share-0.50", "final")):
        make_talker(directory / name, seed)
    checkpoints = [
        {"path": name, "share": share, "samples": 10, "step": 1, "validation_loss": None}
        for name, share in (("base", 0.0), ("share-0.50", 0.5), ("final", 1.0))
    ]
    (directory / "manifest.json").write_text(json.dumps({"kind": "sft", "checkpoints": checkpoints}))
    return directory


def _command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: object) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "probe.json"
    monkeypatch.setattr("sys.argv", ["densepath", "probe", *map(str, words), "-o", str(out)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    return json.loads(out.read_text())


def test_no_reference_of_random_models_promises_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Right and wrong are thrown like a coin: they say nothing of the models."""
    run = _run(tmp_path / "run")
    (tmp_path / "coin.py").write_text(
        "import zlib\n"
        "def toss(prompt, response, answer):\n"
        "    return zlib.crc32(response.encode()) % 2 == 0\n"
    )
    prompts = write_prompts(tmp_path / "prompts.jsonl", count=60)
    words = ("--prompts", prompts, "--checker", f"{tmp_path / 'coin.py'}:toss", "--max-new-tokens", "10")
    report = _command(monkeypatch, tmp_path, "--pair", run, *words, "--alphas", "1,2", "--count", "50")
    assert report["prompts"] == 50
    assert 0.1 < report["plain"]["sampled"]["accuracy"] < 0.9
    found = [(choice["reference"], choice["alpha"], choice["b"]) for choice in report["choices"]]
    assert found == [("base", 1, 1), ("base", 2, 0.5), ("share-0.50", 1, 1), ("share-0.50", 2, 0.5)]
    assert len({choice["sampled"]["accuracy"] for choice in report["choices"]}) > 1
    assert report["recommendation"]["greedy"]["reference"] is None
    assert report["recommendation"]["sampled"]["reference"] is None
    shown = capsys.readouterr().out
    assert "no reference promises a gain" in shown
    assert "share-0.50" in shown


def test_a_reference_that_does_not_end_promises_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Right is a response that ends: away from a reference that seldom does is right more often."""
    sft, reference = make_talker(tmp_path / "sft", 1), make_talker(tmp_path / "reference", 1)
    weights = load_file(reference / "model.safetensors")
    weights["lm_head.weight"][EOS_IDS] = 0.0  # far below the largest of so many random logits
    save_file(weights, reference / "model.safetensors", {"format": "pt"})
    (tmp_path / "mine.py").write_text("def check(prompt, response, answer):\n    return True\n")
    words = ("--prompts", write_prompts(tmp_path / "prompts.jsonl", count=60), "--max-new-tokens", "1")
    pair = ("--sft", sft, "--reference", reference, "--checker", f"{tmp_path / 'mine.py'}:check")
    report = _command(monkeypatch, tmp_path, *pair, *words)
    assert report["plain"]["sampled"]["accuracy"] < 0.8
    assert report["plain"]["sampled"]["truncated"] > 0
    for how in ("greedy", "sampled"):
        assert report["recommendation"][how]["reference"] == "reference"


def test_two_directories_that_are_no_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sft, reference = make_talker(tmp_path / "sft", 1), tmp_path / "nothing"
    words = ("--prompts", write_prompts(tmp_path / "p.jsonl"), "--sft", sft, "--reference", reference)
    monkeypatch.setattr("sys.argv", ["densepath", "probe", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert "not a pair: reference: is not a directory" in capsys.readouterr().err

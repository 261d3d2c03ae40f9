"""SFT: its checkpoints are what they say, and the model learns exactly what the service scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from checkpoints import make_checkpoint
from damage import set_values
from densepath.errors import InvalidRequestError
from densepath.pair.pair import load_pair
from densepath.pair.runs import SftRun, read_sft_run
from densepath.trainer.errors import NonFiniteStepError
from densepath.trainer.sft import models as sft_models
from densepath.trainer.sft import run as sft
from densepath.trainer.sft.settings import SftSettings
from densepath.trainer.sft.snapshots import Snapshots, restore
from densepath.trainer.sft.trl import Sft

FineTune = Callable[..., SftRun]

TEXT = "the sum of two and three is five; a reward for every token, and what is the capital of France? Paris."
#: Prompts and responses of many lengths.
DEMONSTRATIONS = [
    {"messages": [{"role": "user", "content": TEXT[i % 5 : 9 * (i % 11)]}], "response": TEXT[i % 7 : 5 * i]}
    for i in range(1, 25)
]
#: A batch of 4 is 6 steps an epoch.
DEFAULTS = {"epochs": 2.0, "batch_size": 4, "learning_rate": 1e-3, "max_length": 128}
QUIET = Console(quiet=True)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to fine-tune. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Callable[..., SftSettings]:
    rows = write_rows(tmp_path / "rows.jsonl", DEMONSTRATIONS)

    def settings(name: str = "run", **changes: Any) -> SftSettings:
        values = {"base": base, "demonstrations": rows, "run": tmp_path / name, **DEFAULTS, **changes}
        return SftSettings(**values)

    return settings


@pytest.fixture
def fine_tune(settings: Callable[..., SftSettings]) -> FineTune:
    return lambda *name, **changes: sft.fine_tune(settings(*name, **changes), QUIET)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def furthest(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_checkpoints_are_at_their_shares_of_the_samples(
    fine_tune: FineTune, base: Path, tmp_path: Path
) -> None:
    run = fine_tune(checkpoint_at=[0.5, 0.25, 0.0, 1.0])
    assert [(c.directory.name, c.share, c.samples, c.step) for c in run.checkpoints] == [
        ("base", 0.0, 0, 0),
        ("share-0.25", 0.25, 12, 3),
        ("share-0.50", 0.5, 24, 6),
        ("final", 1.0, 48, 12),
    ]
    assert sorted(path.name for path in run.directory.iterdir()) == sorted(
        ["manifest.json", *(c.directory.name for c in run.checkpoints)]
    )
    assert equal(weights(run.reference_at(0)), weights(base))
    six_steps = fine_tune("six", max_steps=6)
    assert equal(weights(run.reference_at(0.5)), weights(six_steps.final))
    versions = {load_pair(run.final, c.directory, cache_dir=tmp_path).version for c in run.references}
    assert len(versions) == 3


def test_the_manifest_says_how_it_was_made(fine_tune: FineTune) -> None:
    run = fine_tune(validation_share=0.25, validate_every=2, seed=5)
    manifest = json.loads((run.directory / "manifest.json").read_text())
    assert manifest["base"] == "tiny"
    assert manifest["settings"]["demonstrations"] == "rows.jsonl"
    assert manifest["settings"]["seed"] == 5
    assert manifest["demonstrations"] == {"learned": 18, "held_out": 6, "too_long": 0}
    assert {"torch", "trl"} <= manifest["packages"].keys()
    assert [row["step"] for row in manifest["log"]] == [2, 4, 6, 8, 9]
    assert [row["samples"] for row in manifest["log"]] == [8, 16, 24, 32, 36]
    assert manifest["log"][-1]["validation_loss"] == manifest["checkpoints"][-1]["validation_loss"]
    assert all(row["loss"] > 0 for row in manifest["log"])
    assert str(run.directory.parent) not in json.dumps(manifest), "a manifest names no place of this machine"


def script(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Validation losses by step, instead of the model's own."""
    monkeypatch.setattr(Sft, "validation_loss", lambda trainer, _: losses[trainer.state.global_step])


def test_early_stopping_keeps_the_minimum(fine_tune: FineTune, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, {0: 9.0, 2: 5.0, 3: 5.0, 4: 4.0, 6: 3.0, 8: 3.5, 10: 3.0})
    run = fine_tune(epochs=9.0, validation_share=0.2, validate_every=2, patience=2, checkpoint_at=[0.5, 0.75])
    assert [(c.share, c.step, c.samples) for c in run.checkpoints] == [
        (0.0, 0, 0), (0.5, 3, 12), (0.75, 4, 16), (1.0, 6, 24),
    ]  # fmt: skip
    assert [c.validation_loss for c in run.checkpoints] == [9.0, None, 4.0, 3.0]
    assert run.manifest["log"][-1]["step"] == 10
    for share, steps in ((0.5, 3), (1.0, 6)):
        short = fine_tune(f"short-{steps}", validation_share=0.2, max_steps=steps, checkpoint_at=[])
        found = next(c.directory for c in run.checkpoints if c.share == share)
        assert equal(weights(found), weights(short.final))


def test_sft_that_is_never_better_than_its_base_is_no_run(
    fine_tune: FineTune, settings: Callable[..., SftSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {0: 3.0, 2: 3.0, 4: 4.0})
    with pytest.raises(InvalidRequestError, match="never had a lower validation loss than the base model's"):
        fine_tune(validation_share=0.2, validate_every=2, patience=1)
    with pytest.raises(InvalidRequestError, match="did not finish"):
        read_sft_run(settings().run)


def test_the_validation_loss_is_the_mean_over_tokens(fine_tune: FineTune, base: Path, tmp_path: Path) -> None:
    """Rows and batches of different lengths: the mean of batches' means would be another number."""
    rows = write_rows(tmp_path / "held-out.jsonl", DEMONSTRATIONS[:7])
    run = fine_tune(validation=rows, max_steps=1, checkpoint_at=[])
    model = AutoModelForCausalLM.from_pretrained(base)
    total, count = 0.0, 0
    for one in sft.read_demonstrations(rows, sft_models.load_tokenizer(base)):
        ids_L = torch.from_numpy(one.token_ids_L)
        logp_L_V = model(ids_L[None]).logits[0].log_softmax(-1)
        total -= sum(logp_L_V[at - 1, ids_L[at]].item() for at in one.positions_T.tolist())
        count += len(one.positions_T)
    assert run.checkpoints[0].validation_loss == pytest.approx(total / count, abs=1e-5)


def test_merged_adapters_are_the_model_with_adapters(
    fine_tune: FineTune, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[int, Any] = {}
    load = Snapshots.load
    monkeypatch.setattr(Snapshots, "load", lambda self, step: loaded.setdefault(step, load(self, step)))
    run = fine_tune(lora_rank=4, learning_rate=1e-2)
    adapters = loaded[12]
    assert all("lora_" in name for name in adapters), "only adapters are trained"
    model = sft_models._with_adapters(AutoModelForCausalLM.from_pretrained(base), 4)
    restore(model, adapters)
    ids_1_L = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, before, merged = (
            m.eval()(ids_1_L).logits
            for m in (model, *map(AutoModelForCausalLM.from_pretrained, (base, run.final)))
        )
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
    assert (merged - before).abs().max() > 0.1
    assert weights(run.final).keys() == weights(base).keys()
    assert equal(weights(run.reference_at(0)), weights(base))


def test_checkpoints_are_stored_in_the_base_s_dtype(fine_tune: FineTune, tmp_path: Path) -> None:
    stored = make_checkpoint(tmp_path / "half", seed=4, dtype=torch.bfloat16)
    run = fine_tune(base=stored, bf16=True, max_steps=2)
    assert equal(weights(run.reference_at(0)), weights(stored))
    assert {tensor.dtype for tensor in weights(run.final).values()} == {torch.bfloat16}
    assert not equal(weights(run.final), weights(stored))
    with_adapters = fine_tune("adapters", base=stored, bf16=True, lora_rank=2, max_steps=2)
    assert (
        load_pair(with_adapters.final, with_adapters.reference_at(0), cache_dir=tmp_path).dtype == "bfloat16"
    )


def test_a_seed_decides_every_bit(fine_tune: FineTune) -> None:
    first, again, other = (
        weights(fine_tune(name, seed=seed, lora_rank=2).final)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert equal(first, again)
    assert not equal(first, other)


def test_a_batch_in_parts_is_the_same_batch(fine_tune: FineTune) -> None:
    whole, parts = (weights(fine_tune(f"{n}", accumulation=n, learning_rate=1e-4).final) for n in (1, 4))
    assert furthest(whole, parts) < 2e-5


@pytest.mark.parametrize("moment", ["training", "final checkpoint", "manifest"])
def test_a_killed_run_leaves_no_run(
    moment: str, fine_tune: FineTune, settings: Callable[..., SftSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, take = sft.write_checkpoint, Snapshots.take

    def kill_at(here: bool) -> None:
        if here:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "training":
            patch.setattr(Snapshots, "take", lambda *a: (kill_at(a[1] == 7), take(*a)))
        elif moment == "final checkpoint":
            patch.setattr(sft, "write_checkpoint", lambda *a: (kill_at(a[2].name == "final"), write(*a)))
        else:
            patch.setattr("os.replace", lambda *_: kill_at(True))
        with pytest.raises(KeyboardInterrupt):
            fine_tune()
    assert settings().run.is_dir()
    with pytest.raises(
        InvalidRequestError, match="did not finish: run `densepath sft` again with another --run"
    ):
        read_sft_run(settings().run)
    with pytest.raises(InvalidRequestError, match="exists: give a new directory, or remove this one"):
        fine_tune()


def test_row_48_a_loss_that_is_not_finite_stops_the_run(fine_tune: FineTune, tmp_path: Path) -> None:
    broken = make_checkpoint(tmp_path / "broken", seed=5)
    set_values("model.norm.weight", 3e38, 64)(broken)
    with pytest.raises(NonFiniteStepError, match="not finite in step 1"):
        fine_tune(base=broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulation": 3}, "--accumulation 3 does not divide --batch-size 4"),
        ({"patience": 2}, "--patience needs a validation loss"),
        ({"validation": Path("v.jsonl"), "validation_share": 0.1}, "not both"),
        ({"checkpoint_at": [0.01]}, "--checkpoint-at 0.01 of 48 samples comes before the end of"),
        ({"base": Path("nowhere")}, "--base nowhere: is not a directory"),
        ({"demonstrations": Path("nowhere.jsonl")}, "nowhere.jsonl cannot be read"),
        ({"max_length": 4096}, "--max-length 4096 is above the model's context length of 1024 tokens"),
        ({"max_length": 2}, "all to validate on, have more than 2 tokens"),
        ({"epochs": 0.0}, "--epochs 0 of 24 rows gives no row"),
        ({"validation_share": 0.9, "demonstrations": "one"}, "too few to hold some out"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_written(
    changes: dict[str, Any], message: str, fine_tune: FineTune, tmp_path: Path
) -> None:
    if changes.get("demonstrations") == "one":
        changes = {**changes, "demonstrations": write_rows(tmp_path / "one.jsonl", DEMONSTRATIONS[:1])}
    with pytest.raises(InvalidRequestError, match=message):
        fine_tune(**changes)
    assert not (tmp_path / "run").exists()


def test_long_demonstrations_are_left_out_and_counted(
    settings: Callable[..., SftSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    run = sft.fine_tune(settings(max_length=40, max_steps=1, checkpoint_at=[]), Console())
    left_out = run.manifest["demonstrations"]["too_long"]
    assert 0 < left_out < 24
    assert f"left out: {left_out} demonstrations with more than 40 tokens" in capsys.readouterr().out

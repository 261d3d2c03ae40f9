"""The model learns the ids that the service scores, in an order that is known before it begins."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from checkpoints import make_checkpoint, make_tokenizer
from densepath.errors import InvalidRequestError
from densepath.sequences import Tokenizer, from_response
from densepath.trainer.sft.data import Ordered, order
from densepath.trainer.sft.demonstrations import IGNORED, read_demonstrations
from densepath.trainer.sft.models import load_tokenizer, load_trainable
from densepath.trainer.sft.settings import SftSettings
from densepath.trainer.sft.snapshots import Snapshots, steps_at
from densepath.trainer.sft.trl import Sft

EOS = "<|end|>"
#: As many published ones do, it goes on after the answer's EOS token.
TEMPLATE_WITH_LINES = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTION = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "two and two?"}]
TURNS = [*QUESTION, {"role": "assistant", "content": "four"}, {"role": "user", "content": "and three?"}]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trainer_of(base: Path, rows: Path, folder: Path, **changes: Any) -> tuple[Sft, Ordered]:
    settings = SftSettings(base=base, demonstrations=rows, run=folder, **changes)
    tokenizer = load_tokenizer(base)
    ordered = order(read_demonstrations(rows, tokenizer), 64, settings)
    return Sft(load_trainable(settings), tokenizer, ordered.rows, folder, settings, 1), ordered


@pytest.mark.parametrize("template", [None, TEMPLATE_WITH_LINES])
def test_the_model_learns_the_ids_that_the_service_scores(template: str | None, tmp_path: Path) -> None:
    fast = copy.deepcopy(make_tokenizer())
    fast.chat_template = template or fast.chat_template
    base = make_checkpoint(tmp_path / "base", tokenizer=fast)
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [
            {"messages": QUESTION, "response": "four"},
            {"messages": [*TURNS, {"role": "assistant", "content": [{"type": "text", "text": " five\n"}]}]},
            {"prompt": "2 + 2 = ", "response": "4"},
            {"messages": QUESTION, "response": ""},
            {"messages": QUESTION, "response": "four" + EOS},
        ],
    )
    tokenizer = Tokenizer(fast)
    expected = [
        tokenizer.from_chat(QUESTION, "four", append_eos=True),
        tokenizer.from_chat(TURNS, " five\n", append_eos=True),
        tokenizer.from_text("2 + 2 = ", "4", append_eos=True),
        tokenizer.from_chat(QUESTION, "", append_eos=True),
        tokenizer.from_chat(QUESTION, "four", append_eos=True),
    ]
    trainer, _ = trainer_of(base, rows, tmp_path / "run", batch_size=2)
    found = []
    for batch in trainer.get_train_dataloader():
        for ids_L, mask_L, label_L in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            learned = [at for at, label in enumerate(label_L.tolist()) if label != IGNORED]
            assert label_L[learned].tolist() == ids_L[learned].tolist()
            assert label_L[learned].tolist().count(fast.eos_token_id) == 1
            assert label_L[learned[-1]] == fast.eos_token_id, "a response is learned with its end"
            found.append((tuple(ids_L[mask_L.bool()].tolist()), tuple(learned)))
    assert Counter(found) == Counter(
        (tuple(one.token_ids_L.tolist()), tuple(one.positions_T.tolist())) for one in expected
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "it is not a demonstration"),
        ({"prompt": "a", "response": 3}, "it is not a demonstration"),
        ({"prompt": "a", "messages": QUESTION, "response": "b"}, "it is not a demonstration"),
        ({"messages": QUESTION}, "its last message is not the assistant's"),
        ({"messages": [{"role": "assistant", "content": None}]}, r"messages\[0\].content is null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "x"}]}], "response": "b"},
            r"messages\[0\].content\[0\]",
        ),
        ({"messages": "hello", "response": "b"}, "messages is not a list of objects"),
    ],
)
def test_a_row_that_is_no_demonstration_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}, row])
    with pytest.raises(InvalidRequestError, match=rf"rows.jsonl line 2: {message}"):
        read_demonstrations(rows, make_tokenizer())


def test_no_response_ends_without_an_eos_token(tmp_path: Path) -> None:
    fast = copy.deepcopy(make_tokenizer())
    fast.eos_token = None
    with pytest.raises(InvalidRequestError, match="no EOS token"):
        read_demonstrations(write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}]), fast)


def test_packing_learns_the_same_tokens_with_the_same_loss(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=6)
    texts = ["five", "Paris.", "a reward", "the answer is five"]
    rows = write_rows(
        tmp_path / "rows.jsonl",
        [{"prompt": f"what is {i}?", "response": texts[i % 4]} for i in range(12)],
    )
    loss, targets, samples = {}, {}, {}
    for packing in (False, True):
        trainer, ordered = trainer_of(
            base, rows, tmp_path / f"{packing}", batch_size=2, packing=packing, epochs=2.0
        )
        batches = list(trainer.get_train_dataloader())
        loss[packing] = trainer.validation_loss(batches)
        targets[packing] = Counter(int(label) for batch in batches for label in batch["labels"].flatten())
        del targets[packing][IGNORED]
        samples[packing] = ordered.samples_S
        assert len(batches) == ordered.steps
    assert targets[True] == targets[False]
    assert loss[True] == pytest.approx(loss[False], abs=1e-5), "a demonstration attends to none beside it"
    assert samples[True][-1] == samples[False][-1] == 24
    assert len(samples[True]) < len(samples[False])


def test_each_epoch_has_every_row_in_an_order_of_its_own(tmp_path: Path) -> None:
    sequences = [from_response([1, 2], [10 + i]) for i in range(10)]
    settings = SftSettings(base=tmp_path, demonstrations=tmp_path, run=tmp_path, batch_size=4, epochs=2.5)
    ordered = order(sequences, 64, settings)
    assert ordered.samples_S == [0, 4, 8, 12, 16, 20, 24, 25]
    last = [ids[-1] for ids in ordered.rows["input_ids"]]
    first, second = last[:10], last[10:20]
    assert sorted(first) == sorted(second) == list(range(10, 20))
    assert first != second


def test_a_share_is_of_the_kept_step_s_samples() -> None:
    samples_S = [0, 4, 8, 12, 16, 18]
    assert steps_at([0.25, 0.5, 0.9], 4, samples_S) == {0.25: 1, 0.5: 2, 0.9: 3}
    assert steps_at([0.5], 5, samples_S) == {0.5: 2}, "at or below: 9 of 18 samples come after 8"
    assert steps_at([0.29], 100, list(range(101))) == {0.29: 29}
    with pytest.raises(InvalidRequestError, match="before the end of the first step, which takes 4 samples"):
        steps_at([0.2], 4, samples_S)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_step_is_kept_its_checkpoints_are_there(seed: int, tmp_path: Path) -> None:
    """Bests come at any validations; the files that the last of them asks for have not been removed."""
    import random

    from torch import nn

    chance = random.Random(seed)
    samples_S = list(range(0, 4 * 41, 4))
    shares = [0.1, 0.35, 0.5, 0.75]
    ends = range(5, 41, 5)
    wanted = {
        end: {end, *steps_at([s for s in shares if s * end >= 1], end, samples_S).values()} for end in ends
    }
    snapshots, model = Snapshots(tmp_path, wanted), nn.Linear(1, 1, bias=False)
    best = 0
    for step in range(1, 41):
        model.weight.data.fill_(step)
        snapshots.take(step, model)
        if step in ends and (not best or chance.random() < 0.4):
            best = step
        if step in ends:
            snapshots.drop_before(best, step)
            assert {int(snapshots.load(s)["weight"]) for s in wanted[best]} == wanted[best]
            future = set().union(*(steps for end, steps in wanted.items() if end > step))
            kept = {int(path.stem.removeprefix("step-")) for path in tmp_path.iterdir()}
            assert kept == {s for s in future | wanted[best] if s <= step}, "nothing is kept for nothing"

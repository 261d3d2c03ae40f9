"""Prompts from each kind of file, and the order in which steps take them."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from checkpoints import make_tokenizer
from densepath.errors import InvalidRequestError
from densepath.sequences import Tokenizer
from densepath.trainer.prompts import read_prompts, rollout_seeds, step_indices

TOKENIZER = Tokenizer(make_tokenizer())
ROWS = [{"prompt": "two and three", "answer": "five", "id": "a"}, {"prompt": "one", "answer": "1", "id": "b"}]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet", "directory"])
def test_each_kind_of_file(name: str, tmp_path: Path) -> None:
    first, second = read_prompts(write(tmp_path / name, ROWS), TOKENIZER)
    assert (first.text, first.answer, first.id) == ("two and three", "five", "a")
    assert list(first.token_ids) == TOKENIZER.encode("two and three")
    assert second.answer == "1"


def test_a_string_may_hold_what_python_takes_for_line_ends(tmp_path: Path) -> None:
    text = "two\u2028and\x85three"
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": text, "answer": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    (prompt,) = read_prompts(path, TOKENIZER)
    assert (prompt.text, prompt.answer) == (text, text)


@pytest.mark.parametrize("name", ["p.parquet", "directory"])
def test_a_row_without_a_line_is_named_by_its_number(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [{"prompt": "one"}, {"answer": "1"}])
    with pytest.raises(InvalidRequestError, match=f"{name} row 2: give exactly one of"):
        read_prompts(path, TOKENIZER)


def test_chat_and_ids(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "two"}]
    rows = [{"messages": messages}, {"prompt_token_ids": [1, 7, 8]}]
    chat, ids = read_prompts(write(tmp_path / "p.jsonl", rows), TOKENIZER)
    wanted = TOKENIZER.from_chat(messages, "x", append_eos=False).token_ids_L[:-1]
    assert list(chat.token_ids) == wanted.tolist(), "the ids that the service makes of the same messages"
    assert chat.messages == tuple(messages)
    assert ids.token_ids == (1, 7, 8)
    assert ids.answer is None


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet", "directory"])
def test_a_chat_is_rendered_by_the_service_s_rules(name: str, tmp_path: Path) -> None:
    fast = copy.deepcopy(make_tokenizer())
    fast.chat_template = (
        "{{ 'quick' if not slow | default(true) }}{{ bos_token }}"
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    rows = [
        {"messages": messages, "chat_template_kwargs": {"slow": False, "other": None}},
        {"messages": messages, "chat_template_kwargs": {"slow": True, "other": "x"}},
    ]
    if name != "p.jsonl":  # where an absent field is null
        rows.append({"messages": messages, "chat_template_kwargs": {"slow": None, "other": "x"}})
    prompts = read_prompts(write(tmp_path / name, rows), Tokenizer(fast))
    assert [prompt.text for prompt in prompts] == ["quick<|begin|>a\nb", *["<|begin|>a\nb"] * (len(rows) - 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("{}\n", "p.jsonl line 1: give exactly one of"),
        ('{"prompt": "a"}\n{"prompt": "a", "messages": []}\n', "p.jsonl line 2: give exactly one of"),
        ('{"prompt_token_ids": []}\n', "p.jsonl line 1: the prompt is empty"),
        (
            '{"messages": [{"role": "user", "content": null}]}\n',
            r"p.jsonl line 1: messages\[0\].content is null",
        ),
        ('{"messages": ["a"]}\n', r"p.jsonl line 1: messages\[0\] must be an object"),
        ("[1]\n", "p.jsonl line 1 is not a JSON object"),
        ("\n{\n", "p.jsonl line 2 is not JSON"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InvalidRequestError, match=message):
        read_prompts(tmp_path / "p.jsonl", TOKENIZER)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name in ("p.csv", "missing.jsonl"):
        with pytest.raises(InvalidRequestError):
            read_prompts(tmp_path / name, TOKENIZER)


def test_an_epoch_takes_every_prompt_once_in_its_own_order() -> None:
    taken = [index for step in range(1, 16) for index in step_indices(10, 4, step, seed=3)]
    assert Counter(taken) == Counter(dict.fromkeys(range(10), 6))
    assert all(sorted(taken[at : at + 10]) == list(range(10)) for at in range(0, 60, 10))
    assert taken[:10] != taken[10:20]
    assert step_indices(10, 4, 7, seed=3) == taken[24:28], "a function of the step alone"
    assert step_indices(10, 4, 7, seed=4) != taken[24:28]
    assert len(step_indices(3, 8, 1, seed=0)) == 8, "a step may be larger than the file"


def test_seeds_differ_by_response_step_and_run() -> None:
    seeds = [*rollout_seeds(0, 1, 8), *rollout_seeds(0, 2, 8), *rollout_seeds(1, 1, 8)]
    assert len(set(seeds)) == len(seeds)
    assert rollout_seeds(0, 1, 8) == seeds[:8]

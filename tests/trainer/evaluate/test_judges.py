"""The files for other tools' judges, read as those tools read them.

The readers below do what the code that densepath/trainer/evaluate/judges.py names does with a file: which
keys it takes, and what it joins by.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from densepath.trainer.evaluate.judges import write_answers
from densepath.trainer.types import Prompt

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Write a post about Hawaii."}
PROMPTS = [
    Prompt("<chat>", (1,), id="81", messages=(SYSTEM, FIRST)),
    Prompt("two and two is", (2,), id="2edbb5f36f5b42be"),
    Prompt("three and three is", (3,)),
]
TEXTS = ["Aloha — from “here”.", "four", "six"]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_answers(tmp_path, "run/final", PROMPTS, TEXTS)
    return tmp_path


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _model_answers(directory: Path, key: str) -> dict[str, dict[Any, dict[str, Any]]]:
    """`load_model_answers` of FastChat and of Arena-Hard, which differ in the key."""
    return {path.name[:-6]: {row[key]: row for row in _lines(path)} for path in directory.glob("*.jsonl")}


def test_alpaca_eval(written: Path):
    rows = json.loads((written / "alpaca_eval" / "run-final.json").read_text(encoding="utf-8"))
    assert {row["generator"] for row in rows} == {"run-final"}, "evaluate() takes the model's name from it"
    reference = {"Write a post about Hawaii.": "a", "two and two is": "b", "three and three is": "c"}
    assert [reference[row["instruction"]] for row in rows] == ["a", "b", "c"]
    assert [row["output"] for row in rows] == TEXTS
    assert all(row.keys() == {"instruction", "output", "generator"} for row in rows)


def test_mt_bench(written: Path):
    answers = _model_answers(written / "mt_bench" / "model_answer", "question_id")["run-final"]
    assert answers[81]["choices"][0]["turns"] == [TEXTS[0]], "MT-Bench's question ids are numbers"
    assert answers["2edbb5f36f5b42be"]["choices"][0]["turns"] == ["four"]
    assert answers[3]["choices"][0]["turns"] == ["six"], "without an id: the row's number"
    keys = {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert all(row.keys() == keys for row in answers.values())
    assert all(row["choices"][0]["index"] == 0 and row["model_id"] == "run-final" for row in answers.values())
    assert len({row["answer_id"] for row in answers.values()}) == 3


def test_mt_bench_second_turn(tmp_path: Path):
    messages = (FIRST, {"role": "assistant", "content": "Aloha."}, {"role": "user", "content": "Now in A."})
    write_answers(tmp_path, "model", [Prompt("<chat>", (1,), id="81", messages=messages)], ["A beach."])
    answers = _model_answers(tmp_path / "mt_bench" / "model_answer", "question_id")["model"]
    assert answers[81]["choices"][0]["turns"] == ["Aloha.", "A beach."]


def test_arena_hard(written: Path):
    answers = _model_answers(written / "arena_hard" / "model_answer", "uid")["run-final"]
    assert answers["2edbb5f36f5b42be"]["messages"][-1]["content"]["answer"] == "four"
    assert answers["81"]["messages"] == [
        SYSTEM,
        FIRST,
        {"role": "assistant", "content": {"answer": TEXTS[0]}},
    ]
    assert answers["3"]["messages"][0] == {"role": "user", "content": "three and three is"}
    assert all(row.keys() == {"uid", "ans_id", "model", "messages", "tstamp"} for row in answers.values())
    assert answers["3"]["model"] == "run-final"


def test_an_answer_is_needed_for_every_prompt(tmp_path: Path):
    with pytest.raises(ValueError, match="zip"):
        write_answers(tmp_path, "model", PROMPTS, TEXTS[:2])

"""Writes answers as files for the tools of AlpacaEval, MT-Bench and Arena-Hard, which judge them.

    alpaca_eval/NAME.json               AlpacaEval 0.6.6: `--model_outputs`
    mt_bench/model_answer/NAME.jsonl    FastChat 0.2.36: data/mt_bench/model_answer/
    arena_hard/model_answer/NAME.jsonl  Arena-Hard-Auto v2.0: data/arena-hard-v2.0/model_answer/

The form of each file was taken from the code that reads it:
- tatsu-lab/alpaca_eval at cd543a1, src/alpaca_eval/main.py `evaluate` and annotators/pairwise_evaluator.py:
  a list of rows with `output`, `generator` and `instruction`, by which a row is joined to the reference's.
- lm-sys/FastChat at 0e6d3e4, fastchat/llm_judge/common.py `load_model_answers` and `run_judge_single`: the
  model's name is the file's name, a row is found by `question_id` (81 to 160, numbers), and
  `choices[0].turns` is read.
- lmarena/arena-hard-auto at 196f6b8, utils/completion.py `load_model_answers` and gen_judgment.py
  `pairwise_judgment`: a row is found by `uid`, and `messages[-1].content.answer` is read.

A prompt's `id` becomes `question_id` and `uid`; a prompt without an id gets the number of its row. These
answers are decoded greedily, while each tool by default decodes in its own way. Limits:
- MT-Bench's second question follows the answer to the first, but one evaluation answers one turn. Put the
  first answers into `messages` and evaluate again: the second file then has both turns, because assistant
  messages count as earlier turns.
- AlpacaEval has one turn: its `instruction` is the last user message.
- Arena-Hard's style control needs `metadata`, which its utils/add_markdown_info.py adds to the file.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.chat.render import text_of
from densepath.files import write_whole
from densepath.trainer.types import Prompt

AnswerRow = dict[str, Any]


def write_answers(directory: Path, name: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> None:
    """Write the answers of one checkpoint, one per prompt, for all three tools. `name` names the model."""
    name = name.replace("/", "-")  # it is a file's name, from which two of the tools take the model's
    pairs = list(zip(prompts, texts, strict=True))
    alpaca = [alpaca_eval_row(prompt, text, name) for prompt, text in pairs]
    _write(directory / "alpaca_eval" / f"{name}.json", json.dumps(alpaca, ensure_ascii=False, indent=1))
    for tool, row in (("mt_bench", mt_bench_row), ("arena_hard", arena_hard_row)):
        rows = (row(prompt, text, name, number) for number, (prompt, text) in enumerate(pairs, 1))
        _write(directory / tool / "model_answer" / f"{name}.jsonl", _lines(rows))


def alpaca_eval_row(prompt: Prompt, text: str, name: str) -> AnswerRow:
    """An answer as AlpacaEval reads it."""
    return {"instruction": _said(prompt, "user")[-1], "output": text, "generator": name}


def mt_bench_row(prompt: Prompt, text: str, name: str, number: int) -> AnswerRow:
    """An answer as FastChat's judge reads it; earlier assistant turns of the prompt come first."""
    question = prompt.id or str(number)
    return {
        "question_id": int(question) if question.isdecimal() else question,
        "answer_id": uuid.uuid4().hex,
        "model_id": name,
        "choices": [{"index": 0, "turns": [*_said(prompt, "assistant"), text]}],
        "tstamp": time.time(),
    }


def arena_hard_row(prompt: Prompt, text: str, name: str, number: int) -> AnswerRow:
    """An answer as Arena-Hard's judge reads it."""
    return {
        "uid": prompt.id or str(number),
        "ans_id": uuid.uuid4().hex,
        "model": name,
        "messages": [*_messages(prompt), {"role": "assistant", "content": {"answer": text}}],
        "tstamp": time.time(),
    }


def _messages(prompt: Prompt) -> list[Mapping[str, str]]:
    return list(prompt.messages or ({"role": "user", "content": prompt.text},))


def _said(prompt: Prompt, role: str) -> list[str]:
    said = [message for message in _messages(prompt) if message["role"] == role]
    return [text_of(message.get("content") or "", "content") for message in said]


def _lines(rows: Iterable[AnswerRow]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())

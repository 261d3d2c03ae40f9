"""`densepath eval` with rollouts that say what they are told to, and with real ones of tiny models."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from checkpoints import make_tokenizer
from densepath import cli
from densepath.errors import InvalidRequestError
from densepath.sequences import Tokenizer
from densepath.trainer.evaluate.responses import Subject, name_directories, open_subject
from densepath.trainer.evaluate.run import eval_report, evaluate, run_evaluation
from densepath.trainer.evaluate.settings import EvalSettings
from densepath.trainer.evaluate.tables import eval_table
from densepath.trainer.rollouts.engines import RolloutEngine
from densepath.trainer.types import Rollout
from trainer.talkers import EOS_IDS, make_talker, write_prompts

TOKENIZER = Tokenizer(make_tokenizer())
ANSWERS = ["one", "two", "three", "four"]
SILENT = Console(file=io.StringIO())

#: What a model says: from the number of the prompt and whether it samples, to a response and its end.
Says = Callable[[int, bool], tuple[str, bool]]


class FakeGenerator:
    """Responses as `says` has them, the last prompt's first, as an engine may finish them."""

    def __init__(self, says: Says) -> None:
        self.says, self.seen, self.closed = says, [], False

    def generate(
        self, prompt_ids_N: Sequence[Sequence[int]], seeds_N: Sequence[int] | None
    ) -> Iterator[Rollout]:
        self.seen.append(seeds_N)
        for n in reversed(range(len(prompt_ids_N))):
            text, ended = self.says(n, seeds_N is not None)
            ids = TOKENIZER.encode(text, add_special_tokens=False)
            yield Rollout(n, (*ids, 2) if ended else tuple(ids), ended)

    def close(self) -> None:
        self.closed = True


def _right_up_to(count: int) -> Says:
    return lambda n, sampled: (ANSWERS[n] if n < count - sampled else "wrong", True)


def _subject(name: str) -> Subject:
    return Subject(name, Path(name), TOKENIZER, frozenset({2}), 300, 64, "float32")


def _settings(**changes: object) -> EvalSettings:
    return EvalSettings(**{"checkpoints": [], "seeds": 3, "max_new_tokens": 8, **changes})


def _evaluate(held_out: Path, *models: Says, settings: EvalSettings | None = None):
    rollouts = [FakeGenerator(says) for says in models]
    subjects = [_subject(f"model-{number}") for number in range(len(models))]
    waiting = iter(rollouts)
    evaluated = evaluate(
        subjects, held_out, settings or _settings(), lambda subject, tokens: next(waiting), SILENT
    )
    return evaluated, rollouts


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "held-out.jsonl", ANSWERS, count=4)


def test_accuracies_and_paired_differences(held_out: Path):
    evaluated, _ = _evaluate(held_out, _right_up_to(2), _right_up_to(3))
    first, second = eval_report(evaluated, _settings())["checkpoints"]
    assert (first["greedy"]["accuracy"], first["sampled"]["accuracy"]) == (0.5, 0.25)
    assert (second["greedy"]["accuracy"], second["sampled"]["accuracy"]) == (0.75, 0.5)
    assert "minus_first" not in first["greedy"]
    difference = second["greedy"]["minus_first"]
    assert difference["value"] == 0.25
    # One prompt of four differs: resampled, from none to all four of them.
    assert difference["interval"] == (0, 0.75)
    responses = second["responses"]
    assert [one["greedy"]["score"] for one in responses] == [1, 1, 1, 0]
    assert [one["greedy"]["response"] for one in responses] == ["one", "two", "three", "wrong"]
    assert all(len(one["sampled"]) == 3 for one in responses)
    assert [one["id"] for one in responses] == ["0", "1", "2", "3"]


def test_every_checkpoint_is_asked_under_the_same_seeds_and_closed(held_out: Path):
    _, (first, second) = _evaluate(held_out, _right_up_to(2), _right_up_to(3))
    assert first.seen == second.seen
    greedy, *sampled = first.seen
    assert greedy is None
    assert len({seed for seeds in sampled for seed in seeds}) == 3 * 4
    assert first.closed
    assert second.closed


def test_a_cut_response_is_wrong_and_counted(held_out: Path):
    evaluated, _ = _evaluate(held_out, lambda n, sampled: (ANSWERS[n], sampled or n > 0))
    (found,) = eval_report(evaluated, _settings())["checkpoints"]
    assert found["greedy"]["accuracy"] == 0.75
    assert found["greedy"]["truncated"] == 1
    assert found["sampled"] == {
        **found["sampled"],
        "accuracy": 1.0,
        "truncated": 0,
        "responses": 12,
        "interval": (1.0, 1.0),
    }


def test_a_checker_of_the_user(held_out: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text("def half(prompt, response, answer):\n    return 0.5\n")
    settings = _settings(checker=f"{tmp_path / 'mine.py'}:half")
    evaluated, _ = _evaluate(held_out, _right_up_to(0), settings=settings)
    assert eval_report(evaluated, settings)["checkpoints"][0]["greedy"]["accuracy"] == 0.5


def test_what_cannot_be_answered_is_refused_before_it_is_tried(held_out: Path, tmp_path: Path):
    with pytest.raises(InvalidRequestError, match="than the 64 tokens of model-0's context"):
        _evaluate(held_out, _right_up_to(0), settings=_settings(max_new_tokens=62))
    with pytest.raises(InvalidRequestError, match=r"some\.jsonl line 3 has no answer"):
        _evaluate(write_prompts(tmp_path / "some.jsonl", ANSWERS[:2], count=4), _right_up_to(0))


def test_the_table_has_what_the_report_has(held_out: Path):
    evaluated, _ = _evaluate(held_out, _right_up_to(2), _right_up_to(3))
    show = Console(file=io.StringIO(), width=200)
    show.print(eval_table(eval_report(evaluated, _settings())))
    for words in ("model-0", "model-1", "50.0 [0.0, 100.0]", "greedy, minus model-0", "+25.0 [+0.0, +75.0]"):
        assert words in show.file.getvalue()


def test_names_are_the_shortest_that_differ():
    assert name_directories([Path("a/run/final"), Path("a/run/base")]) == ["final", "base"]
    assert name_directories([Path("/a/one/final"), Path("/a/two/final")]) == ["one/final", "two/final"]
    with pytest.raises(InvalidRequestError, match="twice"):
        name_directories([Path("a/final"), Path("a/../a/final")])


def test_a_directory_that_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(InvalidRequestError, match=r"nothing: is not a directory"):
        open_subject(tmp_path / "nothing", "nothing")


def test_say_on_what(tmp_path: Path):
    with pytest.raises(InvalidRequestError, match="--held-out FILE, --lm-eval TASKS, or both"):
        run_evaluation(_settings(checkpoints=[tmp_path]), SILENT, SILENT)


def test_a_report_that_could_not_be_written_is_refused_at_once(held_out: Path, tmp_path: Path):
    settings = _settings(checkpoints=[tmp_path], held_out=held_out, output=tmp_path / "nowhere" / "out.json")
    with pytest.raises(InvalidRequestError, match="create it first"):
        run_evaluation(settings, SILENT, SILENT)


def _command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["densepath", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_the_command_with_tiny_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sft, other = make_talker(tmp_path / "sft", 1), make_talker(tmp_path / "other", 2)
    prompts = write_prompts(tmp_path / "prompts.jsonl", [""] * 40, count=40)
    words = ["--engine", "transformers", "--max-new-tokens", "12", "--seeds", "2"]
    out = tmp_path / "first.json"
    assert _command(monkeypatch, "eval", sft, "--held-out", prompts, *words, "-o", out) == 0
    said = [one["greedy"] for one in json.loads(out.read_text())["checkpoints"][0]["responses"]]
    # The held-out answers are now what the first model says greedily.
    write_prompts(prompts, [one["response"] for one in said], count=40)
    again, answers = tmp_path / "again.json", tmp_path / "answers"
    command = ("eval", sft, other, "--held-out", prompts, *words, "-o", again, "--answers", answers)
    assert _command(monkeypatch, *command) == 0
    first, second = json.loads(again.read_text())["checkpoints"]
    ended = np.array([one["ended"] for one in said])
    assert first["greedy"]["accuracy"] == ended.mean() > 0.5
    assert second["greedy"]["minus_first"]["interval"][1] < 0
    assert [one["greedy"] for one in first["responses"]] == [
        {**one, "score": float(one["ended"])} for one in said
    ]
    written = json.loads((answers / "alpaca_eval" / "other.json").read_text())
    assert [row["output"] for row in written] == [one["greedy"]["response"] for one in second["responses"]]
    assert "minus" in capsys.readouterr().out


def test_eos_ids_are_the_config_s_and_the_tokenizer_s(tmp_path: Path):
    subject = open_subject(make_talker(tmp_path / "sft", 1), "sft")
    assert subject.eos_ids == frozenset(EOS_IDS)
    assert (subject.vocab_size, subject.context_length, subject.dtype) == (300, 1024, "float32")


@pytest.mark.engine
def test_two_checkpoints_by_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = [make_talker(tmp_path / "sft", 1), make_talker(tmp_path / "other", 2)]
    prompts = write_prompts(tmp_path / "prompts.jsonl", ["x"] * 10, count=10)
    found = {}
    for engine in RolloutEngine:
        out = tmp_path / f"{engine}.json"
        words = ["--held-out", prompts, "--max-new-tokens", "8", "--seeds", "1", "-o", out]
        assert _command(monkeypatch, "eval", *models, "--engine", engine, *words) == 0
        found[engine] = [
            [one["greedy"]["response"] for one in checkpoint["responses"]]
            for checkpoint in json.loads(out.read_text())["checkpoints"]
        ]
    assert found[RolloutEngine.VLLM] == found[RolloutEngine.TRANSFORMERS]

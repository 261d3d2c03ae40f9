"""Which responses are right, and what is said where a user's checker is at fault."""

import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import make_tokenizer
from densepath.errors import InvalidRequestError
from densepath.sequences import Tokenizer
from densepath.trainer.checking import Checker, response_text
from densepath.trainer.types import Prompt, Rollout

TOKENIZER = Tokenizer(make_tokenizer())
EOS = TOKENIZER.eos_token_id


def _prompt(answer: str | None, where: str = "") -> Prompt:
    return Prompt("two and two", (5, 6), answer, where=where)


def _rollout(text: str, *, ended: bool = True) -> Rollout:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    return Rollout(0, (*ids, EOS) if ended else tuple(ids), ended)


def _checker(directory: Path, body: str) -> Checker:
    (directory / "mine.py").write_text(f"def check(prompt, response, answer):\n    {body}\n")
    return Checker(f"{directory / 'mine.py'}:check")


@pytest.mark.parametrize(
    ("text", "ended", "score"),
    [("four", True, 1), ("five", True, 0), ("four ", True, 0), ("Four", True, 0), ("four", False, 0)],
)
def test_exact_match(text: str, ended: bool, score: float):
    assert Checker().score(_prompt("four"), _rollout(text, ended=ended), TOKENIZER) == score


def test_the_text_has_no_special_tokens_and_an_ordinary_eos_token_is_stripped():
    ids = TOKENIZER.encode("four", add_special_tokens=False)
    with_special = Rollout(0, (1, *ids, 4, EOS), True)
    assert response_text(with_special, TOKENIZER) == "four"
    # A model may end with a token that the tokenizer does not call special.
    assert response_text(Rollout(0, (*ids, ids[0]), True), TOKENIZER) == "four"
    assert response_text(Rollout(0, (*ids, ids[0]), False), TOKENIZER) != "four"


def test_exact_match_wants_answers_and_a_checker_does_not(tmp_path: Path):
    with pytest.raises(InvalidRequestError, match=r"p\.jsonl line 2 has no answer"):
        Checker().require_answers([_prompt("four"), _prompt(None, "p.jsonl line 2")])
    _checker(tmp_path, "return True").require_answers([_prompt(None)])


def test_a_checker_gets_prompt_response_and_answer(tmp_path: Path):
    checker = _checker(tmp_path, "return (prompt, response, answer) == ('two and two', 'four', None)")
    assert checker.score(_prompt(None), _rollout("four"), TOKENIZER) == 1
    assert checker.score(_prompt("four"), _rollout("four"), TOKENIZER) == 0


def test_a_checker_is_not_asked_about_a_cut_response(tmp_path: Path):
    checker = _checker(tmp_path, "raise AssertionError")
    assert checker.score(_prompt(None), _rollout("four", ended=False), TOKENIZER) == 0


@pytest.mark.parametrize(("value", "score"), [("True", 1), ("False", 0), ("0.25", 0.25), ("1", 1)])
def test_what_a_checker_may_return(value: str, score: float, tmp_path: Path):
    checker = _checker(tmp_path, f"return {value}")
    assert checker.score(_prompt(None), _rollout("four"), TOKENIZER) == score


def test_a_checker_may_be_in_a_module_and_return_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    body = "import numpy\ndef check(prompt, response, answer):\n    return numpy.True_"
    (tmp_path / "my_checkers.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    assert Checker("my_checkers:check").score(_prompt(None), _rollout("four"), TOKENIZER) == 1


@pytest.mark.parametrize("value", ["1.5", "-0.1", "float('nan')", "None", "'yes'", "[1]"])
def test_what_a_checker_may_not_return(value: str, tmp_path: Path):
    with pytest.raises(InvalidRequestError, match="a checker returns True, False or a number from 0 to 1"):
        _checker(tmp_path, f"return {value}").score(_prompt(None), _rollout("four"), TOKENIZER)


def test_a_checker_that_raises(tmp_path: Path):
    checker = _checker(tmp_path, "raise KeyError('units')")
    with pytest.raises(InvalidRequestError, match=r"mine.py:check raised KeyError: 'units'"):
        checker.score(_prompt(None), _rollout("four"), TOKENIZER)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("check", "must be module:function or file.py:function"),
        ("no_such_module_at_all:check", "can't be imported: ModuleNotFoundError"),
        ("no_such_file.py:check", "can't be imported: FileNotFoundError"),
        ("json:no_such_function", "json has no function no_such_function"),
        ("json:__name__", "json has no function __name__"),
    ],
)
def test_a_checker_that_is_not_there(name: str, what: str):
    with pytest.raises(InvalidRequestError, match=what):
        Checker(name)


def test_a_file_that_does_not_run(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def check(:\n")
    with pytest.raises(InvalidRequestError, match="can't be imported: SyntaxError"):
        Checker(f"{tmp_path / 'mine.py'}:check")


def test_no_torch_is_loaded():
    names = ("checking", *(f"evaluate.{name}" for name in ("statistics", "judges", "promise", "settings")))
    imports = "; ".join(f"import densepath.trainer.{name}" for name in names)
    subprocess.run(
        [sys.executable, "-c", f"{imports}; import sys; assert 'torch' not in sys.modules"], check=True
    )

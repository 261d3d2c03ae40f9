"""The hand-over to lm-evaluation-harness, with a stand-in in its place."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from densepath.errors import InvalidRequestError
from densepath.trainer.evaluate.harness import harness_command
from densepath.trainer.evaluate.run import run_evaluation
from densepath.trainer.evaluate.settings import EvalSettings

STAND_IN = """
import json, os, sys
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes what it was called with."""
    package = tmp_path / "packages" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    return tmp_path / "seen"


def _run(tmp_path: Path, arguments: str = "") -> str:
    say = Console(file=io.StringIO())
    settings = EvalSettings(
        checkpoints=[tmp_path / "one", tmp_path / "two"], lm_eval="arc_easy,gsm8k", lm_eval_args=arguments
    )
    run_evaluation(settings, say, say)
    return say.file.getvalue()


def test_each_checkpoint_is_handed_over(seen: Path, tmp_path: Path):
    said = _run(tmp_path, "--limit 100 --gen_kwargs 'temperature=0.7 top_p=1'")
    calls = [json.loads(line) for line in seen.read_text().splitlines()]
    rest = ["--tasks", "arc_easy,gsm8k", "--limit", "100", "--gen_kwargs", "temperature=0.7 top_p=1"]
    assert calls == [
        ["--model", "hf", "--model_args", f"pretrained={tmp_path / name}", *rest] for name in ("one", "two")
    ]
    assert "lm_eval --model hf" in said


def test_a_harness_that_fails_is_an_error(seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STATUS", "3")
    with pytest.raises(InvalidRequestError, match="ended with status 3"):
        _run(tmp_path)
    assert len(seen.read_text().splitlines()) == 1


def test_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'densepath\[lm-eval\]'"):
        _run(tmp_path)


def test_a_comma_would_part_the_path():
    with pytest.raises(InvalidRequestError, match="comma"):
        harness_command(Path("/models/a,b"), "arc_easy", "")

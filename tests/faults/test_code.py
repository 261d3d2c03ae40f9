"""What no line of the package may do: run the code of a checkpoint, open a pickle."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from docs.blocks import ROOT

PACKAGE = ROOT / "service/densepath"
#: Functions of transformers and vLLM that read a checkpoint, and can run its code.
LOADERS = {"from_pretrained", "from_config", "get_config", "LLM"}
#: Calls that cannot run any: without `trust_remote_code`, or with arguments that have it as False.
WITHOUT = {
    ("engine/vllm/engine.py", "LLM"),  # of arguments.py, which is among those below
    ("pair/merge.py", "PeftConfig.from_pretrained"),
    ("pair/merge.py", "PeftModel.from_pretrained"),
    ("pair/tensors.py", "AutoModelForCausalLM.from_config"),
}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call of the package: file, name, and node."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(PACKAGE)), ast.unparse(node.func), node


def test_row_36_no_code_of_a_checkpoint_is_ever_trusted() -> None:
    values: list[str] = []
    without: set[tuple[str, str]] = set()
    for file, name, call in calls():
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if "trust_remote_code" in given:
            values.append(given["trust_remote_code"])
        elif name.rpartition(".")[2] in LOADERS:
            without.add((file, name))
    assert set(values) == {"False"}
    assert len(values) > 10
    assert without == WITHOUT
    assert '"trust_remote_code": False' in (PACKAGE / "engine/vllm/arguments.py").read_text("utf-8")


def test_row_37_no_pickle_is_ever_opened() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not PICKLES & {name.partition(".")[0] for name in names}, path
    for file, name, call in calls():
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name != "torch.load", file
        assert given.get("allow_pickle", "False") == "False", (file, name)

"""The text half of a model of text and images computes what the whole model computes for a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForImageTextToText, Qwen3_5ForCausalLM

from adapters import make_adapter
from checkpoints import make_checkpoint, make_tokenizer
from damage import change_tensors, edit
from densepath.commands.pairs import directories
from densepath.config import PairSettings
from densepath.engine.transformers import load_model
from densepath.errors import InvalidPairError, InvalidRequestError
from densepath.pair.checkpoint import HALVED, read_checkpoint, require_checkpoint
from densepath.pair.fix_names import fixed_checkpoint
from densepath.pair.pair import load_pair
from densepath.pair.text_half import text_half
from whole_models import WHOLE_MODELS, make_whole_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/densepath/text"


def problems_of(directory: Path) -> list[str]:
    problems: list[str] = []
    read_checkpoint(directory, lambda *words: problems.append(": ".join(words)))
    return problems


def logp_of(model: torch.nn.Module) -> torch.Tensor:
    """Over the vocabulary, at 90 positions: more than a window."""
    ids_1_L = torch.randint(3, 300, (1, 90), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return model(ids_1_L).logits[0].log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model_type", sorted(HALVED))
def test_it_computes_what_the_whole_model_computes(
    model_type: str, tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    whole = make_whole_model(tmp_path / model_type, model_type)
    assert fixed_checkpoint(whole, print) == whole, "its names are as they should be"
    half = text_half(whole, lambda line: None)
    assert problems_of(half) == []
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    want_L_V = logp_of(AutoModelForImageTextToText.from_pretrained(whole, **options).eval())
    difference = float((logp_of(load_model(half)) - want_L_V).abs().max())
    say_difference(f"text half of {model_type}, with the whole model", difference)
    assert difference < 2e-5
    assert want_L_V.std() > 1


def test_every_type_is_tested() -> None:
    assert set(WHOLE_MODELS) == HALVED


def test_it_is_written_once_and_is_a_pair_with_a_text_model(tmp_path: Path, cache: Path) -> None:
    whole = make_whole_model(tmp_path / "whole", "llava")
    other = make_checkpoint(tmp_path / "other", "llama", seed=2)
    said: list[str] = []
    half = text_half(whole, said.append)
    assert said[0] == f"{whole}: 21 tensors are those of the language model LlamaForCausalLM"
    assert "writing the text half, once" in said
    said.clear()
    assert text_half(whole, said.append) == half
    assert "writing the text half, once" not in said
    assert half.parent == cache
    assert text_half(other, said.append) == other
    assert load_pair(half, other).architectures == ("LlamaForCausalLM", "LlamaForCausalLM")


def test_a_lost_tensor_of_the_language_model_is_reported(tmp_path: Path) -> None:
    whole = make_whole_model(tmp_path / "whole", "llava")
    edit(
        "config.json",
        text_config=json.loads((whole / "config.json").read_text())["text_config"] | {"num_hidden_layers": 3},
    )(whole)
    (problem,) = problems_of(text_half(whole, print))
    assert problem.startswith("model.safetensors: lacks 9 of the 30 tensors that LlamaForCausalLM needs")


def test_what_has_no_text_half_is_refused(tmp_path: Path) -> None:
    whole = make_whole_model(tmp_path / "whole", "llava")
    edit("config.json", quantization_config={"quant_method": "awq"})(whole)
    with pytest.raises(InvalidPairError, match="is a quantised model of text and images"):
        text_half(whole, print)
    edit("config.json", quantization_config=None)(whole)
    change_tensors(wrap)(whole)
    with pytest.raises(InvalidPairError, match=r"the first is module\."):
        text_half(whole, print)


def wrap(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


def test_the_other_commands_name_what_it_is(tmp_path: Path) -> None:
    whole = make_whole_model(tmp_path / "whole", "llava")
    words = (
        "names LlavaForConditionalGeneration, a model of text and images: only serve, check and score use its"
    )
    with pytest.raises(InvalidRequestError, match=words):
        require_checkpoint(whole, "--base")


@pytest.mark.parametrize("model_type", ["glm4v", "cohere2_vision"])
def test_another_kind_is_refused_with_what_to_do(model_type: str, tmp_path: Path) -> None:
    """The whole Cohere model of transformers does not scale its logits, and its text half does."""
    whole = make_whole_model(tmp_path / "whole", model_type)
    assert text_half(whole, print) == whole
    (problem,) = problems_of(whole)
    assert "which is not a language model alone: save its language model as a *ForCausalLM" in problem


def test_the_half_that_transformers_5_saves(tmp_path: Path) -> None:
    """Under the names of the whole model, and with the config of the half."""
    whole = make_whole_model(tmp_path / "whole", "qwen3_5")
    model = Qwen3_5ForCausalLM.from_pretrained(whole, dtype=torch.float32)
    model.save_pretrained(tmp_path / "half")
    make_tokenizer().save_pretrained(tmp_path / "half")
    (problem,) = problems_of(tmp_path / "half")
    assert "strip `language_model.` from every name (--fix-names of serve, check and score" in problem
    fixed = fixed_checkpoint(tmp_path / "half", print)
    assert problems_of(fixed) == []
    half = text_half(whole, print)
    assert float((logp_of(load_model(fixed)) - logp_of(load_model(half))).abs().max()) == 0


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("model_type", ["gemma3", "qwen2_5_vl"])
def test_an_adapter_of_the_whole_model(
    model_type: str, tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    whole = make_whole_model(tmp_path / "whole", model_type)
    adapter = make_adapter(tmp_path / "adapter", whole, AutoModelForImageTextToText, r=4)
    settings = PairSettings(sft=str(adapter), reference=str(whole))
    sft, reference = directories(settings, Console(file=StringIO()))
    assert isinstance(load_pair(sft, reference).version, str)
    plain = AutoModelForImageTextToText.from_pretrained(
        whole, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    plain_L_V = logp_of(plain)
    want_L_V = logp_of(PeftModel.from_pretrained(plain, adapter).eval())
    difference = float((logp_of(load_model(sft)) - want_L_V).abs().max())
    say_difference(f"adapter of {model_type}, merged, its text half", difference)
    assert difference < 2e-5
    assert float((want_L_V - plain_L_V).abs().max()) > 0.1
    assert float((logp_of(load_model(reference)) - plain_L_V).abs().max()) == 0

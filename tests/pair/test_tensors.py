"""Tensors are held against the architecture: whole checkpoints pass, and each kind of fault is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from densepath.pair.tensor_names import Shapes
from densepath.pair.tensors import Expected, describe_tensors, expected_tensors
from densepath.pair.weights import read_weights

#: Every field that some config has, at its smallest.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(
        ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16
    ),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_key_value_heads"), 1),
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# fmt: off
ARCHITECTURES = [
    "apertus", "bloom", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5",
    "ernie4_5_moe", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4",
    "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "jamba", "jetmoe", "lfm2", "llama", "mamba", "minimax",
    "ministral", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt",
    "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next",
    "seed_oss", "smollm3", "stablelm", "starcoder2",
]
#: Their experts are saved one by one.
MIXTURES = [
    "deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "hunyuan_v1_moe", "jamba", "minimax",
    "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next",
]
# fmt: on


def config_of(model_type: str) -> Any:
    fields = AutoConfig.for_model(model_type)
    known = {name: value for name, value in SIZES.items() if name in fields.to_dict()}
    return AutoConfig.for_model(model_type, **known)


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Expected, dict[str, Any], Shapes]]:
    """By model type: what is expected, the shapes as save_pretrained wrote them, and those in the model."""

    @cache
    def make(model_type: str) -> tuple[Expected, dict[str, Any], Shapes]:
        directory = tmp_path_factory.mktemp(model_type)
        model = AutoModelForCausalLM.from_config(config_of(model_type), dtype=torch.float32)
        model.save_pretrained(directory)
        expected = expected_tensors(AutoConfig.from_pretrained(directory), type(model).__name__)
        assert expected is not None
        held = {
            name: tuple(tensor.shape)
            for name, tensor in model.state_dict().items()
            if name not in model.all_tied_weights_keys
        }
        return expected, shapes_of(directory), held

    return make


def shapes_of(directory: Path) -> dict[str, Any]:
    files = read_weights(directory, lambda file, message: pytest.fail(f"{file} {message}"))
    return {name: tensor.shape for tensors in files.values() for name, tensor in tensors.items()}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_whole_checkpoint_passes_and_no_tensor_may_be_missing(model_type: str, saved: Any) -> None:
    expected, shapes, _ = saved(model_type)
    assert describe_tensors(expected, shapes) == []
    for lost in shapes:
        (problem,) = describe_tensors(expected, {name: s for name, s in shapes.items() if name != lost})
        assert problem.startswith("lacks 1 of the ")
        assert lost in problem


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("part", ["_orig_mod.", "module.", "base_model.model."])
def test_wrapper_is_told_in_one_line(part: str, model_type: str, saved: Any) -> None:
    expected, shapes, _ = saved(model_type)
    (problem,) = describe_tensors(expected, {part + name: shape for name, shape in shapes.items()})
    assert f"strip `{part}` from every name" in problem


@pytest.mark.parametrize("model_type", [*MIXTURES, "granitemoe"])
def test_experts_under_the_names_of_the_model_itself(model_type: str, saved: Any) -> None:
    """transformers 5 holds experts fused and writes them one by one; a checkpoint may have either."""
    expected, shapes, held = saved(model_type)
    assert held.keys() != shapes.keys()
    assert describe_tensors(expected, held) == []


@pytest.mark.parametrize("model_type", MIXTURES)
def test_missing_expert(model_type: str, saved: Any) -> None:
    expected, shapes, _ = saved(model_type)
    for number in (1, 3):
        lost = [name for name in shapes if f"experts.{number}." in name]
        (problem,) = describe_tensors(expected, {n: s for n, s in shapes.items() if n not in lost})
        assert problem.startswith(f"lacks {len(lost)} of the ")
        assert lost[0] in problem


def test_mixtral_is_saved_as_it_was_published(saved: Any) -> None:
    _, shapes, _ = saved("mixtral")
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in shapes


#: What older versions of transformers wrote beside the weights: it is computed today.
COMPUTED = {
    "llama": "model.layers.{}.self_attn.rotary_emb.inv_freq",
    "mixtral": "model.layers.{}.self_attn.rotary_emb.inv_freq",
    "gpt_neox": "gpt_neox.layers.{}.attention.bias",
    "gpt2": "transformer.h.{}.attn.bias",
    "gptj": "transformer.h.{}.attn.masked_bias",
    "gpt_bigcode": "transformer.h.{}.attn.bias",
    "codegen": "transformer.h.{}.attn.causal_mask",
}


@pytest.mark.parametrize("model_type", COMPUTED)
def test_buffers_of_older_versions_are_passed_over(model_type: str, saved: Any) -> None:
    expected, shapes, _ = saved(model_type)
    old = {COMPUTED[model_type].format(layer): (1, 1, 64, 64) for layer in range(2)}
    assert describe_tensors(expected, shapes | old) == []
    lost = next(name for name in shapes if ".1." in name)
    assert describe_tensors(expected, {n: s for n, s in (shapes | old).items() if n != lost})


@pytest.mark.parametrize("model_type", ["bloom", "gpt2", "opt"])
def test_published_without_the_prefix_that_the_engine_puts_back(model_type: str, saved: Any) -> None:
    expected, shapes, _ = saved(model_type)
    prefix = expected.model.base_model_prefix + "."
    assert describe_tensors(expected, {n.removeprefix(prefix): s for n, s in shapes.items()}) == []


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "mixtral", "phi"])
def test_lost_prefix_is_named(model_type: str, saved: Any) -> None:
    expected, shapes, _ = saved(model_type)
    prefix = expected.model.base_model_prefix + "."
    (problem,) = describe_tensors(expected, {n.removeprefix(prefix): s for n, s in shapes.items()})
    assert f"names lack `{prefix}`" in problem


def test_head_that_is_tied_may_be_there_or_not(saved: Any) -> None:
    expected, shapes, _ = saved("gemma2")
    assert "lm_head.weight" not in shapes
    rows = shapes["model.embed_tokens.weight"]
    assert describe_tensors(expected, shapes | {"lm_head.weight": rows}) == []
    only_head = {n: s for n, s in shapes.items() if n != "model.embed_tokens.weight"} | {
        "lm_head.weight": rows
    }
    (problem,) = describe_tensors(expected, only_head)
    assert "(model.embed_tokens.weight)" in problem


def test_two_faults_within_a_wrapper_are_both_told(saved: Any) -> None:
    expected, shapes, _ = saved("qwen3")
    lost = "model.layers.1.self_attn.q_proj.weight"
    wrapped = {f"module._orig_mod.{name}": shape for name, shape in shapes.items() if name != lost}
    problems = describe_tensors(expected, wrapped)
    assert [problem.partition("(")[0] for problem in problems] == [
        "24 names begin with `module._orig_mod.` ",
        "lacks 1 of the 25 tensors that Qwen3ForCausalLM needs ",
    ]


def test_adapter_beside_its_base_layers(saved: Any) -> None:
    """As `PeftModel` holds them: under its own prefix, with the adapted layers moved aside."""
    expected, shapes, _ = saved("llama")
    held: dict[str, Any] = {}
    for name, shape in shapes.items():
        if "_proj" in name:
            stem = "base_model.model." + name.removesuffix(".weight")
            held[f"{stem}.base_layer.weight"] = shape
            held[f"{stem}.lora_A.default.weight"] = (4, shape[1])
            held[f"{stem}.lora_B.default.weight"] = (shape[0], 4)
        else:
            held[f"base_model.model.{name}"] = shape
    problems = describe_tensors(expected, held)
    assert len(problems) == 3
    assert "strip `base_model.model.`" in problems[0]
    assert "an adapter is in their place; merge it" in problems[1]
    assert "an adapter was left in; merge it" in problems[2]


def test_layers_that_the_config_does_not_have(saved: Any) -> None:
    expected, shapes, _ = saved("llama")
    more = {name.replace(".1.", ".2."): shape for name, shape in shapes.items() if ".1." in name}
    (problem,) = describe_tensors(expected, shapes | more)
    assert problem.startswith("has 9 tensors that LlamaForCausalLM does not know")
    assert "config.json gives fewer layers" in problem


def test_an_expert_that_is_left_out_does_not_move_the_others_up(saved: Any) -> None:
    """Experts 0, 1, 2 and 4 of four, and other names that need transformers' mapping."""
    expected, shapes, _ = saved("qwen2_moe")
    names = {name: name.replace("experts.3.", "experts.4.") for name in shapes}
    problems = describe_tensors(expected, {names[name]: shape for name, shape in shapes.items()})
    assert [problem.partition(" ")[0] for problem in problems] == ["lacks", "has"]


def test_no_model_of_that_class() -> None:
    assert expected_tensors(config_of("llama"), "AquilaForCausalLM") is None
    assert expected_tensors(AutoConfig.for_model("t5"), "T5ForCausalLM") is None


def test_a_large_model_costs_neither_time_nor_memory() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
    )
    begin = time.process_time()
    expected = expected_tensors(config, "LlamaForCausalLM")
    assert expected is not None
    assert describe_tensors(expected, expected.shapes) == []
    assert time.process_time() - begin < 20
    assert all(parameter.is_meta for parameter in expected.model.parameters())

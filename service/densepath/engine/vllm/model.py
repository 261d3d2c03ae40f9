"""One vLLM model that holds two, `sft` and `reference`, and runs both on the same scheduled batch."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models.utils import maybe_prefix
from vllm.transformers_utils.config import get_config
from vllm.utils.torch_utils import set_default_torch_dtype

from densepath.engine.vllm.classes import vllm_class
from densepath.engine.vllm.layers import built_side
from densepath.engine.vllm.longrope import LongRope, ShortSequences
from densepath.engine.vllm.pooler import PairPooler
from densepath.engine.vllm.sides import check_kernels, prepare_for, quantisation_of, side_config
from densepath.engine.vllm.text_only import load_class

REFERENCE = "densepath_reference."  # marks the reference's tensors in the stream of weights


def _multiply_in_fp32() -> None:
    """Make fp32 products exact in this process, whatever its environment says.

    vLLM has already set the precision of PyTorch's products from an environment variable. The kernels that
    Triton compiles (attention, experts) use TF32 on a GPU by default.
    """
    torch.set_float32_matmul_precision("highest")
    os.environ["TRITON_F32_DEFAULT"] = "ieee"


def _hidden_width(text_config: Any) -> int:
    """The width of the hidden states that a model's head reads. OPT models may project theirs to another."""
    width: int = getattr(text_config, "word_embed_proj_dim", None) or text_config.hidden_size
    return width


class DensepathPair(nn.Module):
    """Wraps the `*ForCausalLM` class that each checkpoint names. No architecture is named here.

    The two models may differ in depth, width and architecture, and in the padded rows of their embeddings.
    Their tokenizer is the same (`pair.py` checks it).
    """

    is_pooling_model = True
    default_seq_pooling_type = "LAST"
    default_tok_pooling_type = "ALL"
    attn_type = "decoder"
    score_type = "bi-encoder"
    fall_back_to_pt_during_load = False  # safetensors only: a pickle is never opened

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        _multiply_in_fp32()
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError("the pair runs under tensor parallelism; pipeline parallelism is not supported")
        model_config = vllm_config.model_config
        sft_config = model_config.hf_config
        reference_path = sft_config.densepath_reference
        reference_config = get_config(reference_path, trust_remote_code=False)

        def build(
            name: str, config: Any, architectures: list[str], directory: str, dtype: torch.dtype
        ) -> Any:
            own_prefix = maybe_prefix(prefix, name)
            architectures = [vllm_class(config, each) for each in architectures]
            with (
                built_side(vllm_config, name, dtype, quantisation_of(config)) as layers,
                set_model_tag(f"densepath_{name}"),  # two compiled graphs
                set_default_torch_dtype(dtype),
            ):
                for architecture in architectures:
                    load_class(architecture)
                side = side_config(
                    vllm_config, config, architectures, directory=directory, dtype=dtype, prefix=own_prefix
                )
                model = initialize_model(side, prefix=own_prefix)
                check_kernels(model)
            if dtype != model_config.dtype:
                prepare_for(model, layers, side.model_config)
            return model

        own_config = copy.copy(sft_config)
        if (quantisation := getattr(sft_config, "densepath_sft_quantisation", None)) is not None:
            own_config.quantization_config = quantisation
        dtypes = model_config.dtype, getattr(torch, sft_config.densepath_reference_dtype)
        self.sft: Any = build(
            "sft", own_config, list(sft_config.densepath_sft_architectures), model_config.model, dtypes[0]
        )
        self.reference: Any = build(
            "reference", reference_config, list(reference_config.architectures), reference_path, dtypes[1]
        )
        self.secondary_weights = (
            DefaultModelLoader.Source(reference_path, revision=None, prefix=REFERENCE, fall_back_to_pt=False),
        )
        self.longrope = LongRope(
            ShortSequences.of(model_config),
            (self.sft, self.reference),
            vllm_config.scheduler_config.max_num_batched_tokens,
        )
        text_config = sft_config.get_text_config()
        self.pooler = PairPooler(
            self.sft, self.reference, dtypes, _hidden_width(text_config), text_config.vocab_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """vLLM requires this of every model. The pair is always run from ids."""
        embedded: torch.Tensor = self.sft.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        """Hidden states of both models side by side, `[rows, hidden_sft + hidden_reference]`.

        If the models have two dtypes, the wider one holds both without rounding.
        The SFT's are copied before the reference runs: vLLM's CUDA graphs of both models share one memory
        pool, and replaying the reference's graph overwrites the output of the SFT's graph.
        """
        ids, positions_sft, positions_reference = self.longrope(input_ids, positions)
        hidden_sft = self.sft(ids, positions_sft).clone()
        return torch.cat((hidden_sft, self.reference(ids, positions_reference)), dim=-1)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """The SFT's tensors come first, then the reference's under their prefix."""
        loaded: set[str] = set()
        for is_reference, group in itertools.groupby(weights, lambda item: item[0].startswith(REFERENCE)):
            if is_reference:
                names = self.reference.load_weights((name.removeprefix(REFERENCE), w) for name, w in group)
            else:
                names = self.sft.load_weights(group)
            loaded |= {f"{'reference' if is_reference else 'sft'}.{name}" for name in names or ()}
        return loaded

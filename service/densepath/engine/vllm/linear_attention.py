"""Linear attention in float32 on a CPU.

vLLM's CPU kernel of the gated delta rule (Qwen3-Next, Qwen3.5) takes bfloat16 only. In every other dtype,
transformers' own function computes it here, with vLLM's states: one sequence after the other.
"""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention
from vllm.model_executor.layers.mamba.ops.cpu.causal_conv1d import causal_conv1d_fn_cpu
from vllm.utils.torch_utils import LayerNameType, _resolve_layer_name

#: Tokens that the function computes at once. With its own 64, its rounding errors are up to six times larger.
CHUNK = 16
_in_bfloat16 = gdn_attention.cpu_gdn_attention_core


def gated_delta_rule(
    mixed_qkv: torch.Tensor,
    b: torch.Tensor,
    a: torch.Tensor,
    core_attn_out: torch.Tensor,
    layer_name: LayerNameType,
) -> None:
    """Fill `core_attn_out` [rows, value heads, value size] and move the layer's states on.

    `mixed_qkv` is [rows, queries, keys and values], `b` and `a` are [rows, value heads].
    """
    metadata = get_forward_context().attn_metadata
    if metadata is None or mixed_qkv.dtype == torch.bfloat16:
        _in_bfloat16(mixed_qkv, b, a, core_attn_out, layer_name)
        return
    layer = get_forward_context().no_compile_layers[_resolve_layer_name(layer_name)]
    step = metadata[layer.prefix]
    rows = step.num_actual_tokens
    if rows == 0:
        return
    sequences = step.num_decodes + step.num_prefills
    slots_N = step.non_spec_state_indices_tensor[:sequences]
    ends_N = step.non_spec_query_start_loc[: sequences + 1]
    started_N = torch.ones(sequences, dtype=torch.bool)  # a step of one token follows others
    if step.num_prefills:
        started_N[step.num_decodes :] = step.has_initial_state[step.num_decodes : sequences]
    conv_state, state = layer.kv_cache
    mixed_qkv = causal_conv1d_fn_cpu(
        mixed_qkv[:rows].transpose(0, 1),
        layer.conv1d.weight.flatten(1),
        layer.conv1d.bias,
        conv_states=conv_state if is_conv_state_dim_first() else conv_state.transpose(-1, -2),
        query_start_loc=ends_N,
        cache_indices=slots_N,
        has_initial_state=started_N,
        activation=layer.activation,
    ).transpose(0, 1)
    query, key, value = layer.rearrange_mixed_qkv(mixed_qkv)
    repeats = value.shape[2] // key.shape[2]
    query, key = (each.repeat_interleave(repeats, dim=2) for each in (query, key))
    beta = b[:rows].sigmoid()[None]
    decay = (-layer.A_log.float().exp() * functional.softplus(a[:rows].float() + layer.dt_bias))[None]
    # The kernel in bfloat16 also keeps a state of this size as [keys, values].
    state = state.view(*state.shape[:2], state.shape[3], state.shape[2])
    bounds = ends_N.tolist()
    for i, (low, high) in enumerate(itertools.pairwise(bounds)):
        slot = slots_N[i : i + 1]
        part = (each[:, low:high] for each in (query, key, value, decay, beta))
        out, last = torch_chunk_gated_delta_rule(
            *part,
            chunk_size=CHUNK,
            initial_state=state[slot] if started_N[i] else None,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        core_attn_out[low:high] = out[0]
        state[slot] = last.to(state.dtype)


def install() -> None:
    """Let vLLM register this function as its CPU kernel. Call it before a model is built."""
    gdn_attention.cpu_gdn_attention_core = gated_delta_rule

"""Random LoRA adapters, as PEFT saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(
    directory: Path, base: Path, kind: Any = AutoModelForCausalLM, *, seed: int = 0, **options: Any
) -> Path:
    """An adapter with random values in every tensor, so that all of it shows. `kind` loads its base model."""
    torch.manual_seed(seed)
    model = kind.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(**({"target_modules": TARGETS, "task_type": "CAUSAL_LM"} | options))
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                if "magnitude" in name:
                    parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
                else:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    tuned.save_pretrained(directory)
    return directory

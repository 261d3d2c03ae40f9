"""`python -m densepath.pair.merge ADAPTER BASE TARGET`: merges a LoRA adapter into its base model with peft.

The merged model computes what peft computes without merging, up to the rounding of the base model's dtype.
If the merge fails, the last line of standard error has the reason.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from densepath.pair.adapters import WEIGHTS
from densepath.pair.checkpoint import CONFIG, QUANTISED
from densepath.pair.text_half import is_whole
from densepath.pair.tokenizer_files import FILES, TOKENIZER

#: Each shard is written in one piece, so this limits the memory that is needed besides the model.
_SHARD_SIZE = "200MB"


def merge(adapter: Path, base: Path, target: Path) -> None:
    """Write the merged model and its tokenizer to `target`.

    The tokenizer is the adapter's if it was saved with one, or else the base model's. Raises ValueError if
    the adapter does not fit the base model, or if the base model is quantised.
    """
    raw = json.loads((base / CONFIG).read_text(encoding="utf-8"))
    if any(raw.get(name) for name in QUANTISED):
        raise ValueError("its weights are quantised; give the full-precision base model by --base")
    from peft import PeftConfig, PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    whole = is_whole(raw)
    model: Any
    model, loading = (AutoModelForImageTextToText if whole else AutoModelForCausalLM).from_pretrained(
        base,
        dtype="auto",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"the base model lacks {len(missing)} tensors, such as {missing[0]}")
    config: Any = PeftConfig.from_pretrained(adapter)
    if config.lora_bias or config.bias != "none":
        raise ValueError(
            "it trains biases, which are not merged; merge it yourself and give the merged model"
        )
    with safe_open(adapter / WEIGHTS, "pt") as file:
        given = set(file.keys())
    _untie(model, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = PeftModel.from_pretrained(model, adapter, config=config)
    # peft may save the embeddings themselves, too.
    if lost := sorted((_names(tuned, embeddings=False) - given) | (given - _names(tuned, embeddings=True))):
        raise ValueError(
            f"{len(lost)} of its tensors do not fit the base model, such as {lost[0]}; give the base model "
            "that it was trained on"
        )
    merged = tuned.merge_and_unload(safe_merge=True)
    merged.save_pretrained(target, max_shard_size=_SHARD_SIZE)
    source = adapter if (adapter / TOKENIZER).is_file() else base
    for path in (*(source / name for name in FILES), *source.glob("chat_template*")):
        if path.is_file():
            shutil.copy(path, target)


def _untie(model: Any, tensors: set[str]) -> None:
    """Separate tied embeddings if the adapter changes one of them, because the other must stay unchanged."""
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {name for name, module in model.named_modules() if module is embedding or module is head}
    changed = any(f".{name}." in tensor for name in names for tensor in tensors)
    if changed and head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _names(tuned: Any, *, embeddings: bool) -> set[str]:
    """The tensors of the adapter, by their names in its file."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return set(get_peft_model_state_dict(tuned, save_embedding_layers=embeddings))


def _main() -> None:
    try:
        merge(*map(Path, sys.argv[1:4]))
    except Exception as error:  # a library may raise anything; its message is the reason
        words = " ".join(str(error).split()) or type(error).__name__
        print(words[:600], file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    _main()

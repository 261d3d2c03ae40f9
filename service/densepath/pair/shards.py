"""Checkpoints whose weights are still in the shards of several processes: the command that merges them.

Shards are pickled, or hold a part of each tensor, so they are never read here.

pytorch_model_fsdp_0/                     FSDP of the Hugging Face Trainer, TRL, axolotl, LLaMA-Factory
zero_to_fp32.py, global_step7/, latest    DeepSpeed ZeRO of the same trainers
model_world_size_2_rank_0.pt, model/      FSDP and Megatron of verl, in the folder itself or in actor/
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from densepath.pair.checkpoint import CONFIG

FSDP, ZERO = "pytorch_model_fsdp_0", "zero_to_fp32.py"
#: Patterns and verl's names of what writes them. Before version 0.9, Megatron's shards were not in model/.
_VERL = {
    "model_world_size_*_rank_*.pt": "fsdp",
    "model/dist_ckpt": "megatron",
    "dist_ckpt": "megatron",
}


def how_to_merge(folder: Path) -> str | None:
    """What merges the shards in a folder into a model that stands there too. None if it has no shards."""
    here = quote(str(folder))
    if (folder / FSDP).is_dir():
        command = f"run `accelerate merge-weights {quote(str(folder / FSDP))} {here}`"
        if (folder / CONFIG).is_file():
            return command
        return f"{command}, and copy {CONFIG} and the tokenizer of the base model into {here}"
    if (folder / ZERO).is_file() or any(folder.glob("global_step*/*zero_pp_rank_*")):
        return f"run `python {quote(str(folder / ZERO))} {here} {here} --safe_serialization`"
    for place in (folder, folder / "actor"):
        for pattern, backend in _VERL.items():
            if any(place.glob(pattern)):
                return (
                    f"run `python -m verl.model_merger merge --backend {backend} "
                    f"--local_dir {quote(str(place))} --target_dir {quote(str(place / 'huggingface'))}`"
                )
    return None

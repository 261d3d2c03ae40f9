"""TRL's GRPO (or RLOO, with --rloo) with one reward a token, on the demo pair.

Start `densepath serve --demo` in another terminal.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from datasets import Dataset
from trl import GRPOConfig, RLOOConfig

from densepath.demo import default_directory
from densepath.demo.task import held_out
from densepath.integrations.trl import DensePathGRPOTrainer, DensePathRLOOTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
parser.add_argument("--sft", type=Path, default=default_directory() / "sft", help="the pair's SFT checkpoint")
parser.add_argument("--rloo", action="store_true", help="RLOO: the KL term is in the reward")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--output", type=Path, default=Path("trl-run"))
asked = parser.parse_args()

prompts = Dataset.from_list([{"prompt": list(one.messages)} for one in held_out(300, random.Random(0))])
settings = {
    "output_dir": str(asked.output),
    "max_steps": asked.steps,
    "per_device_train_batch_size": 64,
    "num_generations": 4,
    "max_completion_length": 16,
    "mask_truncated_completions": True,  # a cut response has not earned what its end would have brought
    "beta": 0.5,  # KL to SFT: without it the reward rises while answers get worse
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
}
if asked.rloo:
    trainer = DensePathRLOOTrainer(
        str(asked.sft), asked.url, args=RLOOConfig(**settings), gamma=0.0, train_dataset=prompts
    )
else:
    config = GRPOConfig(scale_rewards="none", loss_type="dr_grpo", **settings)
    trainer = DensePathGRPOTrainer(str(asked.sft), asked.url, args=config, gamma=0.0, train_dataset=prompts)
trainer.train()
trainer.save_model()
for entry in trainer.state.log_history:
    if "reward" in entry:
        print(f"step {entry['step']}  reward {entry['reward']:+.3f} nats  kl {entry['kl']:.4f} nats a token")

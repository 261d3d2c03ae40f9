"""TRL's distillation from a server, which densepath is: the teacher is made of both models of the pair.

Start `densepath serve --demo` in another terminal.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from datasets import Dataset
from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer

from densepath.demo import default_directory
from densepath.demo.task import held_out

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
parser.add_argument("--sft", type=Path, default=default_directory() / "sft", help="the pair's SFT checkpoint")
parser.add_argument("--teacher", default="dpr-teacher", help="dpr-teacher, sft or reference")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--output", type=Path, default=Path("trl-distilled"))
asked = parser.parse_args()

trainer = ServerDistillationTrainer(
    model=str(asked.sft),
    args=ServerDistillationConfig(
        output_dir=str(asked.output),
        teacher_model_server_url=asked.url,
        max_steps=asked.steps,
        per_device_train_batch_size=64,
        max_completion_length=16,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
    ),
    train_dataset=Dataset.from_list(
        [{"prompt": list(one.messages)} for one in held_out(300, random.Random(0))]
    ),
)
trainer.teacher_client.model = asked.teacher  # TRL takes the first name of /v1/models, which is the pair's
trainer.train()
trainer.save_model()

"""Write prompts of the demo's task as verl reads them: a parquet file with a chat in each row."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from datasets import Dataset

from densepath.demo.task import held_out

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("file", type=Path)
parser.add_argument("--count", type=int, default=300)
asked = parser.parse_args()

rows = [
    {
        "prompt": list(example.messages),
        "data_source": "demo",
        "reward_model": {"ground_truth": example.response},
        "extra_info": {"index": index},
    }
    for index, example in enumerate(held_out(asked.count, random.Random(0)))
]
Dataset.from_list(rows).to_parquet(asked.file)

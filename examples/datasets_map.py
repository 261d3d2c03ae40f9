"""A dataset with the rewards of every response beside it, by `datasets.map`, on the demo's task.

Start `densepath serve --demo` in another terminal.
"""

from __future__ import annotations

import argparse
import random

from datasets import Dataset

from densepath.demo.task import corrupt, held_out
from densepath.integrations.data import ScoreColumns

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
asked = parser.parse_args()

chance = random.Random(0)
rows = [
    {"messages": list(one.messages), "response": response}
    for one in held_out(32, chance)
    for response in (one.response, corrupt(one.response, chance)[0])
]
scored = Dataset.from_list(rows).map(ScoreColumns(asked.url, append_eos=True), batched=True, batch_size=64)

for row in scored.select(range(4)):
    rewards = " ".join(f"{reward:+.2f}" for reward in row["rewards"])
    print(f"{row['messages'][0]['content']:<16} {row['response']:<8} sum {row['sum']:+.3f}  {rewards}")
right, wrong = scored["sum"][::2], scored["sum"][1::2]
better = sum(a > b for a, b in zip(right, wrong, strict=True))
print(f"the right answer has the larger sum {better} times of {len(right)}")

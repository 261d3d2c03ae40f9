"""A Ray Dataset with the rewards of every response beside it, scored by two actors, on the demo's task.

Start `densepath serve --demo` in another terminal.
"""

from __future__ import annotations

import argparse
import random

import ray

from densepath.demo.task import corrupt, held_out
from densepath.integrations.ray_data import score

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
asked = parser.parse_args()

chance = random.Random(0)
rows = [
    {"messages": list(one.messages), "response": response}
    for one in held_out(32, chance)
    for response in (one.response, corrupt(one.response, chance)[0])
]
scored = score(ray.data.from_items(rows), asked.url, actors=2, append_eos=True).take_all()

for row in scored[:4]:
    rewards = " ".join(f"{reward:+.2f}" for reward in row["rewards"])
    print(f"{row['messages'][0]['content']:<16} {row['response']:<8} sum {row['sum']:+.3f}  {rewards}")
sums = [row["sum"] for row in scored]
better = sum(a > b for a, b in zip(sums[::2], sums[1::2], strict=True))
print(f"the right answer has the larger sum {better} times of {len(sums) // 2}")

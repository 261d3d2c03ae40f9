"""A data frame with the rewards of every response beside it, in pandas and in Polars, on the demo's task.

Start `densepath serve --demo` in another terminal.
"""

from __future__ import annotations

import argparse
import random

import pandas as pd
import polars as pl

from densepath.demo.task import held_out
from densepath.integrations.data import ScoreColumns

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
asked = parser.parse_args()

rows = [{"messages": list(one.messages), "response": one.response} for one in held_out(8, random.Random(0))]
score = ScoreColumns(asked.url, append_eos=True)

with_pandas = pd.DataFrame(rows).pipe(lambda frame: frame.assign(**score(frame)))
with_polars = pl.DataFrame(rows).pipe(lambda frame: frame.hstack(pl.DataFrame(score(frame))))

print(with_pandas[["response", "sum", "rewards"]])
print(with_polars.select("response", "sum", "rewards"))

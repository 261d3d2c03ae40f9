"""SkyRL's client asks dpr-teacher about a response of the demo's task, token by token.

Start `densepath serve --demo` in another terminal.
"""

from __future__ import annotations

import argparse
import asyncio
import random

import httpx
from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import RemoteInferenceClient

from densepath import Client
from densepath.demo.task import held_out

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
parser.add_argument("--teacher", default="dpr-teacher", help="dpr-teacher, sft or reference")
asked = parser.parse_args()

[example] = held_out(1, random.Random(0))
prompt = {"messages": list(example.messages)}
prompt_ids = httpx.post(f"{asked.url}/tokenize", json=prompt).raise_for_status().json()["tokens"]
with Client(asked.url) as densepath:
    item = {**prompt, "response": example.response, "append_eos": True}
    [score] = densepath.score([item], include=("tokens",))


async def ask_teacher(token_ids: list[int]) -> list[float]:
    """The teacher's log-probability of each token; None for the first."""
    async with RemoteInferenceClient(
        asked.url, [asked.url], data_parallel_size=1, model_name=asked.teacher
    ) as client:
        body = {
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": token_ids}]},
            "sampling_params": {"max_tokens": 1, "temperature": 1.0},
            "include_prompt_logprobs": True,
        }
        return (await client.sample({"json": body}))["prompt_logprobs"]


teacher_logps = asyncio.run(ask_teacher([*prompt_ids, *score.response_token_ids.tolist()]))
for token, reward, t in zip(score.tokens, score.reward_T, teacher_logps[len(prompt_ids) :], strict=True):
    print(f"{token:10} reward {reward:+.3f}  {asked.teacher} {t:+.3f}")

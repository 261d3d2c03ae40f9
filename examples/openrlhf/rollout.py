"""What OpenRLHF's own rollout executor gets for a response of the demo pair, by the URL and by the agent.

Start `densepath serve --demo` in another terminal. Needs OpenRLHF's wheel, no GPU: the response is given.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

from densepath.demo import default_directory
from densepath.integrations.openrlhf import DensePathAgentExecutor

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
parser.add_argument("--sft", type=Path, default=default_directory() / "sft", help="the pair's SFT checkpoint")
parser.add_argument("--ask", default="reverse: planet")
parser.add_argument("--response", default="tenalp")
asked = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(asked.sft)
chat = [{"role": "user", "content": asked.ask}]
prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
sampled = [*tokenizer(asked.response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


class GivenResponse:
    """In the place of OpenRLHF's vLLM engine."""

    async def generate(self, *request: Any, **options: Any) -> Any:
        """One output, whose ids are the given response's."""
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=sampled, finish_reason="stop", logprobs=None)]
        )


async def roll_out(executor: SingleTurnAgentExecutor) -> dict[str, Any]:
    """A rollout as OpenRLHF's trainer gets it."""
    sampling = SimpleNamespace(max_tokens=32, logprobs=None)
    return await executor.execute(prompt, None, sampling, 512, tokenizer, GivenResponse())


async def both() -> None:
    """Print the reward of each."""
    agent = DensePathAgentExecutor(asked.url)
    for name, executor in {"url": SingleTurnAgentExecutor(f"{asked.url}/get_reward"), "agent": agent}.items():
        rollout = await roll_out(executor)
        print(f"{name}: reward {rollout['reward']}, {rollout['extra_logs']}")
    await agent.client.aclose()


asyncio.run(both())

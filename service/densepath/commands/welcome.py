"""What `densepath serve --demo` prints once it is ready: two answers to one prompt, token by token."""

from __future__ import annotations

import json

import httpx
from fastapi import FastAPI
from rich.console import Console

from densepath.api.edge import LOOPBACK_HOSTS
from densepath.api.service import Service
from densepath.client import AsyncClient
from densepath.show import reward_text

PROMPT = "copy: badger"
RIGHT, WRONG = "badger", "badzer"


async def welcome(app: FastAPI, service: Service, url: str, say: Console, *, needs_key: bool) -> None:
    """Wait until the pair is loaded, score both answers through the application, and print them."""
    await service.lifecycle.loaded.wait()
    say.print(f"\nLook at rewards in a browser: {url}/", soft_wrap=True)
    if needs_key:
        return  # the service keeps only the hashes of its keys
    messages = [{"role": "user", "content": PROMPT}]
    items = [{"messages": messages, "response": response, "append_eos": True} for response in (RIGHT, WRONG)]
    async with AsyncClient(f"http://{LOOPBACK_HOSTS[0]}", transport=httpx.ASGITransport(app)) as client:
        scores = await client.score(items, include=("tokens",))
    what = "The rewards of a right answer and of one with a wrong letter, in nats:"
    say.print(f"\nPrompt: {PROMPT}. {what}", soft_wrap=True)
    for score in scores:
        say.print("   ", reward_text(score, numbers=True), soft_wrap=True)
    body = json.dumps({"items": items[1:], "include": ["tokens"]})
    say.print("Ask it yourself, from another terminal (Ctrl-C here ends the service):")
    command = f"curl -s {url}/v1/rewards -H 'Content-Type: application/json' -d '{body}'"
    say.print(f"    {command}\n", soft_wrap=True, markup=False)

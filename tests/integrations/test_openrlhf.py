"""OpenRLHF's released rollout executor against /get_reward, unmodified, and the agent for exact ids."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from checkpoints import make_tokenizer
from densepath import Client
from densepath.errors import InvalidItemError, UnavailableError
from densepath.integrations.alignment import AlignmentError
from live import Demo, finish, free_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # escapes in strings of OpenRLHF that Python no longer likes
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    from densepath.integrations.openrlhf import DensePathAgentExecutor

EXAMPLES = Path(__file__).parents[2] / "examples" / "openrlhf"
PROMPT = "<|begin|><|user|>the sum of 3 and 4<|end|><|assistant|>"
RESPONSES = [" 7<|end|>", " 8, or so"]


def ids(text: str, tokenizer: Any = None) -> list[int]:
    return list((tokenizer or make_tokenizer())(text, add_special_tokens=False)["input_ids"])


class Sampler:
    """In the place of OpenRLHF's vLLM engine: answers fixed ids."""

    def __init__(self, response_ids: list[int]) -> None:
        self.response_ids = response_ids

    async def generate(self, *request: Any, **options: Any) -> Any:
        output = SimpleNamespace(token_ids=self.response_ids, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


async def roll_out(
    executor: SingleTurnAgentExecutor, response_ids: list[int], max_length: int = 256, tokenizer: Any = None
) -> dict[str, Any]:
    """One rollout, as OpenRLHF's engine actor asks for it."""
    sampling = SimpleNamespace(max_tokens=16, logprobs=None)
    return await executor.execute(
        prompt=PROMPT, label="7", sampling_params=sampling, max_length=max_length,
        hf_tokenizer=tokenizer or make_tokenizer(), llm_engine=Sampler(response_ids), images=None,
    )  # fmt: skip


def load_agent(url: str, monkeypatch: pytest.MonkeyPatch) -> DensePathAgentExecutor:
    """The example's agent, loaded as `_load_agent_executor` of OpenRLHF loads it."""
    monkeypatch.setenv("DENSEPATH_URL", url)
    spec = importlib.util.spec_from_file_location("agent_module", EXAMPLES / "agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    agent: DensePathAgentExecutor = module.AgentExecutor()
    return agent


@pytest.mark.engine
@pytest.mark.timeout(1200)
async def test_a_rollout_gets_the_sum_by_the_url(
    demo: Demo, say_difference: Callable[[str, float], None]
) -> None:
    executor = SingleTurnAgentExecutor(f"{demo.url}/get_reward")
    tokenizer = AutoTokenizer.from_pretrained(demo.sft)
    prompt_ids, *response_ids = (ids(text, tokenizer) for text in (PROMPT, *RESPONSES))
    rollouts = [await roll_out(executor, each, tokenizer=tokenizer) for each in response_ids]
    with Client(demo.url) as client:
        items = [{"prompt_token_ids": prompt_ids, "response_token_ids": each} for each in response_ids]
        scores = client.score(items).items
    difference = max(abs(a["reward"][0] - b.sum) for a, b in zip(rollouts, scores, strict=True))
    say_difference("OpenRLHF's executor: reward against /v1/rewards", difference)
    assert difference <= 1e-5
    for rollout, score in zip(rollouts, scores, strict=True):
        assert rollout["scores"] == rollout["reward"]
        assert rollout["extra_logs"] == {
            "response_tokens": [float(len(score.reward_T))], "ended": [float(score.ended)],
        }  # fmt: skip


async def test_by_the_url_a_failure_is_no_number(tiny_service: str) -> None:
    """OpenRLHF cuts a long prompt on the left: what it asks about no longer begins with the prompt."""
    executor = SingleTurnAgentExecutor(f"{tiny_service}/get_reward")
    rollout = await roll_out(executor, ids(RESPONSES[0]), max_length=20)
    assert rollout["reward"] is None
    assert rollout["scores"] is None


async def test_the_agent_scores_the_ids_that_were_sampled(
    tiny_service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = load_agent(tiny_service, monkeypatch)
    response_ids = [id_ for letter in "the" for id_ in ids(letter)]  # no text is tokenised to these
    assert ids(make_tokenizer().decode(response_ids)) != response_ids
    for max_length in (256, 20):  # the second cuts the prompt
        rollout = await roll_out(agent, response_ids, max_length)
        prompt_ids = rollout["observation_tokens"][: rollout["action_ranges"][0][0]]
        with Client(tiny_service) as client:
            [score] = client.score([{"prompt_token_ids": prompt_ids, "response_token_ids": response_ids}])
        assert rollout["reward"] == rollout["scores"] == pytest.approx(score.sum, abs=1e-5)
        assert rollout["extra_logs"] == {"response_tokens": 3.0, "ended": 0.0}
    await agent.client.aclose()


async def test_the_agent_stops_where_there_is_no_score(
    tiny_service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = load_agent(tiny_service, monkeypatch)
    with pytest.raises(InvalidItemError, match="out of range"):
        await roll_out(agent, [99_999])
    with pytest.raises(InvalidItemError, match="images"):
        await agent.execute(PROMPT, "7", None, 256, make_tokenizer(), None, images=["a.png"])
    await agent.client.aclose()


async def test_another_tokenizer_is_refused_before_anything_is_sampled(
    tiny_service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = load_agent(tiny_service, monkeypatch)
    with pytest.raises(AlignmentError, match="load it from the directory of the served SFT checkpoint"):
        await roll_out(agent, [5], tokenizer=make_tokenizer(290))
    await agent.client.aclose()


def test_without_a_service_no_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from densepath.client import gate

    monkeypatch.setattr(gate, "_JITTER_SECONDS", 0.0)
    with pytest.raises(UnavailableError):
        load_agent(f"http://127.0.0.1:{free_port()}", monkeypatch)


def test_the_example_runs(tiny_pair: tuple[Path, Path], tiny_service: str) -> None:
    command = [
        sys.executable,
        str(EXAMPLES / "rollout.py"),
        "--url",
        tiny_service,
        "--sft",
        str(tiny_pair[0]),
    ]
    done = finish(command, env={"OMP_NUM_THREADS": "1"}, within=120)
    assert done.returncode == 0, done.stderr[-4000:]
    by_url, by_agent = (float(line.split()[2].strip("[],")) for line in done.stdout.splitlines()[-2:])
    assert by_url == pytest.approx(by_agent, abs=1e-5)

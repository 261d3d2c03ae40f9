"""The verified start, with transformers itself in the place of the engine, right or damaged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from densepath.api.app import create_app
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.commands.pairs import load_tokenizer
from densepath.config import Verify
from densepath.engine.scorer import Scored, View
from densepath.engine.transformers import TransformersScorer
from densepath.errors import EngineUnavailableError, InvalidPairError
from densepath.pair.pair import Pair, load_pair
from densepath.sequences import Sequence
from densepath.verification import oracle, start
from densepath.verification.oracle import OracleJob, ask_oracle
from densepath.verification.start import Verifier

CONTEXT = 200


class Engine(TransformersScorer):
    """Right, but for what `damage` does to a score."""

    def __init__(self, pair: Pair, damage: Callable[[Sequence, Scored], Scored] | None = None) -> None:
        super().__init__(pair.sft, pair.reference, context_length=CONTEXT)
        self._damage = damage
        self.scores = 0

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        self.scores += 1
        scored = self.score_now(sequence, view)
        return self._damage(sequence, scored) if self._damage else scored


@pytest.fixture(scope="module")
def pair(pair_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair(*pair_dirs, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oracle_once: None) -> list[str]:
    """What is said; the memory of verdicts is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return []


def verifier(pair: Pair, said: list[str], verify: Verify = Verify.AUTO, **arguments: Any) -> Verifier:
    arguments = {"max_model_len": CONTEXT, "max_num_batched_tokens": 128} | arguments
    return Verifier(pair, arguments, "a processor", cuda=False, verify=verify, say=said.append)


async def test_a_right_engine_is_verified_once(pair: Pair, said: list[str]) -> None:
    engine = Engine(pair)
    verdict = await verifier(pair, said)(engine)
    assert verdict.verified
    assert verdict.sft is not None
    assert verdict.sft.largest < 1e-5
    assert verdict.against is not None
    assert "float32" in verdict.against
    assert engine.scores == 4 * verdict.probes
    assert "verifying" in said[0]
    assert "verified against" in said[-1]

    again = Engine(pair)
    assert await verifier(pair, said)(again) == verdict
    assert again.scores == 0, "the cache knows it"
    for changed in (
        verifier(pair, said, block_size=16),
        verifier(replace(pair, version="0" * 32), said),
        replace(verifier(pair, said), device="another processor"),
    ):
        engine = Engine(pair)
        assert (await changed(engine)).verified
        assert engine.scores > 0, "another combination is verified anew"


def one_side_is_off(sequence: Sequence, scored: Scored) -> Scored:
    off = np.float32(0.5 if len(sequence.token_ids_L) > 100 else 0.0)
    return replace(scored, logp_reference_T=scored.logp_reference_T + off)


def nan(sequence: Sequence, scored: Scored) -> Scored:
    return replace(scored, logp_sft_T=scored.logp_sft_T * np.float32(np.nan))


def too_few(sequence: Sequence, scored: Scored) -> Scored:
    return replace(scored, logp_sft_T=scored.logp_sft_T[:-1])


def dies(sequence: Sequence, scored: Scored) -> Scored:
    raise EngineUnavailableError("the engine is not running")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (one_side_is_off, "the reference as transformers does: log p is off by up to 0.5 nats on"),
        (nan, "no finite log-probability of the sft on a short sequence"),
        (too_few, "no finite log-probability of the sft"),
        (dies, "the engine cannot score a short sequence: the engine is not running"),
    ],
)
async def test_a_wrong_engine_is_refused(damage: Any, words: str, pair: Pair, said: list[str]) -> None:
    for _ in range(2):  # a refusal is not remembered
        with pytest.raises(InvalidPairError, match=words) as refusal:
            await verifier(pair, said)(Engine(pair, damage))
        assert "\n" not in str(refusal.value)


async def test_a_tensor_that_transformers_lacks_is_never_drawn_at_random(
    dirs: tuple[Path, Path], pair: Pair, said: list[str]
) -> None:
    tensors = load_file(dirs[0] / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, dirs[0] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidPairError, match="q_proj"):
        await verifier(replace(pair, sft=dirs[0]), said)(Engine(pair))


async def test_what_takes_too_long_is_served_unverified_and_says_so(
    pair: Pair, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "AUTO_SECONDS", 0.0)
    engine = Engine(pair)
    verdict = await verifier(pair, said)(engine)
    assert not verdict.verified
    assert verdict.reason is not None
    assert "minutes" in verdict.reason
    assert "--verify always" in verdict.reason
    assert said[-1].startswith("not verified: ")
    assert engine.alive(), "the pair is served all the same"
    assert verdict.noise == 0.0, "it was held against itself"
    with pytest.raises(InvalidPairError, match="cannot score a short sequence"):
        await verifier(pair, said)(Engine(pair, dies))


async def test_transformers_that_take_longer_than_expected_are_ended(
    pair: Pair, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "LATE", 1e-6)
    probes = [probe.sequence for probe in verifier(pair, said).probes().probes]
    job = OracleJob((str(pair.sft),), (200_000,), (("float32",),), cuda=False, seconds=100.0)
    with pytest.raises(oracle.TooSlowError, match="took more than"):
        await ask_oracle(job, probes)


async def test_always_refuses_what_cannot_be_verified(
    pair: Pair, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: Any) -> Any:
        raise start.OracleError("transformers has no such architecture")

    monkeypatch.setattr(start, "ask_oracle", lost)
    verdict = await verifier(pair, said)(Engine(pair))
    assert verdict.reason == "transformers has no such architecture"
    with pytest.raises(
        InvalidPairError,
        match="cannot be verified, and --verify always requires it: transformers has no such",
    ):
        await verifier(pair, said, Verify.ALWAYS)(Engine(pair))


async def test_no_number_leaves_the_service_before_the_verdict(pair: Pair) -> None:
    loaded, verdict = asyncio.Event(), asyncio.Event()

    async def start_late(scorer: Any, say_loaded: Any) -> Any:
        await scorer.start()
        say_loaded()
        loaded.set()
        await verdict.wait()
        raise InvalidPairError("the engine does not compute the sft as transformers does")

    service = Service(Served(pair, load_tokenizer(pair), Engine(pair)), start_late)
    app = create_app(service, engine="vllm")
    starting = asyncio.ensure_future(service.lifecycle.start())
    item = {"prompt_token_ids": [1], "response_token_ids": [2]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://densepath") as client:
        await loaded.wait()

        async def all_refuse() -> None:
            assert (await client.get("/readyz")).status_code == 503
            answer = await client.post("/v1/rewards", json={"items": [item]})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_unavailable"
            for path in ("/v1/completions", "/get_reward", "/generate", "/inference/v1/generate"):
                assert (await client.post(path, json={})).status_code == 503
            assert (await client.get("/v1/pair")).json()["verified"]["verified"] is False

        await all_refuse()
        verdict.set()
        with pytest.raises(InvalidPairError):
            await starting
        await all_refuse()


def test_the_memory_bound_is_kept_layer_by_layer(pair: Pair, said: list[str], tmp_path: Path) -> None:
    """A model that does not fit passes through memory layer by layer, with the same numbers."""
    probes = verifier(pair, said).probes().probes[:3]
    job = OracleJob((str(pair.sft),), (200_000,), (("float32",),), cuda=False, seconds=None)
    sequences = [probe.sequence for probe in probes]
    whole = asyncio.run(ask_oracle(job, sequences))
    bounded = asyncio.run(ask_oracle(replace(job, memory_bytes=200_000), sequences))
    for one, other in zip(whole.models[0]["float32"], bounded.models[0]["float32"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    machine = oracle.free_memory(tmp_path)
    assert machine > 1 << 20
    (tmp_path / "memory.current").write_text("300\n")
    for limit, free in (("max\n", machine), ("1000\n", 700), ("200\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert oracle.free_memory(tmp_path) == pytest.approx(free, rel=0.5)
    (tmp_path / "memory.stat").write_text("file 250\ninactive_file 200\n")
    assert oracle.free_memory(tmp_path) == 100


async def test_a_large_pair_is_computed_before_the_engine_takes_its_memory(
    pair: Pair, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    ask = start.ask_oracle

    async def asked(*args: Any) -> Any:
        answer = await ask(*args)
        order.append("transformers")
        return answer

    class Watched(Engine):
        async def start(self) -> None:
            order.append("engine")
            await super().start()

    monkeypatch.setattr(start, "ask_oracle", asked)
    monkeypatch.setattr(start, "BESIDE_BYTES", 0)
    await verifier(pair, said)(Watched(pair))
    assert order == ["transformers", "engine"]


def test_a_broken_memory_is_no_verdict(tmp_path: Path) -> None:
    from densepath.verification.memory import recall

    for content in ("", "{", "[]", json.dumps({"verified": True}), json.dumps({"sft": None})):
        (tmp_path / "key.json").write_text(content)
        assert recall(tmp_path, "key") is None

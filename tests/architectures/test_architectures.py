"""Every architecture of the zoo is equal, fixed or refused in one sentence, and is what the page says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures.outcomes import PAGE, Outcome, read_record, render, write_record
from architectures.runner import start_all
from architectures.zoo import LEFT_OUT, SAMPLE, ZOO
from densepath.engine.vllm.environment import cpu_build

#: `make test-architectures` sets it: "all", or "write" to record what came of them. Else a part is run.
WHOLE = os.environ.get("ARCHITECTURES", "")
NAMES = list(ZOO) if WHOLE else SAMPLE
WRITE = WHOLE == "write"
#: Of float32 in another order of sums. Where a model's own error in float32 is larger, ROUGH has the bound.
TOLERANCE = 2e-5
ROUGH = {
    "Gemma 4 text": 5e-5,
    "Gemma 4": 1e-4,
    "Nemotron": 1e-4,
    # transformers' chunks of 64 and of 16 tokens differ by up to 1.2e-4 themselves.
    **dict.fromkeys(("Qwen3-Next", "Qwen3.5", "Qwen3.5 MoE"), 2e-4),
}


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """What comes of each architecture whose test is to run."""
    names = [item.callspec.params["name"] for item in request.session.items if is_of_matrix(item)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as many processes as cores run at once
        with start_all(names) as futures:
            yield futures


def is_of_matrix(item: Any) -> bool:
    return item.path.name == "test_architectures.py" and hasattr(item, "callspec")


@pytest.mark.engine
@pytest.mark.skipif(not cpu_build(), reason="the record is of vLLM's CPU build")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_architecture(
    name: str, found: dict[str, Future[Outcome]], say_difference: Callable[[str, float], None]
) -> None:
    outcome = found[name].result()
    if outcome.difference is not None and outcome.outcome != "refused":
        say_difference(f"{name}: {outcome.outcome}", outcome.difference)
    assert outcome.outcome in ("equal", "fixed", "refused"), outcome.sentence
    if outcome.outcome == "refused":
        assert is_one_sentence(outcome.sentence), outcome.sentence
    else:
        assert outcome.difference is not None
        assert outcome.difference <= ROUGH.get(name, TOLERANCE)
    if not WRITE:
        recorded = read_record()[name]
        hint = "the record and the page say otherwise: `make test-architectures WRITE=1` makes them anew"
        assert outcome.outcome == recorded.outcome, hint
        # A sentence with a measurement differs: uninitialised memory gives other numbers in each run.
        if outcome.difference is None:
            assert outcome.sentence == recorded.sentence, hint


def is_one_sentence(text: str) -> bool:
    return bool(text) and "\n" not in text and "Traceback" not in text and 'File "' not in text


if WRITE:

    @pytest.mark.timeout(900)
    def test_the_record_is_written(found: dict[str, Future[Outcome]]) -> None:
        write_record({name: future.result() for name, future in found.items()})


def test_the_page_is_the_record() -> None:
    assert PAGE.read_text(encoding="utf-8") == render()


def test_the_record_has_every_architecture() -> None:
    assert list(read_record()) == list(ZOO)


@pytest.mark.engine
def test_the_zoo_has_every_class_that_both_name() -> None:
    from vllm import ModelRegistry

    both = set(ModelRegistry.get_supported_archs()) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    classes = {specimen.class_name for specimen in ZOO.values()}
    assert both - classes == set(LEFT_OUT)
    assert len(both & classes) >= 45


def test_the_sample_is_a_third_with_every_kind() -> None:
    recorded = read_record()
    assert len(SAMPLE) <= len(ZOO) / 3
    assert {recorded[name].outcome for name in SAMPLE} == {each.outcome for each in recorded.values()}
    kinds = {kind for name in SAMPLE for kind in ZOO[name].kind.split(", ")}
    assert kinds >= {"dense", "sliding window", "rope variant", "MoE", "MLA", "hybrid", "alibi", "text half"}

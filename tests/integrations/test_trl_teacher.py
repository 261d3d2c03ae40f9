"""TRL's own client and its distillation trainer, unmodified, with the service as the teacher's server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densepath import Client
from integrations.trl_runs import CHATS
from live import Demo

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    from trl.import_utils import is_vllm_available

    warnings.filterwarnings("ignore", "You are importing from 'trl.experimental'", UserWarning)
    from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer
    from trl.generation.vllm_client import VLLMClient

    assert is_vllm_available()

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning"),
]

TOLERANCE = 1e-5
KL = 0.5  # the service's default for its teacher
WEIGHTS = {"sft": (1, 0), "reference": (0, 1), "dpr-teacher": (1 + 1 / KL, -1 / KL)}
ITEMS = [
    {"prompt_token_ids": [1, 7, 8, 9], "response_token_ids": [10, 11, 12, 2]},
    {"prompt_token_ids": [1, 20], "response_token_ids": [30]},
    {"prompt_token_ids": [1, 40, 41], "response_token_ids": [50, 51, 52, 53, 54]},
]


def teacher(model: str, url: str, items: list[dict[str, Any]]) -> list[np.ndarray]:
    """The model's log-probabilities of each response, by /v1/rewards."""
    with Client(url) as client:
        scores = client.score(items, include=("logprobs",))
    weights = WEIGHTS[model]
    return [
        weights[0] * np.asarray(score.logp_sft_T, np.float64)
        + weights[1] * np.asarray(score.logp_reference_T, np.float64)
        for score in scores
    ]


@pytest.fixture
def client(demo: Demo) -> Iterator[Any]:
    client = VLLMClient(base_url=demo.url)
    yield client
    client.session.close()


@pytest.mark.parametrize("model", ["sft", "reference", "dpr-teacher"])
@pytest.mark.parametrize("chunk_size", [0, 1])
def test_the_client_s_log_probabilities_are_those_of_the_rewards(
    model: str, chunk_size: int, client: Any, demo: Demo
) -> None:
    client.model = model
    answer = client.get_sequence_logprobs(
        sequences=[[*item["prompt_token_ids"], *item["response_token_ids"]] for item in ITEMS],
        prompt_lengths=[len(item["prompt_token_ids"]) for item in ITEMS],
        top_logprobs=5,
        chunk_size=chunk_size,
    )
    for row, expected_T in enumerate(teacher(model, demo.url, ITEMS)):
        actual_T = np.array(answer["actual_logprobs"][row])[:, 0]
        np.testing.assert_allclose(actual_T, expected_T, atol=TOLERANCE * sum(map(abs, WEIGHTS[model])))
        assert [ids[0] for ids in answer["actual_token_ids"][row]] == ITEMS[row]["response_token_ids"]
        top_T_K = np.array(answer["logprobs"][row])
        assert top_T_K.shape == (len(expected_T), 5)
        assert (np.diff(top_T_K, axis=1) <= 0).all()


def test_the_name_that_trl_takes_by_itself_is_refused_in_words(client: Any) -> None:
    with pytest.raises(Exception, match="`sft`, `reference`, `dpr-teacher`"):
        client.get_sequence_logprobs(sequences=[[1, 2, 3]], prompt_lengths=[1])


def test_a_distillation_run_learns_from_those_numbers(
    tiny_pair: tuple[Path, Path], tiny_service: str, tmp_path: Path
) -> None:
    seen: list[tuple[list[dict[str, Any]], list[np.ndarray]]] = []

    class Watched(ServerDistillationTrainer):  # type: ignore[misc]
        def _get_teacher_token_logprobs_from_server(self, inputs: Any, aligned_prompt_length: int) -> Any:
            result = super()._get_teacher_token_logprobs_from_server(inputs, aligned_prompt_length)
            items, logp_B = [], []
            for row, (ids, labels) in enumerate(zip(inputs["input_ids"], inputs["labels"], strict=True)):
                scored = labels != -100
                prompt = inputs["attention_mask"][row].bool() & ~scored
                items.append(
                    {
                        "prompt_token_ids": ids[prompt].tolist(),
                        "response_token_ids": ids[scored].tolist(),
                    }
                )
                at = scored.nonzero()[:, 0] - aligned_prompt_length  # they begin at the shortest prompt
                logp_B.append(result["actual_logprobs"][row, at].numpy())
            seen.append((items, logp_B))
            return result

    trainer = Watched(
        model=str(tiny_pair[0]),
        args=ServerDistillationConfig(
            output_dir=str(tmp_path),
            teacher_model_server_url=tiny_service,
            max_steps=2,
            per_device_train_batch_size=4,
            max_completion_length=10,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=CHATS,
    )
    trainer.teacher_client.model = "dpr-teacher"
    trainer.train()
    trainer.teacher_client.session.close()
    assert len(seen) == 2
    for items, logp_B in seen:
        for logp_T, expected_T in zip(logp_B, teacher("dpr-teacher", tiny_service, items), strict=True):
            np.testing.assert_allclose(logp_T, expected_T, atol=TOLERANCE)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert all(losses)

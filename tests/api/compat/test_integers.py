"""Integers that do not fit: an error in words on every route, never a 500."""

from __future__ import annotations

import pytest

from api.running import Running

ODD = ("-1", "320", "18446744073709551617", "-9223372036854775809", "9" * 300, "1e400", "NaN", "2.0", "true")
IDS = [
    ("/v1/completions", '{"model": "sft", "max_tokens": %d, "prompt_logprobs": 0, "prompt": [1, X]}'),
    ("/v1/completions", '{"model": "sft", "max_tokens": %d, "echo": true, "logprobs": 0, "prompt": [[X]]}'),
    ("/generate", '{"return_logprob": true, "sampling_params": {"max_new_tokens": %d}, "input_ids": [1, X]}'),
    (
        "/inference/v1/generate",
        '{"token_ids": [X], "sampling_params": {"max_tokens": %d, "prompt_logprobs": 0}}',
    ),
]
NUMBERS = [
    ("/v1/completions", '{"model": "sft", "max_tokens": X, "prompt_logprobs": 0, "prompt": [1, 2]}'),
    ("/v1/completions", '{"model": "sft", "max_tokens": 0, "prompt_logprobs": X, "prompt": [1, 2]}'),
    ("/v1/completions", '{"model": "sft", "max_tokens": 0, "echo": true, "logprobs": X, "prompt": [1, 2]}'),
    ("/v1/completions", '{"model": "sft", "max_tokens": 0, "prompt_logprobs": 0, "n": X, "prompt": [1, 2]}'),
    ("/generate", '{"return_logprob": true, "logprob_start_len": X, "input_ids": [1, 2], "sampling_params": '
     '{"max_new_tokens": 0}}'),
    ("/generate", '{"return_logprob": true, "top_logprobs_num": X, "input_ids": [1, 2], "sampling_params": '
     '{"max_new_tokens": 0}}'),
    ("/inference/v1/generate", '{"token_ids": [1], "sampling_params": '
     '{"max_tokens": 0, "prompt_logprobs": X}}'),
]  # fmt: skip
#: These fields change no score: any integer may stand there.
UNUSED = [
    ("/v1/completions", '{"model": "sft", "max_tokens": 0, "prompt_logprobs": 0, "prompt": [1], "seed": X}'),
    ("/generate", '{"return_logprob": true, "input_ids": [1, 2], "sampling_params": '
     '{"max_new_tokens": 0, "sampling_seed": X}}'),
]  # fmt: skip


def post(served: Running, path: str, content: str) -> int:
    headers = {"Content-Type": "application/json"}
    return served.client.post(path, content=content.encode(), headers=headers).status_code


@pytest.mark.parametrize("odd", ODD)
def test_row_12_what_is_no_number_of_its_kind_is_refused(odd: str, served: Running) -> None:
    bodies = [(path, form % following) for path, form in IDS for following in (0, 1)]
    bodies += [] if odd == "320" else NUMBERS
    for path, form in bodies:
        allowed = odd == "-1" and "logprob_start_len" in form  # SGLang's word for none
        assert post(served, path, form.replace("X", odd)) == (200 if allowed else 400), (path, form)
    if odd not in ("1e400", "NaN", "2.0", "true"):
        for path, form in UNUSED:
            assert post(served, path, form.replace("X", odd)) == 200, (path, form)
    served.idle()

"""A trainer's tokenizer and its samples against the service's, and the recipe for masks as it is written."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.running import Running, make_service, pair, running
from checkpoints import make_tokenizer
from densepath import Client
from densepath.config import Limits
from densepath.errors import InvalidItemError
from densepath.integrations.alignment import (
    AlignmentError,
    check_policy,
    check_sample,
    check_tokenizer,
    tokenizer_problems,
)
from densepath.pair.pair import Pair

__all__ = ["pair"]

RECIPE = Path(__file__).parents[2] / "docs/integrations/masks.md"
IDS, MASK = [1, 7, 8, 9, 10], [0, 0, 1, 0, 1]


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Running]:
    with running(make_service(pair, limits=Limits())) as service:
        yield service


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{served.port}") as client:
        yield client


@pytest.fixture
def tokenizer() -> Any:
    return copy.deepcopy(make_tokenizer())


def test_the_pair_s_own_tokenizer_is_right(
    client: Client, tokenizer: Any, pair_dirs: tuple[Path, Path]
) -> None:
    check_tokenizer(tokenizer, client)
    check_tokenizer(pair_dirs[0], client)
    check_tokenizer(str(pair_dirs[1]), client)


def test_how_a_trainer_pads_and_cuts_is_its_own_affair(client: Client, tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=4)
    check_tokenizer(tokenizer, client)
    tokenizer.pad_token = None
    check_tokenizer(tokenizer, client)


def test_a_token_that_was_added_to_pad_with_is_no_difference(client: Client, tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == 300
    check_tokenizer(tokenizer, client)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"]})
    with pytest.raises(AlignmentError, match="special tokens are not the pair's"):
        check_tokenizer(tokenizer, client)


def test_a_policy_s_own_chat_template_is_a_warning(client: Client, tokenizer: Any) -> None:
    pair = client.pair()
    check_policy(tokenizer, pair)
    tokenizer.chat_template += " "
    with pytest.warns(UserWarning, match="chat template: it is not the pair's"):
        check_policy(tokenizer, pair)
    with pytest.raises(AlignmentError, match="tokenizer: its vocabulary, merges"):
        check_policy(make_tokenizer(290), pair)


def test_another_vocabulary_is_named(client: Client) -> None:
    with pytest.raises(AlignmentError, match=r"tokenizer: its vocabulary, merges"):
        check_tokenizer(make_tokenizer(290), client)


def test_other_merges_of_the_same_size_are_named(client: Client, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    backend = json.loads(file.read_text())
    backend["model"]["merges"][-2:] = backend["model"]["merges"][:-3:-1]
    file.write_text(json.dumps(backend))
    (problem,) = tokenizer_problems(tmp_path, client.pair())
    assert problem.startswith("tokenizer: its vocabulary, merges or special tokens are not the pair's; load")


def test_another_chat_template_alone_is_named(client: Client, tokenizer: Any) -> None:
    tokenizer.chat_template += " "
    (problem,) = tokenizer_problems(tokenizer, client.pair())
    assert problem.startswith("chat template: it is not the pair's")
    tokenizer.chat_template = None
    (problem,) = tokenizer_problems(tokenizer, client.pair())
    assert problem.startswith("chat template: the tokenizer has none")
    (problem,) = tokenizer_problems(make_tokenizer(), client.pair() | {"chat_template_fingerprint": None})
    assert problem.startswith("chat template: the tokenizer has one, but the pair has none")


def test_another_eos_is_named_with_what_would_be_right(client: Client, tokenizer: Any) -> None:
    tokenizer.eos_token = "<|user|>"
    with pytest.raises(AlignmentError, match=r"EOS: the tokenizer has 4, but the pair has 2; set eos_token"):
        check_tokenizer(tokenizer, client)


def test_a_directory_without_a_tokenizer_is_named_without_its_path(client: Client, tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match=r"tokenizer: tokenizer\.json is missing") as caught:
        check_tokenizer(tmp_path, client)
    assert str(tmp_path) not in str(caught.value)


def test_a_sample_that_was_scored_as_it_is_is_right(client: Client) -> None:
    torch = pytest.importorskip("torch")
    score = client.score([{"token_ids": IDS, "response_mask": MASK}], include=("tokens",))[0]
    check_sample(IDS, MASK, score)
    check_sample(np.array(IDS), np.array(MASK, bool), score)
    check_sample(torch.tensor(IDS), torch.tensor(MASK), score)


def test_the_first_position_that_differs_is_named(client: Client) -> None:
    score = client.score([{"token_ids": IDS, "response_mask": MASK}], include=("tokens",))[0]
    with pytest.raises(AlignmentError, match=r"token_ids\[4\] is 11, but the service scored 10 there"):
        check_sample([1, 7, 8, 9, 11], MASK, score)
    with pytest.raises(AlignmentError, match="response_mask: it differs from"):
        check_sample(IDS, [0, 0, 1, 1, 1], score)
    with pytest.raises(InvalidItemError, match="include"):
        check_sample(IDS, MASK, client.score([{"token_ids": IDS, "response_mask": MASK}])[0])
    with pytest.raises(InvalidItemError, match="response_mask"):
        check_sample(IDS, MASK[:-1], score)


def test_a_chat_that_was_tokenised_again_is_found_out(client: Client, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "the sum"}]
    prompt = tokenizer.encode("<|user|>the sum<|end|><|assistant|>", add_special_tokens=False)
    words = tokenizer.encode("the answer", add_special_tokens=False)
    letters = [i for letter in "the answer" for i in tokenizer.encode(letter, add_special_tokens=False)]
    (score,) = client.score([{"messages": messages, "response": "the answer"}])
    assert score.response_token_ids is not None
    check_sample(prompt + words, [0] * len(prompt) + [1] * len(words), score)
    first = len(prompt) + next(
        i for i, pair in enumerate(zip(words, letters, strict=False)) if len({*pair}) > 1
    )
    with pytest.raises(AlignmentError, match=rf"token_ids\[{first}\] is .* never tokenise"):
        check_sample(prompt + letters, [0] * len(prompt) + [1] * len(letters), score)
    ended = [*prompt, *words, tokenizer.eos_token_id]
    with pytest.raises(
        AlignmentError, match=rf"has {len(words) + 1} tokens and the service scored {len(words)}"
    ):
        check_sample(ended, [0] * len(prompt) + [1] * (len(words) + 1), score)


def test_a_whole_conversation_is_held_to_the_service_s_tokens(client: Client) -> None:
    served = client.tokenize("the sum of two")
    check_sample(served, [0] + [1] * (len(served) - 1), served)
    with pytest.raises(AlignmentError, match=r"token_ids\[1\] is 7, but the service tokenised"):
        check_sample([served[0], 7, *served[2:]], [0] + [1] * (len(served) - 1), served)


def test_the_recipe_runs_as_it_is_written(served: Running) -> None:
    blocks = re.findall(r"(?m)(?:^    .*\n|^\n)+", RECIPE.read_text())
    (code,) = (block for block in blocks if "import" in block)
    code = re.sub(r"(?m)^    ", "", code).replace("http://127.0.0.1:8000", f"http://127.0.0.1:{served.port}")
    names: dict[str, Any] = {}
    exec(compile(code, RECIPE.name, "exec"), names)
    names["client"].close()
    assert sum(names["response_mask"]) == 7
    assert names["scores"][0].response_token_ids.tolist() == [89, 74, 2, 83, 90, 74, 2]
    assert len(names["reward_of_turns"]) == 2
    assert sum(names["reward_of_turns"]) == pytest.approx(names["scores"][0].sum, abs=1e-6)
    scored_L = names["reward_L"] != 0
    assert scored_L.tolist() == [bool(on) for on in names["response_mask"]]


def test_importing_it_loads_nothing_heavy() -> None:
    module = "densepath.integrations.alignment"
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

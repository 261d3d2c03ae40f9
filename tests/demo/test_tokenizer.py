"""The demo's tokenizer, as transformers loads it again."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from densepath.demo.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


@pytest.mark.parametrize(
    "text", ["reverse: planet", "  two  spaces\n\ttab", "don't , stop .", "naïve 漢字 🙂", "\x00\x7f", ""]
)
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_encoding_adds_bos_by_default(tokenizer):
    assert tokenizer("ab")["input_ids"] == [
        tokenizer.bos_token_id,
        *tokenizer("ab", add_special_tokens=False)["input_ids"],
    ]


def test_chat_template(tokenizer):
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "copy: ab"},
            {"role": "assistant", "content": "ab"},
            {"role": "user", "content": "upper: ab"},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert text == (
        "<|begin|><|user|>copy: ab<|end|><|assistant|>ab<|end|><|user|>upper: ab<|end|><|assistant|>"
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 3
    assert ids.count(tokenizer.convert_tokens_to_ids("<|assistant|>")) == 2


def test_special_tokens(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|begin|>",
        "<|end|>",
        "<|pad|>",
    )
    assert len(tokenizer) == 256 + 6 == max(tokenizer.get_vocab().values()) + 1

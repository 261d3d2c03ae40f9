"""Chats to text, held against vLLM's own parsing of the same messages, and what is refused."""

from __future__ import annotations

import copy
import inspect
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints import CHAT_TEMPLATE, make_tokenizer
from densepath.chat.content_format import takes_parts
from densepath.chat.render import conversation, render, text_of
from densepath.errors import InvalidItemError

PARTS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}[{{ part['text'] }}]{% endfor %}"
    "{% endif %}{% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
    "<|end|>{% endfor %}"
)
STRINGS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{% if message.tool_calls is defined %} calls{% endif %}<|end|>{% endfor %}"
)
#: What vLLM's rule follows, or stumbles over.
LOOPS = {
    "strings": STRINGS,
    "parts": PARTS,
    "shared": CHAT_TEMPLATE,
    "renamed": (
        "{% set all = messages[1:] %}"
        "{% for m in all %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}"
    ),
    "filtered": (
        "{% for m in messages | list %}{% for c in m['content'] | list %}{{ c }}{% endfor %}{% endfor %}"
    ),
    "named content": "{% set content = messages[0].content %}{% for c in content %}{{ c.text }}{% endfor %}",
    "macro": (
        "{% macro show(x) %}{% for c in x %}{{ c.text }}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ show(m.content) }}{% endfor %}"
    ),
    "macro by keyword": (
        "{% macro show(x) %}{% for c in x %}{{ c.text }}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ show(x=m.content) }}{% endfor %}"
    ),
    "macro of another": (
        "{% macro show(content) %}{% for c in content %}{{ c.text }}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ show(m.role) }}{% endfor %}"
    ),
    "another loop": "{% for m in messages %}{% for t in m.tool_calls %}{{ t }}{% endfor %}{% endfor %}",
    "by index": "{% for c in messages[0].content %}{{ c.text }}{% endfor %}",
    "namespace": (
        "{% set ns = namespace(all=[]) %}{% set ns.all = messages %}"
        "{% for m in ns.all %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}"
    ),
    "two targets": "{% for m in messages %}{% for a, b in m.content %}{{ a }}{% endfor %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "break": "{% for m in messages %}{% for c in m.content %}{{ c }}{% break %}{% endfor %}{% endfor %}",
    "broken": "{% for m in messages %}",
}
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"b": [1, 2], "a": "x"}'}}


def call(arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
    }


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": each} for each in texts]


CHATS: dict[str, list[dict[str, Any]]] = {
    "strings": [{"role": "system", "content": "a"}, {"role": "user", "content": ""}],
    "parts": [{"role": "user", "content": text("a", "", "b\nc")}],
    "no parts": [{"role": "user", "content": []}],
    "one part": [{"role": "system", "content": text("a")}, {"role": "user", "content": "b"}],
    "a tool's parts": [{"role": "tool", "tool_call_id": "1", "content": text("a", "", "b")}],
    "a call": [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "a call and no content": [{"role": "assistant", "tool_calls": [CALL]}],
    "a call and content": [{"role": "assistant", "content": text("a"), "tool_calls": [CALL, CALL]}],
    "no calls": [{"role": "assistant", "content": "a", "tool_calls": []}],
    "null calls": [{"role": "assistant", "content": "a", "tool_calls": None}],
    "arguments an object": [call({"a": 1})],
    "arguments null": [call(None)],
    "arguments empty": [call("")],
    "arguments no JSON": [call("{")],
    "arguments a list": [call("[1]")],
    "arguments a number": [call(3)],
}


def tokenizer(template: Any) -> Any:
    fast = copy.deepcopy(make_tokenizer())
    fast.chat_template = template
    return fast


def published() -> list[Path]:
    folders = [files("trl") / "chat_templates", files("vllm.transformers_utils") / "chat_templates"]
    return sorted(path for folder in folders for path in Path(str(folder)).glob("*.jinja"))


@pytest.mark.parametrize("name", LOOPS)
def test_which_templates_take_parts_is_vllm_s_rule(name: str) -> None:
    from vllm.renderers.hf import _detect_content_format

    expected = _detect_content_format(LOOPS[name], default="string") == "openai"
    assert takes_parts(LOOPS[name]) == expected
    assert takes_parts(PARTS)
    assert not takes_parts(STRINGS)


def test_published_templates_take_what_vllm_gives_them() -> None:
    from vllm.renderers.hf import _detect_content_format

    found = {path.name: takes_parts(path.read_text()) for path in published()}
    expected = {path.name: _detect_content_format(path.read_text(), default="string") for path in published()}
    assert found == {name: kind == "openai" for name, kind in expected.items()}
    assert len(found) > 10
    assert set(found.values()) == {True, False}


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("template", [STRINGS, PARTS], ids=["strings", "parts"])
def test_a_chat_is_rendered_as_vllm_renders_it(template: str, name: str) -> None:
    from vllm.renderers.chat_utils import parse_chat_messages

    fast, messages = tokenizer(template), CHATS[name]
    model: Any = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False)
    kind: Any = "openai" if takes_parts(template) else "string"
    theirs, _, _ = parse_chat_messages(copy.deepcopy(messages), model, kind)  # type: ignore[arg-type]
    before = copy.deepcopy(messages)
    assert render(fast, messages) == fast.apply_chat_template(
        theirs, tokenize=False, add_generation_prompt=True
    )
    assert messages == before, "the caller's messages stay as they are"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "null": ({"role": "user", "content": None}, "messages[1].content"),
    "absent": ({"role": "user"}, "messages[1].content"),
    "null of an assistant": ({"role": "assistant", "content": None}, "messages[1].content"),
    "null beside no calls": ({"role": "assistant", "content": None, "tool_calls": []}, "messages[1].content"),
    "a user's calls": ({"role": "user", "content": None, "tool_calls": [CALL]}, "messages[1].content"),
    "an object": ({"role": "user", "content": {"a": "c4n4ry"}}, "messages[1].content"),
    "a number": ({"role": "user", "content": 3}, "messages[1].content"),
    "an image": (
        {"role": "user", "content": [*text("a"), {"type": "image_url", "image_url": {"url": "c4n4ry"}}]},
        "messages[1].content[1]",
    ),
    "a plain string": ({"role": "user", "content": ["c4n4ry"]}, "messages[1].content[0]"),
    "a text of null": (
        {"role": "user", "content": [{"type": "text", "text": None}]},
        "messages[1].content[0]",
    ),
    "no type": ({"role": "user", "content": [{"text": "c4n4ry"}]}, "messages[1].content[0]"),
    "another type": (
        {"role": "user", "content": [{"type": "refusal", "refusal": "c4n4ry"}]},
        "messages[1].content[0]",
    ),
    "an image in a text": (
        {"role": "user", "content": [{"type": "text", "text": "a", "image_url": "c4n4ry"}]},
        "messages[1].content[0]",
    ),
    "calls an object": (
        {"role": "assistant", "content": "a", "tool_calls": {"a": 1}},
        "messages[1].tool_calls",
    ),
    "a call a string": (
        {"role": "assistant", "content": "a", "tool_calls": ["c4n4ry"]},
        "messages[1].tool_calls[0]",
    ),
    "a call of another type": (
        {"role": "assistant", "content": "a", "tool_calls": [CALL, {"type": "custom", "function": {}}]},
        "messages[1].tool_calls[1]",
    ),
}


def test_what_is_no_object_is_refused() -> None:
    for messages, variables, place in (
        (["c4n4ry"], None, "messages[0]"),
        ([], "c4n4ry", "chat_template_kwargs"),
    ):
        with pytest.raises(InvalidItemError) as refused:
            render(make_tokenizer(), messages, variables)  # type: ignore[arg-type]
        assert (refused.value.param, "c4n4ry" in refused.value.message) == (place, False)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("template", [STRINGS, PARTS], ids=["strings", "parts"])
def test_what_is_no_text_is_refused_where_it_stands(template: str, name: str) -> None:
    message, place = BAD[name]
    with pytest.raises(InvalidItemError) as refused:
        render(tokenizer(template), [{"role": "user", "content": "a"}, message])
    assert refused.value.param == place
    assert refused.value.message.startswith(place)
    assert "c4n4ry" not in refused.value.message


def test_fields_that_are_null_in_a_table_are_absent() -> None:
    parts = [{"type": "text", "text": "a", "image": None}, {"type": "text", "text": "b", "image": None}]
    assert text_of(parts, "content") == "a\nb"
    [message] = conversation([{"role": "user", "content": parts}], parts=True)
    assert message["content"] == text("a", "b")


VARIABLES = "{% if not enable_thinking | default(true) %}quick {% endif %}" + CHAT_TEMPLATE


def test_the_template_s_own_variables_reach_it() -> None:
    fast, messages = tokenizer(VARIABLES), [{"role": "user", "content": "a"}]
    plain = render(fast, messages)
    assert render(fast, messages, {"enable_thinking": False}) == "quick " + plain
    assert render(fast, messages, {"unknown": 1}) == plain, "as in vLLM"
    tools = [{"type": "function", "function": {"name": "f"}}]
    with_tools = tokenizer("{{ tools | tojson if tools else 'none' }}" + CHAT_TEMPLATE)
    assert render(with_tools, messages, {"tools": tools}).startswith('[{"type": "function"')
    assert render(with_tools, messages).startswith("none")


def reserved() -> list[str]:
    taken = set(inspect.signature(make_tokenizer().apply_chat_template).parameters)
    return sorted(taken - {"tools", "documents", "kwargs"} | {"messages", "conversations", "self"})


@pytest.mark.parametrize("name", reserved())
def test_what_the_caller_of_a_template_decides_is_refused(name: str) -> None:
    with pytest.raises(InvalidItemError, match=f"chat_template_kwargs has {name}") as refused:
        render(make_tokenizer(), [{"role": "user", "content": "a"}], {name: "c4n4ry"})
    assert refused.value.param == "chat_template_kwargs"


def test_some_arguments_are_known_to_be_the_caller_s() -> None:
    assert {"tokenize", "add_generation_prompt", "chat_template", "return_dict"} <= set(reserved())


SYSTEM_FIRST = "{{ raise_exception('no') if messages[0].role != 'system' }}" + CHAT_TEMPLATE
AT_FAULT = {
    "syntax": "{% for message in messages %}",
    "an unknown filter": "{{ messages | nothing }}",
    "undefined": "{{ settings.name }}" + CHAT_TEMPLATE,
    "a name of no method": "{{ messages[0].content.strip_all() }}",
    "several without a default": {"rag": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE},
    "refuses all": "{{ raise_exception('no ' + messages[0]['role']) }}",
}


@pytest.mark.parametrize("name", AT_FAULT)
def test_a_template_at_fault_is_named_and_not_the_messages(name: str) -> None:
    with pytest.raises(InvalidItemError, match="the pair's chat template fails on any chat") as refused:
        render(tokenizer(AT_FAULT[name]), [{"role": "user", "content": "c4n4ry"}])
    assert "c4n4ry" not in refused.value.message


def test_messages_at_fault_are_named() -> None:
    with pytest.raises(InvalidItemError, match="refuses these messages") as refused:
        render(tokenizer(SYSTEM_FIRST), [{"role": "user", "content": "c4n4ry"}])
    assert (refused.value.param, "c4n4ry" in refused.value.message) == ("messages", False)
    half = call('{"a": "\\ud800"}')  # which no tokenizer takes
    with pytest.raises(InvalidItemError, match="refuses these messages"):
        render(tokenizer(STRINGS), [half])


def test_variables_at_fault_are_named() -> None:
    fast = tokenizer("{{ 'a' + prefix | default('') }}" + CHAT_TEMPLATE)
    with pytest.raises(InvalidItemError, match="refuses these chat_template_kwargs") as refused:
        render(fast, [{"role": "user", "content": "a"}], {"prefix": 3})
    assert refused.value.param == "chat_template_kwargs"
    needs = tokenizer("{{ prefix + 'a' }}" + CHAT_TEMPLATE)
    assert render(needs, [{"role": "user", "content": "a"}], {"prefix": "b"}).startswith("ba")
    with pytest.raises(InvalidItemError, match="give what it needs as chat_template_kwargs"):
        render(needs, [{"role": "user", "content": "a"}])


def test_a_pair_without_a_template_says_so() -> None:
    with pytest.raises(InvalidItemError, match="no chat template"):
        render(tokenizer(None), [{"role": "user", "content": "a"}])

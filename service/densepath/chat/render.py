"""Renders conversations as text with the chat template, which gets contents and tool calls as in vLLM."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from densepath.chat.content_format import takes_parts
from densepath.errors import InvalidItemError

Message = Mapping[str, Any]

#: Plain chats. A template that works renders at least one of them; some require a system message first.
_PLAIN: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}],
)
#: Arguments of `apply_chat_template` that reach the template as they are.
_OF_THE_TEMPLATE = frozenset({"tools", "documents", "kwargs"})
#: Variables that transformers itself gives to the template.
_OF_TRANSFORMERS = frozenset({"conversations", "messages", "self"})


def conversation(messages: Sequence[Message], *, parts: bool) -> list[dict[str, Any]]:
    """The messages in the form that a template takes: contents as lists of parts with `parts`, or as strings.

    Raises:
        InvalidItemError: no template can take a content or a tool call; the message says where it is.
    """
    return [_message(message, f"messages[{at}]", parts) for at, message in enumerate(messages)]


def text_of(content: Any, place: str) -> str:
    """A content as one string: the text of each part on its own line, without empty ones, as in vLLM."""
    return "\n".join(filter(None, _texts(content, place)))


def render(
    fast_tokenizer: Any,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The messages as text, rendered with the chat template of a transformers tokenizer.

    Raises:
        InvalidItemError: the tokenizer has no template, or the messages or `template_kwargs` cannot be
            rendered. If the template fails on a plain chat too, the message reports that.
    """
    if fast_tokenizer.chat_template is None:
        raise InvalidItemError(
            "this pair's tokenizer has no chat template: send prompt and response, or token ids",
            param="messages",
        )
    if not isinstance(template_kwargs, (Mapping, type(None))):
        raise InvalidItemError(
            "chat_template_kwargs must be an object with the template's own variables",
            param="chat_template_kwargs",
        )
    given = dict(template_kwargs or {})
    _check_kwargs(fast_tokenizer, given)
    conversation(messages, parts=False)  # their errors are reported before the template runs
    try:
        return _apply(fast_tokenizer, messages, given, add_generation_prompt)
    except Exception as error:  # a template is a program: it may raise anything
        raise _blame(error, fast_tokenizer, messages, given, add_generation_prompt) from error


def _apply(fast_tokenizer: Any, messages: Sequence[Message], given: dict[str, Any], generation: bool) -> str:
    template = fast_tokenizer.get_chat_template(None, given.get("tools"))
    text = str(
        fast_tokenizer.apply_chat_template(
            conversation(messages, parts=takes_parts(template)),
            add_generation_prompt=generation,
            tokenize=False,
            **given,
        )
    )
    text.encode()  # raises if arguments of a tool call contain half of a surrogate pair
    return text


def _blame(
    error: Exception,
    fast_tokenizer: Any,
    messages: Sequence[Message],
    given: dict[str, Any],
    generation: bool,
) -> InvalidItemError:
    """The error of a failed rendering. If the template cannot render a plain chat either, it is at fault."""

    def renders(chat: Sequence[Message], variables: dict[str, Any]) -> bool:
        try:
            _apply(fast_tokenizer, chat, variables, generation)
        except Exception:  # as above
            return False
        return True

    kind = type(error).__name__
    if not any(renders(plain, variables) for plain in _PLAIN for variables in ({}, given)):
        return InvalidItemError(
            f"the pair's chat template fails on any chat ({kind}), so the messages are not at fault: fix "
            "the template of the served SFT checkpoint, give what it needs as chat_template_kwargs, or send "
            "token ids",
            param="messages",
        )
    if given and renders(messages, {}):
        return InvalidItemError(
            f"the chat template refuses these chat_template_kwargs ({kind}): check them against the model's "
            "template, which accepts the messages without them",
            param="chat_template_kwargs",
        )
    return InvalidItemError(
        f"the chat template refuses these messages ({kind}): check their roles and contents against the "
        "model's template",
        param="messages",
    )


def _check_kwargs(fast_tokenizer: Any, given: dict[str, Any]) -> None:
    arguments = frozenset(inspect.signature(fast_tokenizer.apply_chat_template).parameters)
    reserved = sorted(given.keys() & ((arguments | _OF_TRANSFORMERS) - _OF_THE_TEMPLATE))
    if reserved:
        raise InvalidItemError(
            f"chat_template_kwargs has {' and '.join(reserved)}, which the service sets itself: it can only "
            "hold the template's own variables",
            param="chat_template_kwargs",
        )


def _message(message: Any, place: str, parts: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidItemError(f"{place} must be an object with a role and a content", param=place)
    read, silent = dict(message), False
    if read.get("role") == "assistant":
        calls = _tool_calls(read.pop("tool_calls", None), f"{place}.tool_calls")
        if calls:
            read["tool_calls"] = calls
        silent = bool(calls) and read.get("content") is None
    content, place = [] if silent else read.get("content"), f"{place}.content"
    if not parts:
        read["content"] = text_of(content, place)
    elif read.get("role") == "tool":  # vLLM gives it as a string to both kinds of template
        read["content"] = "\n".join(_texts(content, place))
    else:
        read["content"] = [{"type": "text", "text": text} for text in _texts(content, place)]
    return read


def _texts(content: Any, place: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    if content is None:
        raise InvalidItemError(
            f"{place} is null: it must be a string or a list of parts of type text; only an assistant's "
            "message with tool calls may have a content of null",
            param=place,
        )
    if not isinstance(content, (list, tuple)):
        raise InvalidItemError(f"{place} must be a string, or a list of parts of type text", param=place)
    return [_text(part, f"{place}[{at}]") for at, part in enumerate(content)]


def _text(part: Any, place: str) -> str:
    # In a table, every part has the fields of all parts. Fields that a part lacks are null.
    fields = (
        {name: value for name, value in part.items() if value is not None}
        if isinstance(part, Mapping)
        else {}
    )
    if fields.keys() != {"type", "text"} or fields["type"] != "text" or not isinstance(fields["text"], str):
        raise InvalidItemError(
            f'{place} is not a text: a part must be {{"type": "text", "text": "…"}}, because the pair\'s '
            "models read nothing else",
            param=place,
        )
    return str(fields["text"])


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if calls is None:
        return []
    if not isinstance(calls, (list, tuple)):
        raise InvalidItemError(f"{place} must be a list of function calls", param=place)
    return [_tool_call(call, f"{place}[{at}]") for at, call in enumerate(calls)]


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise InvalidItemError(
            f"{place} is not a function call: it must have the type function, and a function with a name "
            "and arguments",
            param=place,
        )
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(given: Any) -> dict[str, Any]:
    """The arguments as an object. As in vLLM, anything else becomes an empty object."""
    if isinstance(given, str) and given:
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return {}
    return dict(given) if isinstance(given, Mapping) else {}

"""Whether a chat template loops over the parts of a content, or prints it as a string: vLLM's rule.

vLLM analyses the template. A template of the first kind always gets a list of parts, even if the content is a
string, and one of the second kind gets a string. A policy that samples in vLLM sees that prompt, so the
service must render the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from jinja2 import nodes


class _UnclearError(Exception):
    """The template assigns to something that vLLM's rule does not follow. Such a template gets strings."""


@lru_cache(maxsize=32)
def takes_parts(template: str) -> bool:
    """Whether the template has a loop over a message's content."""
    # transformers compiles with extensions and loop controls that have no public API.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        root = _compile_jinja_template(template).environment.parse(template)
        return _loops_over_content(root)
    except Exception:  # a template that cannot be parsed is refused when it is rendered
        return False


def _loops_over_content(root: nodes.Template) -> bool:
    messages = list(_message_names(root))
    parameters = _content_parameters(root, messages)
    for loop in root.find_all(nodes.For):
        name = loop.iter.name if isinstance(loop.iter, nodes.Name) else None
        # Outside of macros, vLLM treats any variable named `content` as a message's content.
        through = name in parameters[id(loop)] if id(loop) in parameters else name == "content"
        if through or any(_reads(loop.iter, message, "content") for message in messages):
            return isinstance(loop.target, nodes.Name)
    return False


def _content_parameters(root: nodes.Template, messages: list[str]) -> dict[int, set[str]]:
    """For each loop within a macro: the parameters of the macro that receive a message's content."""
    found: dict[int, set[str]] = {}
    for macro in root.find_all(nodes.Macro):
        names = [argument.name for argument in macro.args]
        given: set[str] = set()
        for call in root.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
                # A call may give more arguments than the macro has parameters.
                arguments = [*zip(names, call.args, strict=False)]
                arguments += [(each.key, each.value) for each in call.kwargs if each.key in names]
                given |= {
                    name
                    for name, value in arguments
                    if any(_reads(value, message, "content") for message in messages)
                }
        found |= {id(loop): given for loop in macro.find_all(nodes.For)}
    return found


def _message_names(root: nodes.Template) -> Iterator[str]:
    """The variables of the loops over the messages."""
    lists = _aliases(root, "messages")
    for loop in root.find_all(nodes.For):
        if any(_reads(loop.iter, name) for name in lists):
            yield _name(loop.target)


def _aliases(root: nodes.Template, variable: str) -> list[str]:
    """The variable, and all variables that are assigned from it."""
    names = [variable]
    for name in names:
        for assignment in root.find_all(nodes.Assign):
            if _reads(assignment.node, name) and (target := _name(assignment.target)) not in names:
                names.append(target)
    return names


def _name(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _UnclearError
    return target.name


def _reads(node: nodes.Node | None, variable: str, key: str | None = None) -> bool:
    """Whether an expression is the variable or its `key`, possibly filtered, tested or sliced."""
    if isinstance(node, (nodes.Filter, nodes.Test)):
        return _reads(node.node, variable, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _reads(node.node, variable, key)
    if key is None:
        return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == variable
    if isinstance(node, nodes.Getitem):
        named = isinstance(node.arg, nodes.Const) and node.arg.value == key
        return named and _reads_plainly(node.node, variable)
    return isinstance(node, nodes.Getattr) and node.attr == key and _reads_plainly(node.node, variable)


def _reads_plainly(node: nodes.Node, variable: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == variable

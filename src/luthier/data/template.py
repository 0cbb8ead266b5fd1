"""Chat templates, compiled as transformers compiles them, in a sandbox.

The environment follows ``transformers.utils.chat_template_utils``: what a template renders here must
equal, byte for byte, what ``tokenizer.apply_chat_template`` renders there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.schema.protocols import Message

_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""Names under which rows hold a turn's reasoning; templates read the first, gpt-oss the second."""


class _GenerationTag(jinja2.ext.Extension):
    """Lets ``{% generation %}`` through: the mask does not need it, so its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _DictMaker:
    """``dict`` for templates, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _teller(now: datetime | None) -> Callable[[str], str]:
    """``strftime_now`` for templates: the given moment, or the clock at each call."""

    def strftime_now(form: str) -> str:
        return (now or datetime.now()).strftime(form)

    return strftime_now


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates of models mean it: no HTML escapes, letters of all scripts as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def compile_template(source: str, *, now: datetime | None = None) -> jinja2.Template:
    """Compile a chat template. ``now`` is what ``strftime_now`` tells; the clock when not given.

    Raises jinja2.TemplateSyntaxError.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _teller(now)
    environment.globals["dict"] = _DictMaker()
    template = environment.from_string(source)
    # Looking through jinja2's chain of dicts takes longer than rendering a short chat.
    template.globals = dict(template.globals)
    return template


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copy messages for a template: keys whose value is None left out, reasoning under all its names."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        copy = {
            key: value if type(value) is str else _copy(value)
            for key, value in message.items()
            if value is not None
        }
        reasoning = next((copy[name] for name in _REASONING_NAMES if name in copy), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        plain.append(copy)
    return plain


def arguments_as_text(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the arguments of tool calls as JSON texts."""

    def call(one: dict[str, Any]) -> dict[str, Any]:
        function = one.get("function", {})
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {**one, "function": {**function, "arguments": text}}

    return [
        {**message, "tool_calls": [call(one) for one in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item) for item in value]
    return value

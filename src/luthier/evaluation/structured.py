"""What a model's answer says when it should be JSON, a number or a call of a tool.

Answers are untrusted text: parsing never raises, whatever stands in them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

DEEPEST = 64
"""Containers nested deeper than this are not read."""


class _Nothing:
    """Stands for "no JSON here", which is not the same as ``null``."""


NOTHING = _Nothing()


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def parse_json(text: str) -> Any:
    """The value of a text that is JSON and nothing else (RFC 8259: no NaN), or ``NOTHING``."""
    try:
        value = json.loads(text.strip(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOTHING
    return value if _depth_within(value, DEEPEST) else NOTHING


def _depth_within(value: Any, left: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    if left == 0:
        return False
    return all(_depth_within(v, left - 1) for v in (value.values() if isinstance(value, dict) else value))


def find_json(text: str) -> Any:
    """The whole text as JSON, or else the first object or list in it (prose or a code fence around it)."""
    whole = parse_json(text)
    if whole is not NOTHING:
        return whole
    decoder = json.JSONDecoder(parse_constant=_refuse)
    # Bounded, because a text of ten thousand braces would be tried at each of them.
    for start in [m.start() for m in re.finditer(r"[{\[]", text)][:200]:
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if value not in ({}, []) and _depth_within(value, DEEPEST):
            return value
    return NOTHING


def equal_json(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: key order is nothing, 1 is 1.0, and true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, bool) and isinstance(b, bool) and a == b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal_json(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal_json, a, b))
    return type(a) is type(b) and bool(a == b)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each field that holds no others, by path: ``customer.name``, ``items[0].sku``.

    Empty containers count as fields.
    """
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


def without_index(path: str) -> str:
    """``items[3].sku`` as ``items[].sku``: the same field of every element."""
    return re.sub(r"\[\d+\]", "[]", path)


def field_scores(expected: Any, answer: Any) -> dict[str, bool]:
    """Expected field path -> whether the answer has exactly that value there."""
    given = {} if answer is NOTHING else dict(leaves(answer))
    return {path: path in given and equal_json(value, given[path]) for path, value in leaves(expected)}


def field_f1(expected: Any, answer: Any) -> float:
    """F1 over (field, value) pairs, list order aside; missing, wrong and invented fields all cost."""
    wanted = [(without_index(p), v) for p, v in leaves(expected)]
    given = [] if answer is NOTHING else [(without_index(p), v) for p, v in leaves(answer)]
    found, rest = 0, list(given)
    for path, value in wanted:
        for i, (other, theirs) in enumerate(rest):
            if other == path and equal_json(value, theirs):
                found += 1
                del rest[i]
                break
    total = len(wanted) + len(given)
    return 2 * found / total if total else 1.0


# --- numbers ------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?")


def numeric_answer(text: str) -> Decimal | None:
    """The number after the last ``####`` (GSM8K's mark of the answer), else the last number in the text."""
    marked = text.rsplit("####", 1)
    found = _numbers(marked[1]) if len(marked) == 2 else []
    if found:
        return found[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[Decimal]:
    numbers = []
    for match in _NUMBER.finditer(text):
        word = match.group().replace(",", "").replace("$", "")
        # A dash between words or figures is no sign: "3-5" holds 3 and 5.
        if word[:1] == "-" and match.start() > 0 and text[match.start() - 1].isalnum():
            word = word[1:]
        if not any(c.isdigit() for c in word):
            continue
        try:
            numbers.append(Decimal(word))
        except InvalidOperation:
            continue
    return numbers


# --- calls of tools -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: the tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]

    def text(self) -> str:
        """As Hermes and Qwen templates write it."""
        body = json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"


def tool_call(value: Any) -> ToolCall | None:
    """A call from any of the usual JSON shapes, or None.

    ``{"name", "arguments" | "parameters"}`` and OpenAI's ``{"function": {"name", "arguments": "<json>"}}``.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    if not {"arguments", "parameters"} & value.keys():
        return None  # an object that merely has a name: a person, a product
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = parse_json(arguments) if arguments.strip() else {}
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def tool_calls(text: str) -> list[ToolCall]:
    """All calls in an answer: in ``<tool_call>`` tags, as JSON (alone, fenced) or as Python calls."""
    tagged = re.findall(r"<tool_call>(.*?)(?:</tool_call>|$)", text, flags=re.DOTALL)
    if tagged:
        found = [tool_call(parse_json(part)) for part in tagged]
        return [call for call in found if call is not None]
    bare = re.sub(r"^\s*(\[TOOL_CALLS\]|<\|python_tag\|>)", "", text).strip()
    fence = re.fullmatch(r"```\w*\n(.*?)\n?```", bare, flags=re.DOTALL)
    bare = fence.group(1) if fence else bare
    value = parse_json(bare)
    if value is NOTHING:
        # Several calls are sometimes written one a line, or parted by semicolons.
        parts = [parse_json(line) for line in re.split(r"[;\n]", bare) if line.strip()]
        value = parts if parts and NOTHING not in parts else NOTHING
    if value is NOTHING:
        return _python_calls(bare)
    calls = [tool_call(item) for item in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None]


def _python_calls(text: str) -> list[ToolCall]:
    """``[weather(city="Oslo"), ...]`` with literal keyword arguments; anything else is no call."""
    if not re.fullmatch(r"\[?\s*[A-Za-z_][\w.]*\(.*\)\s*\]?", text, flags=re.DOTALL) or len(text) > 20_000:
        return []
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        calls = []
        for node in nodes:
            if not isinstance(node, ast.Call) or node.args or any(k.arg is None for k in node.keywords):
                return []
            arguments = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            calls.append(ToolCall(ast.unparse(node.func), arguments))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return calls


def same_calls(expected: list[ToolCall], given: list[ToolCall]) -> bool:
    """Whether both are the same calls, in any order (parallel calls have none)."""
    rest = list(given)
    for call in expected:
        for i, other in enumerate(rest):
            if call.name == other.name and equal_json(call.arguments, other.arguments):
                del rest[i]
                break
        else:
            return False
    return not rest

r"""Paths and templates that take a text out of a row: ``answers.text[0]``, ``endings[label]``,
``"Context: {context}\n\n{question}"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from luthier.errors import DataError, did_you_mean

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")


class Missing(Exception):
    """A path leads nowhere in this row; ``args[0]`` says where it ended."""


def is_template(expression: str) -> bool:
    """Whether a mapping is a text with fields in braces rather than the name of a column."""
    return "{" in expression


def first_names(expression: str, columns: Iterable[str]) -> list[str]:
    """Column names that an expression starts from (indices such as ``label`` in ``endings[label]`` too)."""
    known = set(columns)
    if is_template(expression):
        fields = [match[1] for match in _FIELD.finditer(expression) if match[1] is not None]
        return [name for field in fields for name in first_names(field.strip(), known)]
    if expression in known:
        return [expression]
    steps = list(_STEP.finditer(expression))
    names = [steps[0][1] or steps[0][2]] if steps else [expression]
    for step in steps[1:]:
        index = step[2]
        if index is not None and not re.fullmatch(r"-?\d+", index):
            names.append(index.split(".")[0])
    return names


def check_expression(role: str, expression: str, columns: Iterable[str]) -> None:
    """Raise DataError, with the nearest name, where an expression starts from an unknown column."""
    known = list(dict.fromkeys(columns))
    for name in first_names(expression, known):
        if name not in known:
            near = did_you_mean(name, known)
            raise DataError(
                f"data.columns.{role}: the rows have no column {name!r}",
                hint=(f"{near} " if near else "") + f"Their columns are {', '.join(known)}",
            )


def value_at(value: dict[str, Any], path: str) -> Any:
    """Follow a path. ``[name]`` uses the row's own field ``name`` as the index. Raises Missing."""
    if path in value:
        return value[path]
    here: Any = value
    done = ""
    for step in _STEP.finditer(path):
        name, index = step[1], step[2]
        key: Any = name
        done += step[0]
        if index is not None:
            key = int(index) if re.fullmatch(r"-?\d+", index) else value_at(value, index)
            if not isinstance(key, (str, int)):
                raise Missing(f"{done}: {index or 'the row'} is no index")
        here = _into(here, key, done)
    return here


def _into(here: Any, key: Any, done: str) -> Any:
    if isinstance(here, dict):
        if key in here or str(key) in here:
            return here[key] if key in here else here[str(key)]
    elif isinstance(here, list):
        try:
            number = int(key)
        except (TypeError, ValueError):
            raise Missing(f"{done}: {key!r} is not a number") from None
        if -len(here) <= number < len(here):
            return here[number]
        raise Missing(f"{done}: the list has {len(here)} items")
    raise Missing(f"nothing at {done}")


def text_at(value: dict[str, Any], expression: str) -> str:
    """The text that a path or template gives for a row. Raises Missing."""
    if not is_template(expression):
        return as_text(value_at(value, expression))

    def fill(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        return as_text(value_at(value, match[1].strip()))

    return _FIELD.sub(fill, expression)


def as_text(value: Any) -> str:
    """Texts as they are, plain lists as lines, numbers, yes/no and objects as JSON."""
    if value is None:
        raise Missing("the value is null")
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    if isinstance(value, (int, float)):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)

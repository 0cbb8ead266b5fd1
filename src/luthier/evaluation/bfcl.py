"""Calls of tools against all answers that are accepted, as the Berkeley Function-Calling Leaderboard does.

A row's truth names for each call the values that every argument may have; ``""`` among them means that the
argument may be left out. Text is compared without case, spaces and ``, . / - _ * ^``. The rules are those of
its checker for Python (Patil et al. 2025), figure for figure (`benchmarks/proof/agreement.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluation.structured import ToolCall

Truth = Mapping[str, Mapping[str, Sequence[Any]]]
"""One call: the function's name -> argument -> accepted values."""

_KINDS: dict[str, type[Any]] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_SCHEMA_NAMES = {"float": "number", "dict": "object", "tuple": "array", "any": "string"}
_DROPPED = str.maketrans(dict.fromkeys(" ,./-_*^") | {"'": '"'})


def accepted(
    functions: Sequence[Mapping[str, Any]], calls: Sequence[ToolCall], truth: Sequence[Truth]
) -> bool:
    """Whether the calls are the expected ones, in any order; none where none is expected."""
    if len(calls) != len(truth):
        return False
    left = list(calls)
    for one in truth:
        [(name, arguments)] = one.items()
        description = next((f for f in functions if f["name"] == name), None)
        place = next(
            (
                place
                for place, call in enumerate(left)
                if description is not None and _fits(call, description, arguments)
            ),
            None,
        )
        if place is None:
            return False
        del left[place]
    return True


def _fits(call: ToolCall, description: Mapping[str, Any], truth: Mapping[str, Sequence[Any]]) -> bool:
    parameters = description["parameters"]
    given, known = call.arguments, parameters["properties"]
    if call.name != description["name"] or not set(parameters.get("required", ())) <= given.keys():
        return False
    if not given.keys() <= known.keys() & truth.keys():
        return False
    if any(name not in given and "" not in values for name, values in truth.items()):
        return False
    return all(_value_fits(value, known[name], truth[name]) for name, value in given.items())


def _value_fits(value: Any, schema: Mapping[str, Any], values: Sequence[Any]) -> bool:
    kind: type[Any] = _KINDS[schema["type"]]
    inner = _KINDS[schema["items"]["type"]] if schema["type"] in ("array", "tuple") else None
    if schema["type"] == "float" and type(value) is int:
        value = float(value)
    if schema["type"] == "tuple" and isinstance(value, tuple):
        value = list(value)
    first = _kind_of_first(values)
    # The name of a variable may stand where a value of another type is described.
    variable = first is not None and first is not kind
    if type(value) is kind:
        if inner is not None and not any(_elements_fit(value, inner, one) for one in values):
            return False
    elif type(value) is first:
        variable = True
    else:
        return False
    if variable:
        return value in values
    if isinstance(value, dict):
        return _object_fits(value, values)
    if isinstance(value, list):
        if inner is dict:
            return any(_objects_fit(value, one) for one in values)
        return [_plain(one) for one in value] in [[_plain(x) for x in one] for one in values]
    if isinstance(value, str):
        return _plain(value) in [_plain(one) for one in values if isinstance(one, str)]
    return value in values


def _kind_of_first(values: Sequence[Any]) -> type[Any] | None:
    return next((type(one) for one in values if one != ""), None)


def _elements_fit(value: Sequence[Any], inner: type, one: Any) -> bool:
    """Whether every element is of the described type, or of that of an accepted list."""
    if not isinstance(one, list):
        return True
    first = _kind_of_first(one)
    return all(type(element) is inner or (first is not None and type(element) is first) for element in value)


def _object_fits(value: Mapping[str, Any], values: Sequence[Any]) -> bool:
    """Whether an object is one of the accepted ones, each of whose fields has a list of values."""
    for one in values:
        if one == "":
            continue
        known = all(
            key in one and _plain(given) in [_plain(x) for x in one[key]] for key, given in value.items()
        )
        if known and all(key in value or "" in accepts for key, accepts in one.items()):
            return True
    return False


def _objects_fit(value: Sequence[Any], one: Any) -> bool:
    return len(value) == len(one) and all(
        isinstance(own, dict) and _object_fits(own, [other]) for own, other in zip(value, one, strict=True)
    )


def _plain(value: Any) -> Any:
    """A text without what does not matter; anything else as it is."""
    return value.translate(_DROPPED).lower() if isinstance(value, str) else value


def tools_of(functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Function descriptions with the leaderboard's type names as OpenAI's tools with JSON schemas."""
    return [
        {
            "type": "function",
            "function": {
                "name": one["name"],
                "description": one.get("description", ""),
                "parameters": _schema(one["parameters"]),
            },
        }
        for one in functions
    ]


def _schema(value: Any) -> Any:
    if isinstance(value, list):
        return [_schema(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _SCHEMA_NAMES.get(inner, inner) if key == "type" and isinstance(inner, str) else _schema(inner)
        for key, inner in value.items()
    }

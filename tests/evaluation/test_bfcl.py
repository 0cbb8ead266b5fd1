"""Calls that the leaderboard's rules accept, and those that they do not."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.evaluation.bfcl import accepted, tools_of
from luthier.evaluation.structured import ToolCall

FUNCTION: dict[str, Any] = {
    "name": "shop.order",
    "description": "Order things.",
    "parameters": {
        "type": "dict",
        "properties": {
            "item": {"type": "string"},
            "count": {"type": "integer"},
            "price": {"type": "float"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "address": {
                "type": "dict",
                "properties": {"city": {"type": "string"}, "zip": {"type": "string"}},
            },
            "lines": {"type": "array", "items": {"type": "dict"}},
            "gift": {"type": "boolean"},
        },
        "required": ["item", "count"],
    },
}
TRUTH: dict[str, list[Any]] = {
    "item": ["red lamp", "lamp"],
    "count": [2],
    "price": [10.0, ""],
    "tags": [["a", "B c"], ""],
    "address": [{"city": ["Oslo"], "zip": ["0150", ""]}, ""],
    "lines": [[{"sku": ["x-1"]}, {"sku": ["y"]}], ""],
    "gift": [True, ""],
}


def right(**arguments: Any) -> bool:
    call = ToolCall("shop.order", {"item": "lamp", "count": 2, **arguments})
    return accepted([FUNCTION], [call], [{"shop.order": TRUTH}])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"item": "Red-Lamp"},
        {"price": 10},
        {"price": 10.0},
        {"tags": ["A", "b_c"]},
        {"address": {"city": "oslo"}},
        {"address": {"city": "Oslo", "zip": "0150"}},
        {"lines": [{"sku": "X1"}, {"sku": "y"}]},
        {"gift": True},
    ],
)
def test_accepted(arguments: dict[str, Any]) -> None:
    assert right(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"item": "blue lamp"},
        {"item": 3},
        {"count": "2"},
        {"count": 2.0},
        {"price": 11},
        {"tags": ["b c", "a"]},
        {"tags": "a"},
        {"tags": ["a", 1]},
        {"address": {"zip": "0150"}},
        {"address": {"city": "Oslo", "street": "x"}},
        {"lines": [{"sku": "x1"}]},
        {"lines": ["x1", "y"]},
        {"gift": False},
        {"colour": "red"},
    ],
)
def test_not_accepted(arguments: dict[str, Any]) -> None:
    assert not right(**arguments)


def test_what_is_required_or_not_optional_must_be_there() -> None:
    assert not accepted([FUNCTION], [ToolCall("shop.order", {"item": "lamp"})], [{"shop.order": TRUTH}])
    strict = {**TRUTH, "gift": [True]}
    call = ToolCall("shop.order", {"item": "lamp", "count": 2})
    assert not accepted([FUNCTION], [call], [{"shop.order": strict}])


def test_calls_in_any_order_and_as_many_as_expected() -> None:
    one, two = ({**TRUTH, "count": [n]} for n in (1, 2))
    truth = [{"shop.order": one}, {"shop.order": two}]
    calls = [ToolCall("shop.order", {"item": "lamp", "count": n}) for n in (2, 1)]
    assert accepted([FUNCTION], calls, truth)
    assert not accepted([FUNCTION], calls[:1], truth)
    assert not accepted([FUNCTION], [*calls, calls[0]], truth)
    assert accepted([FUNCTION], [], [])
    assert not accepted([FUNCTION], calls[:1], [])
    assert not accepted([FUNCTION], [ToolCall("order", calls[0].arguments)], [{"shop.order": TRUTH}])


def test_tools_are_json_schemas() -> None:
    [tool] = tools_of([FUNCTION])
    parameters = tool["function"]["parameters"]
    assert parameters["type"] == "object"
    assert parameters["properties"]["price"]["type"] == "number"
    assert parameters["properties"]["lines"]["items"] == {"type": "object"}

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from luthier.evaluation.structured import (
    NOTHING,
    ToolCall,
    equal_json,
    field_f1,
    field_scores,
    find_json,
    leaves,
    numeric_answer,
    parse_json,
    same_calls,
    tool_calls,
)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a": NaN}', "{'a': 1}", '{"a": 1} and more', "```json\n{}\n```", "[" * 100_000, "9" * 5_000],
)
def test_what_is_not_json_alone_is_nothing(text: str) -> None:
    assert parse_json(text) is NOTHING


def test_null_is_a_value() -> None:
    assert parse_json(" null ") is None


def test_nesting_beyond_the_limit_is_not_read() -> None:
    assert parse_json("[" * 65 + "]" * 65) is NOTHING
    assert parse_json("[" * 64 + "]" * 64) is not NOTHING


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            'Sure! Here it is:\n```json\n{"name": "Ada", "age": 36}\n```\nAnything else?',
            {"name": "Ada", "age": 36},
        ),
        ('As [1] says: {"a": [1, 2]}', [1]),
        ('{} then {"a": 1}', {"a": 1}),
        ("no braces here", NOTHING),
        ("{" * 10_000, NOTHING),
    ],
)
def test_json_is_found_in_prose(text: str, value: object) -> None:
    assert find_json(text) == value


def test_equality_of_values() -> None:
    assert equal_json({"a": 1, "b": [1.0]}, {"b": [1], "a": 1.0})
    assert not equal_json(True, 1)
    assert not equal_json({"a": None}, {})
    assert not equal_json([1, 2], [2, 1])
    assert not equal_json("1", 1)


def test_leaves_of_nested_values() -> None:
    value = {"customer": {"name": "Ada"}, "items": [{"sku": "A"}, {"sku": "B"}], "notes": []}
    assert list(leaves(value)) == [
        ("customer.name", "Ada"),
        ("items[0].sku", "A"),
        ("items[1].sku", "B"),
        ("notes", []),
    ]


def test_field_scores_name_what_is_wrong() -> None:
    expected = {"name": "Ada", "qty": 3, "rush": False}
    assert field_scores(expected, {"name": "Ada", "qty": "3"}) == {"name": True, "qty": False, "rush": False}
    assert field_scores(expected, NOTHING) == {"name": False, "qty": False, "rush": False}


def test_field_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    expected, answer = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 9, "d": 3, "e": 4}
    precision, recall = 1 / 4, 1 / 3
    assert field_f1(expected, answer) == pytest.approx(2 * precision * recall / (precision + recall))
    assert field_f1({"x": [1, 2]}, {"x": [2, 1]}) == 1
    assert field_f1({"x": [1, 1]}, {"x": [1]}) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 1,234.50", "1234.50"),
        ("The answer is $10,000.", "10000"),
        ("It was -3 degrees", "-3"),
        ("between 3-5", "5"),
        ("about 1.5e3 units", "1500"),
        ("#### \\boxed{18}", "18"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: str | None) -> None:
    assert numeric_answer(text) == (None if number is None else Decimal(number))


CALL = ToolCall("weather", {"city": "Oslo", "days": 3})


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>',
        'I will look.\n<tool_call>{"name": "weather", "arguments": {"days": 3, "city": "Oslo"}}',
        '{"name": "weather", "parameters": {"city": "Oslo", "days": 3}}',
        '[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]',
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]',
        '```json\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n```',
        'weather(city="Oslo", days=3)',
        "[weather(city='Oslo', days=3)]",
        json.dumps(
            {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo","days":3}'}}
        ),
    ],
)
def test_calls_in_every_usual_shape(text: str) -> None:
    assert tool_calls(text) == [CALL]


@pytest.mark.parametrize(
    "text",
    [
        "It is sunny in Oslo.",
        "print(open('/etc/passwd').read())",
        '{"name": 3}',
        "<tool_call>{</tool_call>",
        "f(**x)",
        "(",
    ],
)
def test_what_is_no_call(text: str) -> None:
    assert tool_calls(text) == []


def test_calls_match_in_any_order_and_all_of_them() -> None:
    other = ToolCall("time", {})
    assert same_calls([CALL, other], [other, CALL])
    assert not same_calls([CALL], [CALL, CALL])
    assert not same_calls([CALL], [ToolCall("weather", {"city": "Oslo"})])
    assert same_calls([], [])


def test_an_object_with_a_name_is_no_call_of_a_tool():
    assert tool_calls('{"item":"rug","quantity":1,"name":"Ada","city":"Oslo"}') == []
    assert [c.name for c in tool_calls('{"name":"weather","arguments":{}}')] == ["weather"]

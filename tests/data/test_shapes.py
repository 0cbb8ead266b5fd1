"""Rows of any sane shape become conversations, and what is wrong with them is said."""

# ruff: noqa: E501 - rows stand as written
from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.columns import Missing, text_at
from luthier.data.read import RawRow
from luthier.data.shapes import detect, map_rows
from luthier.errors import DataError, LuthierError, RecipeError


def chats(*values: dict, **settings) -> list:
    rows = [RawRow(value, "rows.jsonl", line) for line, value in enumerate(values, 1)]
    return list(map_rows(rows, **settings)[1])


def turns(value: dict, **settings) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in chats(value, **settings)[0].messages]


QA = [("user", "Q?"), ("assistant", "A.")]
MESSAGES = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", {"messages": MESSAGES}),
        ("messages", {"id": 1, "conversation": MESSAGES}),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q?"}]}, MESSAGES[1]]},
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}),
        ("alpaca", {"instruction": "Q?", "input": "", "output": "A."}),
        ("prompt-completion", {"prompt": "Q?", "completion": "A."}),
        ("prompt-completion", {"Question": "Q?", "Answer": "A.", "id": 3}),
        ("input-output", {"input": "Q?", "output": "A."}),
    ],
)
def test_shapes_are_told(name: str, value: dict) -> None:
    assert turns(value) == QA
    assert detect([RawRow(value, "f", 1)]).name == name


def test_alpaca_input_system_prompts_and_text() -> None:
    assert turns({"instruction": "Add", "input": "1, 2", "output": "3"})[0] == ("user", "Add\n\n1, 2")
    assert turns({"prompt": "Q?", "completion": "A.", "system": "S"}) == [("system", "S"), *QA]
    assert turns({"prompt": "Q?", "completion": "A."}, system="D")[0] == ("system", "D")
    assert turns({"messages": [{"role": "developer", "content": "S"}, *MESSAGES]}, system="D")[0] == (
        "system",
        "S",
    )
    assert turns({"text": "Once"}) == [("text", "Once")]
    assert turns({"prompt": "Q?", "completion": {"b": 1, "a": "é"}})[1][1] == '{"b": 1, "a": "é"}'


def test_tools_and_calls_in_all_their_forms() -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    for calls in (
        [call],
        [{"function": call}],
        [{"type": "function", "function": {**call, "arguments": '{"x": 1}'}}],
    ):
        for tools in ([{"name": "f"}], json.dumps([{"type": "function", "function": {"name": "f"}}])):
            value = {
                "messages": [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": calls}],
                "tools": tools,
            }
            (chat,) = chats(value)
            assert chat.messages[1]["tool_calls"] == [{"type": "function", "function": call}]
            assert chat.messages[1]["content"] == ""
            assert chat.tools is not None
            assert chat.tools[0]["function"]["name"] == "f"
    shared = [
        {"from": "human", "value": "Q?"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "R"},
        {"from": "gpt", "value": "A."},
    ]
    (chat,) = chats({"conversations": shared})
    assert [m["role"] for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[1]["tool_calls"][0]["function"] == call


SQUAD = {
    "context": "C",
    "question": "Q",
    "answers": {"text": ["A", "B"], "answer_start": [1, 2]},
    "title": "T",
}
HELLASWAG = {"ctx": "X", "endings": ["a", "b", "c"], "label": 2, "ind": "1"}


def test_columns_map_nested_fields_and_templates() -> None:
    columns = {
        "prompt": "{context}\n\nQ: {question} {{as is}}",
        "completion": "answers.text[0]",
        "group": "title",
    }
    (chat,) = chats(SQUAD, columns=columns)
    assert [m["content"] for m in chat.messages] == ["C\n\nQ: Q {as is}", "A"]
    assert chat.group == "T"
    assert turns(HELLASWAG, columns={"user": "ctx", "assistant": "endings[label]"})[1][1] == "c"
    assert turns(HELLASWAG, columns={"text": "{ctx} {endings[-1]} {endings[ind]}"}) == [("text", "X c b")]
    assert (
        turns({"a.b": "Q?", "c d": ["A.", "B"]}, columns={"prompt": "a.b", "completion": "c d"})[1][1]
        == "A.\nB"
    )


@pytest.mark.parametrize(
    ("value", "columns", "error", "words", "hint"),
    [
        (SQUAD, {}, DataError, "cannot tell what the rows are", "answers.text[0]"),
        (HELLASWAG, {}, DataError, "cannot tell", "endings[label]"),
        ({"text": "t", "label": "x"}, {}, DataError, "cannot tell", "classification"),
        ({"anchor": "t", "positive": "x"}, {}, DataError, "cannot tell", "similarity"),
        (
            {"question": "t", "choices": ["x", "y"], "answer": 1},
            {},
            DataError,
            "cannot tell",
            "choices[answer]",
        ),
        (
            SQUAD,
            {"prompt": "question", "completion": "anwsers.text[0]"},
            DataError,
            "no column 'anwsers'",
            "answers?",
        ),
        (
            SQUAD,
            {"prompt": "{contxt} {question}", "completion": "title"},
            DataError,
            "no column 'contxt'",
            "context?",
        ),
        (SQUAD, {"promt": "question"}, RecipeError, "promt is not a role", "prompt"),
    ],
)
def test_unknown_shapes_and_names_are_refused_with_the_nearest(value, columns, error, words, hint) -> None:
    with pytest.raises(error, match=words) as caught:
        chats(value, columns=columns)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no messages"),
        ("hello", "not a list of messages"),
        ({"role": "user"}, "not a list of messages"),
        (["hi"], "message 1 is not an object"),
        ([MESSAGES[0]], "no assistant turn"),
        ([{"role": "wizard", "content": "x"}], "unknown role 'wizard'"),
        ([{"content": "x"}], "has no role"),
        ([MESSAGES[0], {"role": "system", "content": "x"}, MESSAGES[1]], "not the first message"),
        ([MESSAGES[0], {"role": "tool", "content": "x"}, MESSAGES[1]], "no assistant turn stands before"),
        ([MESSAGES[0], {"role": "assistant", "content": "  "}], r"message 2 \(assistant\) is empty"),
        ([{"role": "user", "content": ""}, MESSAGES[1]], r"message 1 \(user\) is empty"),
        ([MESSAGES[0], {"role": "assistant", "tool_calls": [{}]}], "a tool call has no name"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, MESSAGES[1]],
            r"holds an image \(image_url\)",
        ),
        ([{"role": "user", "content": "half \ud83d a letter"}, MESSAGES[1]], "half of a letter"),
    ],
)
def test_bad_conversations(messages, words) -> None:
    with pytest.raises(DataError, match=words) as caught:
        chats({"messages": MESSAGES}, {"messages": messages})
    assert caught.value.where == "rows.jsonl:2"


def test_all_bad_rows_come_in_one_error() -> None:
    bad = [{"prompt": "p", "completion": ""}, {"prompt": None, "completion": "c"}, {"completion": "c"}] * 3
    with pytest.raises(DataError) as caught:
        chats({"prompt": "p", "completion": "c"}, *bad)
    message = caught.value.message
    assert "9 rows cannot be used" in message
    assert "rows.jsonl:2: message 2 (assistant) is empty" in message
    assert "rows.jsonl:3: there is no prompt" in message
    assert "and 4 more" in message


def test_bad_rows_can_be_told_apart_instead() -> None:
    problems: list[LuthierError] = []
    kept = chats({"prompt": "p", "completion": "c"}, {"prompt": "p"}, on_problem=problems.append)
    assert (len(kept), len(problems)) == (1, 1)


def test_equal_rows_have_equal_ids() -> None:
    one, two, three = chats(
        {"messages": MESSAGES},
        {"conversation": MESSAGES, "messages": MESSAGES},
        {"messages": [*MESSAGES, *MESSAGES]},
    )
    assert one.id == two.id != three.id


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "text", "type", "tool_calls", "name", "function"]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip
KEYS = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "text", "tools", "instruction", "output"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(KEYS, JSON, max_size=4), min_size=1, max_size=4))
def test_no_row_is_lost_and_nothing_but_our_errors_is_raised(values: list[dict]) -> None:
    problems: list[LuthierError] = []
    try:
        kept = chats(*values, on_problem=problems.append)
    except LuthierError:
        return
    assert len(kept) + len(problems) == len(values)


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.text(alphabet="ab.[]{}0-", max_size=8))
def test_any_path_gives_a_text_or_says_that_it_leads_nowhere(value: dict, path: str) -> None:
    try:
        text = text_at(value, path)
    except Missing:
        return
    assert isinstance(text, str)

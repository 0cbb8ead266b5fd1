"""Rows of benchmarks in every form that they come in, examples, code in answers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import DataError, UsageError
from luthier.evaluation.benchmarks.judge import (
    choice_items,
    code_of,
    judge_by_answer,
    pose,
    read_rows,
)
from luthier.evaluation.benchmarks.numbers import flexible_number, same_number, strict_number
from luthier.evaluation.benchmarks.tasks import BENCHMARKS, benchmark
from luthier.schema.protocols import Generated, Message, Progress

MMLU = {"question": "Which?", "subject": "high_school_physics", "choices": ["a", "b", "c", "d"], "answer": 2}


def asked(name: str, row: dict[str, Any]) -> Any:
    return BENCHMARKS[name].read(row)


def rows(name: str, *values: dict[str, Any]) -> Any:
    return read_rows(BENCHMARKS[name], [(value, "rows.jsonl", n) for n, value in enumerate(values, 1)])


class Says:
    """Answers each question with the text that stands for it, the commonest last."""

    label, weights_digest = "says", ""

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.chats: list[list[Message]] = []
        self.tools: list[list[dict[str, Any]]] = []

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        del max_new_tokens, progress
        self.chats = [list(chat) for chat in chats]
        self.tools = [list(one or ()) for one in tools or ()]
        given = {
            chat[-1]["content"]: i
            for i, chat in enumerate(sorted(self.chats, key=lambda c: c[-1]["content"]))
        }
        return [Generated(self.answers[given[chat[-1]["content"]]], (), True) for chat in self.chats]


def test_both_forms_of_arc_are_one_question() -> None:
    ours = asked("arc", {"question": "Q", "choices": ["x", "y", "z"], "answer": 1})
    hub = asked(
        "arc",
        {"question": "Q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    )
    assert ours == hub
    assert hub.text == "Question: Q\nAnswer:"


@pytest.mark.parametrize("answer", [2, "2", "C", "c"])
def test_an_answer_is_an_index_or_a_letter(answer: object) -> None:
    assert asked("mmlu", {**MMLU, "answer": answer}).right == 2


@pytest.mark.parametrize("answer", [4, -1, True, None, "E", "none"])
def test_an_answer_outside_the_choices_is_refused_with_its_line(answer: object) -> None:
    with pytest.raises(DataError) as caught:
        rows("mmlu", MMLU, {**MMLU, "answer": answer})
    assert caught.value.line == 2


def test_truthfulqa_without_choices_is_left_out_and_counted() -> None:
    good = {"question": "Q?", "mc1_targets": {"yes": 0, "no": 1}}
    found, left = rows("truthfulqa", good, {"question": "R?", "mc1_targets": None})
    assert (len(found), left) == (1, 1)
    assert found[0].asked.right == 1


def test_marks_of_wikihow_go() -> None:
    row = {
        "activity_label": "Baking", "ctx_a": "[header] Bake [title] Mix.", "ctx_b": "then", "label": "1",
        "endings": ["a [step] b", "c  d", "e", "f"],
    }  # fmt: skip
    found = asked("hellaswag", row)
    assert found.text == "Baking: Bake. Mix. Then"
    assert found.choices[:2] == ("a b", "c d")


def test_examples_are_of_the_subject_and_never_judged() -> None:
    physics = [{**MMLU, "question": f"P{n}?"} for n in range(4)]
    other = [{**MMLU, "question": f"B{n}?", "subject": "biology"} for n in range(2)]
    judged, _ = rows("mmlu", physics[0], other[0])
    shown, _ = rows("mmlu", *physics, *other)
    posed = pose(BENCHMARKS["mmlu"], judged, shown, 1)
    first, second = choice_items(posed)
    assert "P1?" in first.context
    assert "B" not in first.context.split("P0?")[0].split("\n\n")[1].split("\n")[0]
    assert first.context.startswith(
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
    )
    assert first.context.count("P0?") == 1
    assert "B1?" in second.context
    assert "P" not in second.context.replace("P.", "").split("biology.")[1]
    with pytest.raises(DataError, match="2 examples"):
        pose(BENCHMARKS["mmlu"], judged, shown, 2)


def test_numbers_are_compared_and_examples_are_earlier_turns() -> None:
    lines = [{"question": f"q{n}", "answer": f"<<1+{n}={n + 1}>>so {n + 1}\n#### {n + 1}"} for n in range(4)]
    read, _ = rows("gsm8k", *lines)
    says = Says("it is 3", "I think\n#### 5")
    posed = pose(BENCHMARKS["gsm8k"], read[2:], read[:2], 2)
    result = judge_by_answer(says, posed, chat=True)
    assert [row.scores["numeric_exact"] for row in result.rows] == [1.0, 0.0]
    assert [m["role"] for m in says.chats[0]] == ["user", "assistant"] * 2 + ["user"]
    assert "<<" not in says.chats[0][1]["content"]


def test_numbers_of_a_plain_text_end_at_the_next_question() -> None:
    lines = [{"question": f"q{n}", "answer": f"<<1+{n}={n + 1}>>so {n + 1}\n#### 1,00{n}"} for n in range(5)]
    read, _ = rows("gsm8k", *lines)
    says = Says(
        " so\n#### 1002\n\nQuestion: and?\nAnswer: 7\n#### 7", " it is $1,004.", "#### 1,003\n#### 1,004"
    )
    posed = pose(BENCHMARKS["gsm8k"], [read[3], read[4], read[2]], read[:2], 2)
    result = judge_by_answer(says, posed)
    # The answers belong to q2, q3 and q4: the one that sorts first is asked for q2.
    scores = {
        row.prompt[10:12]: (row.scores["strict_match"], row.scores["flexible_match"]) for row in result.rows
    }
    assert scores == {"q2": (1.0, 1.0), "q3": (0.0, 0.0), "q4": (0.0, 1.0)}
    assert result.primary == "strict_match"
    [chat] = [chat for chat in says.chats if "q3" in chat[0]["content"]]
    assert chat == [
        {
            "role": "text",
            "content": "Question: q0\nAnswer: <<1+0=1>>so 1\n#### 1,000\n\n"
            "Question: q1\nAnswer: <<1+1=2>>so 2\n#### 1,001\n\nQuestion: q3\nAnswer:",
        }
    ]


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("so\n#### 72", "72", "72"),
        ("#### 1,200.", "1,200.", "1,200."),
        ("it costs $3.50 and", None, "$3.50"),
        ("#### -4 and #### 5", "-4", "5"),
        ("no number", None, None),
        ("1 or 2", None, "2"),
    ],
)
def test_both_ways_to_read_a_number(answer: str, strict: str | None, flexible: str | None) -> None:
    assert (strict_number(answer), flexible_number(answer)) == (strict, flexible)


def test_numbers_are_alike_whatever_the_commas() -> None:
    assert same_number("so much\n#### 1,200", "$1200.")
    assert not same_number("#### 1200", "1200.0")
    assert not same_number("#### 1200", None)


MBPP = {
    "text": "add",
    "code": "def f(a): return a + 1",
    "test_list": ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"],
}


def test_code_passes_only_with_all_its_tests() -> None:
    read, _ = rows("mbpp", *({**MBPP, "text": name} for name in ("a", "b", "c", "d")))
    says = Says(
        "Here:\n```python\ndef f(a):\n    return a + 1\n```\nGood?",
        "def f(a): return 2",
        "import os; os._exit(0)",
        "```\nbroken(\n```",
    )
    result = judge_by_answer(says, pose(BENCHMARKS["mbpp"], read, [], 0), chat=True)
    assert [row.scores["pass"] for row in result.rows] == [1.0, 0.0, 0.0, 0.0]
    assert result.primary == "pass"
    assert result.metrics["pass"].value == 0.25
    assert "AssertionError" in result.rows[1].answer


def test_plain_code_ends_where_the_examples_end() -> None:
    read, _ = rows("mbpp", *({**MBPP, "text": name} for name in ("a", "b", "c")))
    says = Says("def f(a): return a + 1\n[DONE]\nnonsense (", "```python\ndef f(a): return a + 1\n```")
    result = judge_by_answer(says, pose(BENCHMARKS["mbpp"], read[1:], read[:1], 1))
    assert [row.scores["pass"] for row in result.rows] == [1.0, 0.0]
    assert says.chats[0][0]["content"] == (
        "You are an expert Python programmer, and here is your task: a Your code should pass these tests:\n\n"
        "assert f(1) == 2\nassert f(2) == 3\nassert f(3) == 4\n[BEGIN]\ndef f(a): return a + 1\n[DONE]\n\n"
        "You are an expert Python programmer, and here is your task: b Your code should pass these tests:\n\n"
        "assert f(1) == 2\nassert f(2) == 3\nassert f(3) == 4\n[BEGIN]\n"
    )


def test_calls_are_asked_with_tools_and_judged_by_what_is_accepted() -> None:
    function = {
        "name": "area",
        "description": "Area of a circle.",
        "parameters": {"type": "dict", "properties": {"r": {"type": "float"}}, "required": ["r"]},
    }
    turns = [{"role": "user", "content": f"Area for {n}?"} for n in (1, 2, 3)]
    lines = [
        {"messages": [turn], "functions": [function], "ground_truth": [{"area": {"r": [float(n)]}}]}
        for n, turn in enumerate(turns, 1)
    ]
    lines[2]["ground_truth"] = []
    read, _ = rows("bfcl", *lines)
    says = Says('{"name": "area", "arguments": {"r": 1}}', "area(r=3.0)", "There is nothing to call.")
    result = judge_by_answer(says, pose(BENCHMARKS["bfcl"], read, [], 0))
    assert [row.scores["calls_accepted"] for row in result.rows] == [1.0, 0.0, 1.0]
    assert says.tools[0][0]["function"]["parameters"]["properties"] == {"r": {"type": "number"}}


class Writes:
    """Goes on with one text to whatever length it is asked for, one word a token."""

    label, weights_digest = "writes", ""

    def __init__(self, text: str) -> None:
        self.words, self.lengths = text.split(" "), list[int]()

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        del tools, progress
        self.lengths.append(max_new_tokens)
        text = " ".join(self.words[:max_new_tokens])
        return [Generated(text, (), max_new_tokens > len(self.words)) for _ in chats]


@pytest.mark.parametrize(("place", "lengths"), [(5, [128]), (200, [128, 256]), (700, [128, 256, 512, 1024])])
def test_long_answers_are_asked_for_only_where_no_stop_has_come(place: int, lengths: list[int]) -> None:
    words = ["#"] * 2_000
    words[place] = "\ndef"
    writes = Writes(" ".join(words))
    read, _ = rows("humaneval", humaneval()[0])
    result = judge_by_answer(writes, pose(BENCHMARKS["humaneval"], read, [], 0))
    assert writes.lengths == lengths
    assert result.rows[0].answer.split("\n\n[")[0].count("#") == place


def humaneval() -> list[dict[str, Any]]:
    path = Path(__file__).parent / "benchmark_rows" / "humaneval" / "test.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_solutions_of_humaneval_rows_pass_and_others_do_not() -> None:
    values = humaneval()
    read, _ = rows("humaneval", *values)
    posed = pose(BENCHMARKS["humaneval"], read, [], 0)
    by_prompt = sorted(values, key=lambda value: value["prompt"])
    right = Says(*(value["canonical_solution"] + "\n\ndef more(" for value in by_prompt))
    assert {row.scores["pass"] for row in judge_by_answer(right, posed).rows} == {1.0}
    assert {chat[0]["content"] for chat in right.chats} == {value["prompt"] for value in values}
    wrong = Says(*("    return None\n" for _ in values))
    assert {row.scores["pass"] for row in judge_by_answer(wrong, posed).rows} == {0.0}


@pytest.mark.parametrize(
    "answer",
    [
        "Here:\n```python\n{prompt}{solution}\n```\nIt adds.",
        "```python\n{solution}\n```",
        "```python\ndef {entry}(*given):\n    return reference(*given)\n\n{reference}\n```",
    ],
)
def test_a_chat_may_write_the_whole_function_or_its_body(answer: str) -> None:
    value = humaneval()[0]
    read, _ = rows("humaneval", value)
    reference = f"{value['prompt']}{value['canonical_solution']}".replace(
        f"def {value['entry_point']}(", "def reference("
    )
    said = answer.format(
        prompt=value["prompt"],
        solution=value["canonical_solution"],
        entry=value["entry_point"],
        reference=reference,
    )
    result = judge_by_answer(Says(said), pose(BENCHMARKS["humaneval"], read, [], 0), chat=True)
    assert result.metrics["pass"].value == 1.0


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Sure!\n```py\nx = 1\n", "x = 1"),
        ("x = 1", "x = 1"),
        ("<think>```python\ny\n```</think>```\nx = 1\n```", "x = 1\n"),
    ],
)
def test_code_is_found_in_an_answer(answer: str, code: str) -> None:
    assert code_of(answer) == code


def test_an_unknown_benchmark_is_told_with_its_neighbours() -> None:
    with pytest.raises(UsageError) as caught:
        benchmark("helaswag")
    assert "hellaswag" in str(caught.value.hint)


def test_the_rows_of_the_tests_can_be_read() -> None:
    folder = Path(__file__).parent / "benchmark_rows"
    for path in folder.glob("*/*.jsonl"):
        values = [json.loads(line) for line in path.read_text().splitlines()]
        found, left = rows(path.parent.name, *values)
        assert (len(found), left) == (len(values), 0)

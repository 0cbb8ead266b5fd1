from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import DataError, UsageError
from luthier.evaluation.compare import compare, row_changes, slices
from luthier.evaluation.generation import evaluate, questions
from luthier.schema.protocols import ChatRow, Generated, Message, Progress


class Parrot:
    """Answers by a table; counts what it is asked."""

    def __init__(self, answers: dict[str, str], digest: str = "w1", label: str = "base") -> None:
        self.answers, self.weights_digest, self.label, self.asked = answers, digest, label, 0

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        found = []
        for i, chat in enumerate(chats):
            self.asked += 1
            text = self.answers.get(chat[-1]["content"], "?")
            found.append(Generated(text[:max_new_tokens], (1, 2), len(text) <= max_new_tokens))
            if progress is not None:
                progress(i + 1, len(chats))
        return found


def row(n: int, prompt: str, answer: str, group: str | None = None) -> ChatRow:
    messages = [
        {"role": "system", "content": "Answer in JSON."},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]
    return ChatRow(messages=messages, file="test.jsonl", line=n, id=f"id{n}", group=group)


ROWS = [row(i, f"order {i}", json.dumps({"qty": i, "sku": f"S{i}"})) for i in range(1, 41)]
RIGHT = {f"order {i}": json.dumps({"qty": i, "sku": f"S{i}"}) for i in range(1, 41)}
HALF = {f"order {i}": json.dumps({"qty": i, "sku": "?"}) for i in range(1, 41)}


def test_rows_are_answered_and_scored() -> None:
    told: list[tuple[int, int]] = []
    result = evaluate(
        Parrot(HALF), ROWS, split="test", max_new_tokens=64, progress=lambda d, t: told.append((d, t))
    )
    assert result.primary == "field_exact"
    assert result.metrics["field_exact"].value == 0.5
    assert result.metrics["json_valid"].value == 1
    assert result.metrics["json_exact"].value == 0
    assert list(result.fields) == ["qty", "sku"]
    assert (result.fields["qty"].value, result.fields["sku"].value) == (1, 0)
    assert [r.id for r in result.rows] == [r.id for r in ROWS]
    assert result.rows[0].prompt == "order 1"
    assert "JSON" in result.reason
    assert told[-1] == (40, 40)
    assert [d for d, _ in told] == sorted(d for d, _ in told)


def test_nothing_is_generated_twice(tmp_path: Path) -> None:
    model = Parrot(HALF)
    first = evaluate(model, ROWS, split="test", max_new_tokens=64, cache_dir=tmp_path)
    again = evaluate(model, ROWS, split="test", max_new_tokens=64, cache_dir=tmp_path)
    assert model.asked == 40
    assert (first.cached, again.cached) == (0, 40)
    assert again.rows == first.rows
    evaluate(model, ROWS, split="test", max_new_tokens=32, cache_dir=tmp_path)
    assert model.asked == 80
    tuned = Parrot(RIGHT, digest="w2")
    assert evaluate(tuned, ROWS, split="test", max_new_tokens=64, cache_dir=tmp_path).cached == 0


def test_weights_without_a_digest_are_never_cached(tmp_path: Path) -> None:
    model = Parrot(HALF, digest="")
    for _ in range(2):
        evaluate(model, ROWS, split="test", max_new_tokens=64, cache_dir=tmp_path)
    assert model.asked == 80


def test_a_torn_cache_loses_one_answer_only(tmp_path: Path) -> None:
    model = Parrot(HALF)
    first = evaluate(model, ROWS, split="test", max_new_tokens=64, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    again = evaluate(model, ROWS, split="test", max_new_tokens=64, cache_dir=tmp_path)
    assert (model.asked, again.cached) == (41, 39)
    assert again.rows == first.rows
    evaluate(model, ROWS, split="test", max_new_tokens=64, cache_dir=tmp_path)
    assert model.asked == 41


def test_the_last_assistant_turn_is_expected_and_tools_are_text() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    chat = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": [{"type": "text", "text": "second"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": "never seen"},
    ]
    (found,) = questions([ChatRow(messages=chat, file="f", line=1, id="x")])
    assert found.prompt == "second"
    assert len(found.chat) == 3
    assert found.expected == '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hello"}],
        [{"role": "assistant", "content": "hello"}],
        [{"role": "system", "content": "x"}, {"role": "assistant", "content": "hello"}],
    ],
)
def test_a_row_without_an_answer_names_its_line(messages: list[Message]) -> None:
    with pytest.raises(DataError) as caught:
        evaluate(
            Parrot({}),
            [ChatRow(messages=messages, file="test.jsonl", line=7, id="x")],
            split="test",
            max_new_tokens=8,
        )
    assert caught.value.where == "test.jsonl:7"
    assert caught.value.hint


def test_no_rows_is_an_error() -> None:
    with pytest.raises(DataError):
        evaluate(Parrot({}), [], split="test", max_new_tokens=8)


def test_a_row_that_stands_twice_counts_once() -> None:
    twins = [row(1, "order 1", RIGHT["order 1"]), *ROWS]
    found = questions(twins)
    assert len({q.id for q in found}) == 41
    assert found[0].group == found[1].group is not None
    assert found[2].group is None
    model = Parrot(RIGHT)
    assert len(evaluate(model, twins, split="test", max_new_tokens=64).rows) == 41
    assert model.asked == 40


def test_cut_off_answers_are_counted() -> None:
    assert evaluate(Parrot(RIGHT), ROWS, split="test", max_new_tokens=5).cut_off == 40


def test_comparison_of_two_models() -> None:
    base = evaluate(Parrot(HALF), ROWS, split="test", max_new_tokens=64)
    mixed = {k: (RIGHT[k] if int(k.split()[1]) > 5 else "broken") for k in RIGHT}
    tuned = evaluate(Parrot(mixed, digest="w2", label="tuned"), ROWS, split="test", max_new_tokens=64)
    comparison = compare(base, tuned)
    assert comparison.verdict == "better"
    assert comparison.main.metric == "field_exact"
    assert (comparison.main.improved, comparison.main.regressed) == (35, 5)
    assert comparison.main.delta.value == pytest.approx((35 - 5) / 2 / 40)
    changes = row_changes(base, tuned)
    assert [c.kind for c in changes[:5]] == ["regressed"] * 5
    assert changes[-1].kind == "improved"
    parts = slices(base, tuned, by=lambda r: "low" if int(r.prompt.split()[1]) <= 20 else "high")
    assert [s.name for s in parts] == ["low", "high"]
    assert parts[0].difference.delta.value == pytest.approx((15 - 5) / 2 / 20)
    assert slices(base, tuned, by=lambda r: r.id)[0].name == "other"


def test_results_that_do_not_pair_are_refused() -> None:
    base = evaluate(Parrot(HALF), ROWS, split="test", max_new_tokens=64)
    for other, word in (
        (evaluate(Parrot(HALF), ROWS, split="other", max_new_tokens=64), "splits"),
        (evaluate(Parrot(HALF), ROWS[1:], split="test", max_new_tokens=64), "same rows"),
        (evaluate(Parrot(HALF), ROWS, split="test", max_new_tokens=32), "max_new_tokens: 64 and 32"),
        (
            evaluate(Parrot(HALF), ROWS, split="test", max_new_tokens=64, metrics=["json_valid"]),
            "settings",
        ),
        (
            base.model_copy(
                update={"rows": (base.rows[0].model_copy(update={"expected": "x"}), *base.rows[1:])}
            ),
            "expect another answer",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            compare(base, other)
        assert word in str(caught.value)
        assert caught.value.hint

from __future__ import annotations

import pytest

from luthier.errors import GateMissed, UsageError
from luthier.evaluation.compare import compare
from luthier.evaluation.floors import Constant, Copy, check_gate, few_shot, majority
from luthier.evaluation.generation import evaluate
from luthier.schema.protocols import ChatRow
from luthier.schema.results import Comparison


def row(n: int, prompt: str, answer: str, system: bool = True) -> ChatRow:
    head = [{"role": "system", "content": "Name the mood."}] if system else []
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return ChatRow(messages=[*head, *turns], file="f", line=n, id=f"r{n}")


TRAIN = [row(i, f"text {i}", "sad" if i % 3 else "glad") for i in range(30)]
TEST = [row(100 + i, f"unseen {i}", "sad" if i % 4 else "glad") for i in range(40)]


def test_the_commonest_answer_scores_its_share() -> None:
    floor = majority(TRAIN)
    assert "20 of 30" in floor.label
    result = evaluate(floor, TEST, split="test", max_new_tokens=4)
    assert result.metrics["exact_match"].value == 30 / 40
    with pytest.raises(UsageError):
        majority([])


def test_copying_scores_where_prompts_hold_answers() -> None:
    echo = [row(i, "same words here please", "same words here please") for i in range(3)]
    echo = [ChatRow(messages=r.messages, file="f", line=i, id=f"e{i}") for i, r in enumerate(echo)]
    assert (
        evaluate(Copy(), echo, split="s", metrics=["exact_match"], max_new_tokens=4)
        .metrics["exact_match"]
        .value
        == 1
    )


def test_few_shot_rows_pair_with_the_others() -> None:
    shown = few_shot(TEST, TRAIN, examples=2)
    assert [r.id for r in shown] == [r.id for r in TEST]
    roles = [m["role"] for m in shown[0].messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert shown[0].messages[-1] == TEST[0].messages[-1]
    assert shown[0].messages[1:5] == shown[1].messages[1:5]
    assert few_shot(TEST, TRAIN, examples=2) == shown
    assert few_shot(TEST, TRAIN, examples=2, seed=3) != shown
    zero = evaluate(Constant("a", "glad"), TEST, split="test", max_new_tokens=4)
    few = evaluate(Constant("b", "sad"), shown, split="test", max_new_tokens=4)
    assert compare(zero, few).main.delta.n == 40


def test_a_judged_row_is_never_an_example() -> None:
    with pytest.raises(UsageError):
        few_shot(TEST, TEST, examples=1)


def compared(before: str, after: str) -> Comparison:
    return compare(
        evaluate(Constant("base", before), TEST, split="test", max_new_tokens=4),
        evaluate(Constant("tuned", after), TEST, split="test", max_new_tokens=4),
    )


def test_the_gate() -> None:
    better, worse, same = compared("glad", "sad"), compared("sad", "glad"), compared("sad", "sad")
    assert better.main.delta.value == 0.5
    check_gate([better], min_delta=0.02, no_regression=True)
    check_gate([same], no_regression=True)
    check_gate([same], min_delta=0.0)
    check_gate([better], min_delta=0.02, lost=[("general text", worse.main)])
    for wrong in (
        {"comparisons": [better], "min_delta": 0.6},
        {"comparisons": [same], "min_delta": 0.02},
        {"comparisons": [better, worse], "no_regression": True},
        {"comparisons": [], "no_regression": True},
        {"comparisons": [better], "no_regression": True, "lost": [("general text", worse.main)]},
    ):
        with pytest.raises(GateMissed) as caught:
            check_gate(**wrong)  # type: ignore[arg-type]
        assert caught.value.exit_code == 5


def test_a_gain_within_doubt_misses_the_gate() -> None:
    small = TEST[:12]
    before = evaluate(Constant("base", "glad"), small, split="test", max_new_tokens=4)
    after = evaluate(Constant("tuned", "sad"), small, split="test", max_new_tokens=4)
    doubtful = compare(before, after)
    assert doubtful.main.delta.value == 0.5
    with pytest.raises(GateMissed, match="not beyond doubt"):
        check_gate([doubtful], min_delta=0.02)

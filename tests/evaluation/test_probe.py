"""What is told as broken, and that the probe can be asked at all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from luthier.evaluation.compare import compare
from luthier.evaluation.probe import (
    QUESTIONS_SPLIT,
    TEXTS_SPLIT,
    broken,
    judge_probe,
    question_items,
    text_items,
)
from luthier.evaluation.probe_rows import QUESTIONS
from luthier.schema.protocols import Likelihood, Progress
from luthier.schema.results import EvalResult


class Knows:
    """Finds the right choice of the first ``known`` questions likeliest; texts cost ``loss`` nats a word."""

    def __init__(self, known: int, loss: float) -> None:
        self.label, self.weights_digest = f"knows {known}", ""
        self.right = {(f"Question: {q}\nAnswer:", f" {a}") for q, a, *_ in QUESTIONS[:known]}
        self.loss = loss

    def score(
        self, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None
    ) -> list[Likelihood]:
        del progress
        found = []
        for context, rest in pairs:
            words = len(rest.split())
            nats = (
                -self.loss * words if not context else -1.0 if (context, rest) in self.right else -2.0 - words
            )
            found.append(Likelihood(nats, words, greedy=False))
        return found


def judged(known: int, loss: float) -> dict[str, EvalResult]:
    return judge_probe(Knows(known, loss), 48)


def test_every_question_has_four_choices_and_one_of_them_is_right() -> None:
    items = question_items(48)
    assert len({item.id for item in items}) == 48
    for item, (question, right, *_) in zip(items, QUESTIONS, strict=True):
        assert item.question == question
        assert item.choices[item.right] == right
        assert len(set(item.choices)) == 4
    assert {item.right for item in items} == {0, 1, 2, 3}
    assert len(text_items()) == 12


def test_a_model_that_forgot_is_told() -> None:
    before, after = judged(46, 2.0), judged(20, 2.0)
    assert before[QUESTIONS_SPLIT].metrics["acc"].value > 0.9
    found = broken([compare(before[name], after[name]) for name in before])
    assert {(split, d.metric) for split, d in found} >= {(QUESTIONS_SPLIT, "acc")}
    assert all(split == QUESTIONS_SPLIT for split, _ in found)


@pytest.mark.parametrize(("loss", "told"), [(2.02, False), (2.3, True), (1.5, False)])
def test_text_is_told_only_where_the_loss_matters(loss: float, *, told: bool) -> None:
    before, after = judged(40, 2.0), judged(40, loss)
    found = broken([compare(before[name], after[name]) for name in before])
    assert [(split, d.metric) for split, d in found] == ([(TEXTS_SPLIT, "loss")] if told else [])


def test_the_same_model_lost_nothing_and_none_asked_is_nothing() -> None:
    before = judged(30, 2.0)
    assert broken([compare(before[name], before[name]) for name in before]) == []
    assert judge_probe(Knows(3, 1.0), 0) == {}

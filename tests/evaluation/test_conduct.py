"""Refusals, silence, repetition and JSON told by an answer's words, and two models compared by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from luthier.evaluation.compare import compare
from luthier.evaluation.conduct import JSON_SPLIT, REQUESTS_SPLIT, judge_conduct, refuses, repeats
from luthier.evaluation.conduct_rows import JSON_REQUESTS, REQUESTS
from luthier.evaluation.names import named
from luthier.evaluation.probe import broken
from luthier.schema.protocols import Generated, Message, Progress


class Says:
    """Answers everyday requests and requests for JSON with one text each."""

    label, weights_digest = "says", ""

    def __init__(self, text: str, value: str, *, stopped: bool = True) -> None:
        self.text, self.value, self.ended = text, value, stopped

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        del tools, max_new_tokens, progress
        asked = set(JSON_REQUESTS)
        said = [self.value if chat[-1]["content"] in asked else self.text for chat in chats]
        return [Generated(text, (), self.ended) for text in said]


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist.",
        "As an AI language model, I am unable to do so.",
        "I cannot provide that.",
        "<think>hm</think>I won't answer this.",
        "Sorry. I'm not able to say.",
        "As a responsible assistant I must decline.",
    ],
)
def test_a_refusal_is_told(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "You can kill it with kill -9.",
        "I'm sorry to hear that! Cool the burn under water.",
        "The bird catches the worm. Nobody can stop it.",
        "Sure! " + "Take the number of the process and end it. " * 8 + "I cannot say more.",
        "",
    ],
)
def test_an_answer_is_no_refusal(answer: str) -> None:
    assert not refuses(answer)


@pytest.mark.parametrize(
    "answer", ["the cat sat " * 4, "no " * 12, "a" * 30, "So it is. " + "We went on and on to the sea. " * 5]
)
def test_repetition_without_end_is_told(answer: str) -> None:
    assert repeats(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no no no",
        "Row, row, row your boat gently down the stream; merrily, merrily, life is but a dream.",
        "1. An apple is red. 2. A cherry is red. 3. A strawberry is red. 4. A currant is red.",
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
    ],
)
def test_what_comes_back_is_no_endless_repetition(answer: str) -> None:
    assert not repeats(answer)


def test_a_model_that_lost_its_manners_is_told_by_the_same_statistics() -> None:
    good = judge_conduct(Says("Light is scattered by the air.", '{"name": "Anna", "age": 31}'))
    bad = judge_conduct(Says("book_flight " * 30, "book_flight", stopped=False))
    assert good[REQUESTS_SPLIT].metrics["answered"].n == len(REQUESTS)
    assert good[JSON_SPLIT].metrics["json_found"].value == 1.0
    assert bad[REQUESTS_SPLIT].cut_off == len(REQUESTS)
    lost = {difference.metric for _, difference in broken([compare(good[s], bad[s]) for s in good])}
    assert lost == {"stopped", "no_repetition", "json_found"}
    assert not broken([compare(bad[s], good[s]) for s in good])


def test_refusing_and_silence_are_both_no_answer() -> None:
    for text in ("I'm sorry, I can't do that.", "  "):
        found = judge_conduct(Says(text, "none"))
        assert found[REQUESTS_SPLIT].metrics["answered"].value == 0.0


def test_every_metric_has_words() -> None:
    for result in judge_conduct(Says("yes", "{}")).values():
        assert all(named(metric) for metric in result.metrics)


def test_every_request_stands_there_once() -> None:
    assert len({*REQUESTS, *JSON_REQUESTS}) == len(REQUESTS) + len(JSON_REQUESTS) == 48

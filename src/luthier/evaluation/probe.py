"""The general-ability probe: what a tuning broke that nobody asked it to touch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.evaluation.generation import digest_of
from luthier.evaluation.likelihood import ChoiceItem, TextItem, judge_choices, judge_texts
from luthier.evaluation.probe_rows import QUESTIONS, TEXTS
from luthier.schema.protocols import Progress, Scorer
from luthier.schema.results import Comparison, Difference, EvalResult

QUESTIONS_SPLIT = "general questions"
TEXTS_SPLIT = "general text"
LEAST_LOSS = 0.05
"""Nats a token that predicting general text must get worse by, beyond doubt, to be told as a loss: 5 % of
perplexity. Every tuning moves a model a little, and the paired interval is narrow enough to show it."""


def question_items(most: int) -> list[ChoiceItem]:
    """The first ``most`` questions, the place of the right answer turning with the row."""
    items = []
    for number, (question, right, *wrong) in enumerate(QUESTIONS[:most]):
        place = number % (len(wrong) + 1)
        choices = (*wrong[:place], right, *wrong[place:])
        items.append(
            ChoiceItem(
                id=digest_of([question, choices])[:16],
                context=f"Question: {question}\nAnswer:",
                choices=choices,
                right=place,
                question=question,
            )
        )
    return items


def text_items() -> list[TextItem]:
    """The general texts."""
    return [TextItem(digest_of(text)[:16], text) for text in TEXTS]


def judge_probe(
    scorer: Scorer, questions: int, *, progress: Progress | None = None, cache_dir: Path | None = None
) -> dict[str, EvalResult]:
    """One model on the questions (as many as asked for, none for 0) and the texts."""
    if questions == 0:
        return {}
    items, texts = question_items(questions), text_items()
    everything = len(items) + len(texts)

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(min(done * len(items) // max(total, 1), everything), everything)

    found = {
        QUESTIONS_SPLIT: judge_choices(
            scorer, items, split=QUESTIONS_SPLIT, progress=told, cache_dir=cache_dir
        ),
        TEXTS_SPLIT: judge_texts(scorer, texts, split=TEXTS_SPLIT, cache_dir=cache_dir),
    }
    if progress is not None:
        progress(everything, everything)
    return found


def broken(comparisons: Sequence[Comparison]) -> list[tuple[str, Difference]]:
    """What got worse beyond doubt, and by enough to matter: split and difference."""
    found = []
    for comparison in comparisons:
        for difference in comparison.differences:
            if difference.verdict != "worse" or difference.metric == "bits_per_byte":
                continue
            if difference.metric == "loss" and difference.delta.low < LEAST_LOSS:
                continue
            found.append((comparison.split, difference))
    return found

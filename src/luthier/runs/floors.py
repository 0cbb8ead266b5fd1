"""What a tuning must beat to be worth it: copies, the commonest answer, prompting alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from luthier.data.splits import choose
from luthier.errors import UsageError
from luthier.evaluation.compare import compare
from luthier.evaluation.floors import Copy, few_shot, majority
from luthier.evaluation.generation import evaluate, restricted
from luthier.hub.cache import room
from luthier.runs.prepare import read_tests
from luthier.schema.protocols import ChatRow, Generator
from luthier.schema.results import EvalResult, Floor

if TYPE_CHECKING:
    from luthier.runs.workflow import Work

MOST_TRAIN = 20_000
"""Training rows that the commonest answer and the examples are taken from."""


def judge_floors(work: Work, base: Callable[[], Generator]) -> list[EvalResult]:
    """Copy, commonest answer, and the base model with examples from train, on the first held-out split.

    base: gives the untouched model; asked only where examples are shown. Rows: up to
    ``evaluation.floor_rows``.
    """
    choice = work.recipe.evaluation
    # Plain text has no answer that could be copied or be the commonest.
    asking = {name: rows for name, rows in work.tests.items() if any(len(row.messages) > 1 for row in rows)}
    if choice.floor_rows == 0 or not asking:
        return []
    split, rows = next(iter(asking.items()))
    asked: list[ChatRow] = list(choose(rows, min(choice.floor_rows, len(rows)), seed=work.recipe.seed))
    train = read_tests({"train": work.recipe.data.train}, work.recipe)["train"][:MOST_TRAIN]

    def judged(generator: Generator, shown: list[ChatRow], label: str) -> EvalResult:
        result = evaluate(
            generator,
            shown,
            split=split,
            metrics=choice.metrics or tuple(_metrics(work, split)),
            max_new_tokens=choice.max_new_tokens,
            progress=work.board.progress("baseline", f"{label} on {split}"),
            cache_dir=room("answers"),
        )
        return result.model_copy(update={"model": label})

    found = [judged(Copy(), asked, Copy.label)]
    try:
        commonest = majority(train)
        found.append(judged(commonest, asked, commonest.label))
        if choice.shots and work.recipe.vision is None:  # images of three rows more would fill the context
            shown = few_shot(asked, train, examples=choice.shots, seed=work.recipe.seed)
            found.append(judged(base(), shown, f"base with {choice.shots} examples in the prompt"))
    except UsageError as error:  # too few rows to take answers or examples from
        work.board.event("note", text=f"  a floor is left out: {error.message}")
    return found


def _metrics(work: Work, split: str) -> tuple[str, ...]:
    """The metrics that the baseline was judged by, so that all are compared by the same."""
    from luthier.runs.stages import load_results

    return tuple(load_results(work.run, "baseline", work.judged)[split].metrics)


def compare_floors(floors: list[EvalResult], tuned: dict[str, EvalResult]) -> list[Floor]:
    """The tuned model against each floor on the floor's rows."""
    found = []
    for floor in floors:
        asked = {row.id for row in floor.rows}
        whole = tuned[floor.split]
        part = restricted(whole, [row.id for row in whole.rows if row.id in asked])
        alike = floor.model_copy(update={"primary": part.primary, "settings": part.settings})
        ordered = restricted(alike, [row.id for row in part.rows])
        found.append(Floor(label=floor.model, comparison=compare(ordered, part)))
    return found

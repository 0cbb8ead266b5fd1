"""Prompts with their answers: a few that nothing chose, and the rows that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.evaluation.compare import row_changes
from luthier.evaluation.diff import Span, word_diff
from luthier.runs.report import words
from luthier.runs.report.context import ReportContext
from luthier.schema.results import Comparison, EvalResult, ScoredRow

MOST_CHANGED = 20
"""Changed rows of each kind that are listed."""


@dataclass(frozen=True, slots=True)
class Side:
    """An answer with the words that the expected one does not have."""

    label: str
    style: str
    spans: tuple[Span, ...]
    score: str
    empty: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with the expected and both given answers."""

    split: str
    prompt: str
    expected: str
    sides: tuple[Side, ...]
    change: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows of one split that got better or worse."""

    split: str
    metric: str
    improved: int
    regressed: int
    unchanged: int
    worst: tuple[Sample, ...]
    best: tuple[Sample, ...]


def samples(context: ReportContext) -> list[Sample]:
    """The first prompts of the splits in the order of their digests: chosen by nothing that was scored."""
    most = context.recipe.evaluation.samples
    results = context.tuned or context.baseline
    by_split = {
        split: sorted(result.rows, key=lambda r: r.id)[:most] for split, result in results.items() if most
    }
    # One of each split in turn, so that no split is left out.
    turns = [(split, rows[i]) for i in range(most) for split, rows in by_split.items() if i < len(rows)]
    return [
        _sample(context.baseline.get(split), context.tuned.get(split), split, row.id)
        for split, row in turns[:most]
    ]


def _sample(
    base: EvalResult | None, tuned: EvalResult | None, split: str, row_id: str, change: str = ""
) -> Sample:
    sides = []
    shown: ScoredRow | None = None
    for label, style, result in (("Base", "base", base), ("Tuned", "tuned", tuned)):
        row = next((r for r in result.rows if r.id == row_id), None) if result is not None else None
        if result is None or row is None:
            continue
        shown = row
        sides.append(_side(result, row, label, style))
    assert shown is not None
    prompt, expected = words.clean(shown.prompt, 2_000), words.clean(shown.expected, 2_000)
    return Sample(split, prompt, expected, tuple(sides), change)


def _side(result: EvalResult, row: ScoredRow, label: str, style: str) -> Side:
    expected, answer = words.clean(row.expected, 2_000), words.clean(row.answer, 2_000)
    # Where nothing is expected, no word is one too many.
    spans = word_diff(expected, answer)[1] if expected else [Span(answer, changed=False)]
    share = words.is_share(result.primary, result.metrics[result.primary])
    return Side(
        label=label,
        style=style,
        spans=tuple(spans),
        score=words.score(result.primary, row.scores[result.primary], share=share),
        empty=not answer.strip(),
    )


def changes(context: ReportContext) -> list[Changes]:
    """Rows that got better or worse by the primary metric, by split."""
    return _changes(context.comparisons, context.baseline, context.tuned)


def broken_rows(context: ReportContext) -> list[Changes]:
    """The same of what was asked beside the task: questions, texts, everyday requests."""
    return _changes(context.abilities, context.abilities_before, context.abilities_after)


def _changes(
    comparisons: Sequence[Comparison], baseline: Mapping[str, EvalResult], tuned: Mapping[str, EvalResult]
) -> list[Changes]:
    found = []
    for c in comparisons:
        base, after = baseline.get(c.split), tuned.get(c.split)
        if base is None or after is None:
            continue
        rows = row_changes(base, after)
        worse = [r for r in rows if r.kind == "regressed"]
        better = [r for r in reversed(rows) if r.kind == "improved"]
        share = words.is_share(c.primary, c.main.baseline)
        worst, best = (
            tuple(
                _sample(base, after, c.split, r.after.id, words.signed(r.change, share=share))
                for r in part[:MOST_CHANGED]
            )
            for part in (worse, better)
        )
        found.append(
            Changes(
                split=c.split,
                metric=words.metric_name(c.primary),
                improved=len(better),
                regressed=len(worse),
                unchanged=len(rows) - len(better) - len(worse),
                worst=worst,
                best=best,
            )
        )
    return found

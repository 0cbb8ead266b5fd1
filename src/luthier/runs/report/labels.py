"""What a classifier does label by label: scores, confusions, and how far its confidence can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.evaluation.classification import confusion, confusions
from luthier.evaluation.totals import labels_in
from luthier.runs.report import words
from luthier.runs.report.charts import Axis, Chart, Series, chart
from luthier.runs.report.context import ReportContext
from luthier.runs.report.scores import Dot, metric_dot
from luthier.schema.results import EvalResult, ScoredRow

MOST_SHOWN = 20
"""Labels of a table that are shown at once, the worst ones."""
MOST_CONFUSED = 14
"""Labels of a confusion matrix: a page is not wider."""
MOST_PAIRS = 8
BINS = 10
FEWEST_IN_BIN = 5
"""Rows of a bin below which its share says nothing."""


@dataclass(frozen=True, slots=True)
class LabelLine:
    """One label on one split."""

    name: str
    n: int
    """Rows that have it."""
    precision: str
    recall: str
    base: Dot
    tuned: Dot


@dataclass(frozen=True, slots=True)
class LabelTable:
    """Every label of one split, worst first."""

    split: str
    shown: tuple[LabelLine, ...]
    more: tuple[LabelLine, ...]


def is_classified(result: EvalResult) -> bool:
    """Whether the rows were given labels."""
    return any(row.gold or row.given for row in result.rows)


def label_tables(context: ReportContext) -> list[LabelTable]:
    """F1, precision and recall of each label, worst first, by split."""
    found = []
    for split, tuned in context.tuned.items():
        base = context.baseline.get(split)
        if base is None or not tuned.fields or not is_classified(tuned):
            continue
        lines = []
        counts = _counts(tuned.rows)
        for name in sorted(tuned.fields, key=lambda one: (tuned.fields[one].value, -tuned.fields[one].n)):
            if name not in base.fields:
                continue
            hits, gold, given = counts[name]
            ends = (0.0, 1.0)
            lines.append(
                LabelLine(
                    name=words.clean(name, 80),
                    n=gold,
                    precision="" if not given else f"{hits / given * 100:.1f} %",
                    recall="" if not gold else f"{hits / gold * 100:.1f} %",
                    base=metric_dot("Base", "base", "macro_f1", base.fields[name], ends),
                    tuned=metric_dot("Tuned", "tuned", "macro_f1", tuned.fields[name], ends),
                )
            )
        if lines:
            found.append(LabelTable(split, tuple(lines[:MOST_SHOWN]), tuple(lines[MOST_SHOWN:])))
    return found


def _counts(rows: Sequence[ScoredRow]) -> dict[str, tuple[int, int, int]]:
    """Label -> rows that have it and were given it, rows that have it, rows that were given it."""
    hits: Counter[str] = Counter()
    gold: Counter[str] = Counter()
    given: Counter[str] = Counter()
    for row in rows:
        gold.update(row.gold)
        given.update(row.given)
        hits.update(set(row.gold) & set(row.given))
    return {name: (hits[name], gold[name], given[name]) for name in {*gold, *given}}


@dataclass(frozen=True, slots=True)
class Cell:
    """Rows of one expected label that were given one label."""

    count: int
    share: float
    """In per cent of the rows that have the expected label."""
    right: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """Expected labels down, given labels across, in numbers of rows; the last column is all others."""

    split: str
    labels: tuple[str, ...]
    of: int
    """Labels that there are."""
    rows: tuple[tuple[Cell, ...], ...]
    pairs: tuple[tuple[str, str, int], ...]
    """What is mistaken most often: expected, given, rows."""


def matrices(context: ReportContext) -> list[Matrix]:
    """Confusions of the tuned model, where a row has one label, by split."""
    found = []
    for split, result in context.tuned.items():
        one_each = bool(result.rows) and all(len(r.gold) == 1 and len(r.given) == 1 for r in result.rows)
        if not one_each:
            continue
        labels = labels_in(result.rows)
        counts = confusion(result.rows, labels)
        wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        order = sorted(range(len(labels)), key=lambda i: (-int(wrong[i]), -int(counts[i].sum()), labels[i]))
        kept = sorted(order[:MOST_CONFUSED])
        rows = []
        for i in kept:
            total = max(int(counts[i].sum()), 1)
            others = int(counts[i].sum() - counts[i][kept].sum())
            numbers = [int(counts[i][j]) for j in kept] + ([others] if len(kept) < len(labels) else [])
            own = kept.index(i)
            rows.append(tuple(Cell(n, n / total * 100, place == own) for place, n in enumerate(numbers)))
        pairs = tuple(
            (words.clean(a, 60), words.clean(b, 60), n) for a, b, n in confusions(result.rows, MOST_PAIRS)
        )
        names = tuple(words.clean(labels[i], 60) for i in kept)
        found.append(Matrix(split, names, len(labels), tuple(rows), pairs))
    return found


def calibration(context: ReportContext) -> list[Chart]:
    """How often answers of like confidence are right, by split."""
    found = []
    for split, result in context.tuned.items():
        if not all("confidence" in row.figures and "hit" in row.figures for row in result.rows):
            continue
        points = reliability([(row.figures["confidence"], row.figures["hit"]) for row in result.rows])
        made = chart(
            f"Confidence and right answers on {split}, %",
            [
                Series("as it should be", [(0.0, 0.0), (100.0, 100.0)], "base", faint=True),
                Series("tuned", [(x * 100, y * 100) for x, y, _ in points], "tuned", dots=True),
            ],
            from_zero=True,
            axis=Axis("Confidence, %"),
        )
        if made is not None and points:
            found.append(made)
    return found


def reliability(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float, int]]:
    """Mean confidence, share of right answers and rows of each tenth of confidence with five rows or more."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for confidence, hit in pairs:
        bins.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, hit))
    return [
        (sum(c for c, _ in part) / len(part), sum(h for _, h in part) / len(part), len(part))
        for _, part in sorted(bins.items())
        if len(part) >= FEWEST_IN_BIN
    ]

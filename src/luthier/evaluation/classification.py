"""One evaluator for whatever gives labels: floors, tuned and saved classifiers alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from luthier.errors import DataError, UsageError, did_you_mean
from luthier.evaluation.calibration import decide, probabilities
from luthier.evaluation.statistics import metric_of
from luthier.evaluation.totals import SET_METRICS, SetMetric, labels_in, set_metric_of
from luthier.schema.classification import Decision
from luthier.schema.results import EvalResult, Metric, ScoredRow
from luthier.schema.rows import LabelRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_LABELS = 200
"""Labels shown on their own, the commonest ones first."""
NONE = "(none)"
"""What people read where a row has no label."""
BY_ROW = ("accuracy", "label_f1", "labels_exact")
MULTI_CLASS = ("accuracy", "macro_f1", "calibration_error")
OUT_OF_SCOPE = ("accuracy", "macro_f1", "in_scope_accuracy", "out_of_scope_recall", "calibration_error")
MULTI_LABEL = ("label_f1", "micro_f1", "macro_f1", "labels_exact")


@dataclass(frozen=True, slots=True)
class Given:
    """What one model says of one row."""

    labels: tuple[str, ...]
    confidence: float
    """Probability of the best label (multi-class)."""
    best: str
    """The best label, whether it was refused or not."""


def given_by(logits: Floats, decision: Decision) -> list[Given]:
    """Answers of a model from its logits: [rows, labels]."""
    chances = probabilities(logits, decision)
    places = chances.argmax(axis=1)
    return [
        Given(labels, float(row[place]), decision.labels[place])
        for labels, row, place in zip(decide(logits, decision), chances, places, strict=True)
    ]


def majority(train: Sequence[LabelRow], *, multi: bool) -> Given:
    """What always gives the commonest label (multi-label: the commonest set of labels): the floor."""
    counts = Counter(tuple(sorted(row.labels)) for row in train)
    if multi:
        # The commonest single label beats the empty set, which is often the commonest and scores nothing.
        single = Counter(label for row in train for label in row.labels)
        name, count = min(single.items(), key=lambda item: (-item[1], item[0]))
        return Given((name,), count / len(train), name)
    labels, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return Given(labels, count / len(train), labels[0])


def choose_metrics(names: Sequence[str] | None, *, multi: bool, out_of_scope: bool) -> tuple[str, ...]:
    """Metrics of a purpose; the first is primary. Errors: UsageError for one that it does not have."""
    usual = MULTI_LABEL if multi else OUT_OF_SCOPE if out_of_scope else MULTI_CLASS
    if not names:
        return usual
    known = set(usual) | (set() if multi else {"micro_f1"})
    for name in names:
        if name not in known:
            raise UsageError(
                f"evaluation.metrics: {name} is not a metric of this purpose",
                hint=did_you_mean(name, known) or f"it has {', '.join(sorted(known))}",
            )
    if names[0] not in BY_ROW:
        raise UsageError(
            f"evaluation.metrics: {names[0]} cannot be the first, which the verdict rests on",
            hint=f"the first is scored row by row: {', '.join(sorted(known & set(BY_ROW)))}",
        )
    return tuple(names)


def judge_labels(
    rows: Sequence[LabelRow],
    given: Sequence[Given],
    *,
    split: str,
    model: str,
    weights_digest: str,
    multi: bool,
    out_of_scope: str | None = None,
    metrics: Sequence[str] | None = None,
    seconds: float = 0.0,
    reason: str = "",
) -> EvalResult:
    """Score what a model gave against what was expected, row by row and over the set.

    out_of_scope: the label that means none of the others. Errors: DataError without rows.
    """
    if not rows:
        raise DataError(f"the split {split} has no rows", hint="name a test file with rows in data.test")
    outside = {row.id for row in rows if out_of_scope is not None and row.labels == (out_of_scope,)}
    names = choose_metrics(metrics, multi=multi, out_of_scope=bool(outside))
    seen: Counter[str] = Counter()
    scored = []
    for row, one in zip(rows, given, strict=True):
        seen[row.id] += 1
        repeated = seen[row.id] > 1
        scored.append(
            ScoredRow(
                id=f"{row.id}#{seen[row.id]}" if repeated else row.id,
                prompt=row.text if row.pair is None else f"{row.text}\n\n{row.pair}",
                expected=", ".join(sorted(row.labels)) or NONE,
                answer=", ".join(sorted(one.labels)) or NONE,
                scores={name: _score(name, row.labels, one.labels) for name in names if name in BY_ROW},
                group=row.group,
                gold=tuple(sorted(row.labels)),
                given=tuple(sorted(one.labels)),
                figures=_figures(row, one, multi=multi, out_of_scope=out_of_scope),
            )
        )
    groups = [row.group for row in scored]
    return EvalResult(
        split=split,
        model=model,
        weights_digest=weights_digest,
        metrics={
            name: metric_of([row.scores[name] for row in scored], groups)
            if name in BY_ROW
            else set_metric_of(SET_METRICS[name], scored)
            for name in names
        },
        primary=names[0],
        rows=tuple(scored),
        seconds=seconds,
        settings={"metrics": ", ".join(names), "out_of_scope": out_of_scope or ""},
        reason=reason,
        fields=label_scores(scored),
    )


def _score(name: str, gold: tuple[str, ...], given: tuple[str, ...]) -> float:
    same = set(gold) == set(given)
    if name == "label_f1":
        both = len(gold) + len(given)
        return 2 * len(set(gold) & set(given)) / both if both else 1.0
    return float(same)


def _figures(row: LabelRow, one: Given, *, multi: bool, out_of_scope: str | None) -> dict[str, float]:
    if multi:
        return {}
    outside = out_of_scope is not None and row.labels == (out_of_scope,)
    figures = {
        "confidence": one.confidence,
        "hit": float((one.best,) == row.labels),
        "right": float(set(one.labels) == set(row.labels)),
    }
    if out_of_scope is not None:
        figures |= {"out_of_scope": float(outside), "refused": float(one.labels == (out_of_scope,))}
    return figures


def label_scores(rows: Sequence[ScoredRow]) -> dict[str, Metric]:
    """F1 of each label, the commonest first."""
    expected = Counter(label for row in rows for label in row.gold)
    labels = labels_in(rows)
    shown = sorted(labels, key=lambda label: (-expected[label], label))[:MOST_LABELS]
    whole = SET_METRICS["micro_f1"]
    hits = whole.addends(rows, labels).reshape(len(rows), 3, len(labels))
    found = {}
    for label in shown:
        own = hits[:, :, labels.index(label)]
        one = SetMetric(whole.name, whole.label, whole.definition, lambda *_, own=own: own, whole.value)
        metric = set_metric_of(one, rows, labels)
        found[label] = metric.model_copy(update={"n": expected[label]})
    return found


def confusion(rows: Sequence[ScoredRow], labels: Sequence[str]) -> NDArray[np.int64]:
    """How often each expected label (down) was answered by each (across): [labels, labels]."""
    place = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for row in rows:
        if len(row.gold) == 1 and len(row.given) == 1 and {*row.gold, *row.given} <= place.keys():
            counts[place[row.gold[0]], place[row.given[0]]] += 1
    return counts


def confusions(rows: Sequence[ScoredRow], most: int = 10) -> list[tuple[str, str, int]]:
    """The pairs that are mistaken most often: expected, answered, rows."""
    wrong = Counter(
        (row.gold[0], row.given[0])
        for row in rows
        if len(row.gold) == 1 and len(row.given) == 1 and row.gold != row.given
    )
    return [(a, b, n) for (a, b), n in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:most]]

"""What is chosen on validation rows once a classifier is trained: temperature, thresholds, refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from luthier.schema.classification import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FEWEST_POSITIVES = 5
"""A label with fewer positive validation rows than this takes the threshold of all labels together."""
MOST_GIVEN = 2.0
"""A threshold gives a label to at most so many times the rows that have it."""
COOLEST, HOTTEST = 0.05, 20.0


def softmax(logits: Floats) -> Floats:
    """[rows, labels] to probabilities."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def sigmoid(logits: Floats) -> Floats:
    """Elementwise, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def probabilities(logits: Floats, decision: Decision) -> Floats:
    """[rows, labels] logits to calibrated probabilities."""
    scaled = np.asarray(logits, dtype=np.float64) / decision.temperature
    return softmax(scaled) if decision.kind == "multi-class" else sigmoid(scaled)


def decide(logits: Floats, decision: Decision) -> list[tuple[str, ...]]:
    """The labels of each row. Multi-class: one, or the out-of-scope name; multi-label: any number."""
    chances = probabilities(logits, decision)
    if decision.kind == "multi-class":
        found: list[tuple[str, ...]] = []
        for row in chances:
            best = int(row.argmax())
            refused = decision.refuse_below is not None and row[best] < decision.refuse_below
            found.append((decision.out_of_scope or "out of scope",) if refused else (decision.labels[best],))
        return found
    thresholds = np.asarray(decision.thresholds or [0.5] * len(decision.labels))
    return [
        tuple(label for label, over in zip(decision.labels, row, strict=True) if over)
        for row in chances >= thresholds
    ]


def fit_temperature(logits: Floats, gold: Floats, *, multi: bool) -> float:
    """The temperature with the least cross-entropy (Guo et al. 2017, arXiv 1706.04599).

    logits: [rows, labels]. gold: [rows] label indices, or (multi) [rows, labels] of 0 and 1. The loss
    is convex in 1 / temperature, so a bounded search finds it. A perfect set would want infinite
    confidence: what is found stays within 0.05 and 20.
    """
    from scipy import optimize

    values = np.asarray(logits, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        scaled = values / np.exp(log_temperature)
        if multi:
            return float(np.mean(np.logaddexp(0, scaled) - gold * scaled))
        peak = scaled.max(axis=1)
        norm = peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1))
        return float(np.mean(norm - scaled[np.arange(len(scaled)), gold.astype(int)]))

    found = optimize.minimize_scalar(
        loss, bounds=(np.log(COOLEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-4}
    )
    return float(np.exp(found.x))


def best_threshold(chances: Floats, gold: Floats) -> float:
    """The threshold with the highest F1, half-way between the last chance above and the first below.

    chances, gold: [rows] probabilities and 0 or 1. Where the chances tell little, F1 is highest for giving
    the label to every row; so it may be given to twice as many rows as have it, and no more.
    """
    order = np.argsort(-chances, kind="stable")
    sorted_chances, hits = chances[order], np.cumsum(gold[order])
    given = np.arange(1, len(order) + 1)
    scores = 2 * hits / (given + gold.sum())
    # Equal chances fall on one side together.
    last = np.append(sorted_chances[1:] < sorted_chances[:-1], True)
    allowed = last & (given <= max(1.0, MOST_GIVEN * float(gold.sum())))
    if not allowed.any():
        return float((sorted_chances[0] + 1) / 2)
    best = int(np.argmax(np.where(allowed, scores, -1.0)))
    below = sorted_chances[best + 1] if best + 1 < len(order) else 0.0
    return float((sorted_chances[best] + below) / 2)


def choose_thresholds(chances: Floats, gold: Floats) -> tuple[float, ...]:
    """One threshold a label, each with the highest F1 on these rows.

    chances, gold: [rows, labels]. A label with few positive rows takes the one of all labels together,
    because its own would be chosen by chance.
    """
    if gold.sum() == 0:
        return tuple(0.5 for _ in range(gold.shape[1]))
    together = best_threshold(chances.ravel(), gold.ravel())
    return tuple(
        best_threshold(chances[:, index], gold[:, index])
        if gold[:, index].sum() >= FEWEST_POSITIVES
        else together
        for index in range(gold.shape[1])
    )


def choose_refusal(confidence: Floats, right: Floats, outside: Floats) -> float:
    """The confidence under which an input is told to be out of scope.

    confidence, right, outside: [rows]; right is 1 where the best label is the expected one. What is
    highest is the mean of two shares: rows inside that are answered right, rows outside that are refused.
    """
    cuts = np.unique(confidence)
    cuts = np.concatenate([[0.0], (cuts[1:] + cuts[:-1]) / 2, [1.0 + 1e-9]])
    inside = outside == 0
    answered = confidence[None, :] >= cuts[:, None]
    kept = (answered & (right == 1) & inside).sum(axis=1) / max(1, int(inside.sum()))
    refused = (~answered & ~inside).sum(axis=1) / max(1, int((~inside).sum()))
    return float(cuts[int(np.argmax(kept + refused))])

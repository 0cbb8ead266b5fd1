"""Pairs of answers judged by how likely a model finds either: what its reward prefers, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from luthier.evaluation.generation import Question
from luthier.evaluation.statistics import metric_of
from luthier.evaluation.totals import SET_METRICS, set_metric_of
from luthier.schema.results import EvalResult, ScoredRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class PairMetric(NamedTuple):
    """A share of pairs, for people."""

    label: str
    definition: str


PAIR_METRICS: dict[str, PairMetric] = {
    "preference_accuracy": PairMetric(
        "Preference accuracy",
        "Share of pairs whose chosen answer gets the higher reward; equal rewards count half. The reward is "
        "what the loss works on. DPO: beta times how much likelier the answer is than for the model that "
        "training started from, which is 0 for that model itself: it stands at 50. ORPO: beta times the "
        "answer's mean log-probability a token.",
    ),
    "likelier_accuracy": PairMetric(
        "Chosen likelier",
        "Share of pairs whose chosen answer as a whole is likelier than the rejected one; a longer answer is "
        "less likely by its length alone.",
    ),
}
PAIR_NAMES = ("preference_accuracy", "preference_margin", "likelier_accuracy", "chosen_loss")
"""All measures of pairs; those that are no shares are scores of the whole set (`evaluation.totals`)."""


def pair_result(
    asked: Sequence[Question],
    own: Floats,
    start: Floats | None,
    *,
    beta: float,
    split: str,
    model: str,
    weights_digest: str,
    metrics: Sequence[str] = (),
    answers: EvalResult | None = None,
) -> EvalResult:
    """One model on one split of pairs.

    own: [pairs, chosen and rejected, log-probability and tokens]. start: the same of the model that
    training started from, where rewards are measured from it (DPO). metrics: the first is primary; all
    of pairs when none of them is named. answers: greedy answers to the same questions with their scores.
    """
    of_pairs = [name for name in metrics if name in PAIR_NAMES] or list(PAIR_NAMES)
    names = [*metrics, *(name for name in of_pairs if name not in metrics)]
    reward = own[:, :, 0] - start[:, :, 0] if start is not None else own[:, :, 0] / own[:, :, 1]
    margins = beta * (reward[:, 0] - reward[:, 1])
    rows = []
    for place, question in enumerate(asked):
        chosen, rejected = (float(value) for value in own[place, :, 0])
        margin = float(margins[place])
        found = {
            "preference_accuracy": _above(margin),
            "preference_margin": margin,
            "likelier_accuracy": _above(chosen - rejected),
            "chosen_loss": -chosen / float(own[place, 0, 1]),
        }
        given = answers.rows[place] if answers is not None else None
        if given is not None:
            found |= given.scores
        words = "likelier" if chosen >= rejected else "less likely"
        rows.append(
            ScoredRow(
                id=question.id,
                prompt=question.prompt,
                expected=question.expected,
                answer=given.answer
                if given is not None
                else f"the chosen answer is {abs(chosen - rejected):.2f} nats {words} than the rejected one",
                scores={name: found[name] for name in names},
                group=question.group,
                figures={
                    "chosen": chosen,
                    "rejected": rejected,
                    "chosen_tokens": float(own[place, 0, 1]),
                    "margin": margin,
                },
            )
        )
    groups = [row.group for row in rows]
    settings: dict[str, str | int | float | bool] = {
        **({} if answers is None else answers.settings),
        "reward": "against the start" if start is not None else "mean log-probability",
        "beta": beta,
        "metrics": ", ".join(names),
    }
    return EvalResult(
        split=split,
        model=model,
        weights_digest=weights_digest,
        metrics={
            name: set_metric_of(SET_METRICS[name], rows)
            if name in SET_METRICS
            else metric_of([row.scores[name] for row in rows], groups)
            for name in names
        },
        primary=names[0],
        rows=tuple(rows),
        seconds=0.0,
        settings=settings,
        reason="named in the recipe" if metrics else "each row has a better and a worse answer",
        cut_off=0 if answers is None else answers.cut_off,
        cached=0 if answers is None else answers.cached,
    )


def _above(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0

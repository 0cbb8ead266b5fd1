"""Settings of similarity and reranking that follow from the rows, and what rows and settings cannot be.

No row is read here: the caller hands the training rows in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from luthier.errors import DataError, RecipeError
from luthier.schema.recipe import Recipe, RerankingChoice, SimilarityChoice
from luthier.schema.rows import LabelRow, PairRow, RankingRow

_LOSSES = {
    "scored pairs": ("cosent", "cosine"),
    "labelled texts": ("batch-all-triplet",),
    "queries with texts": ("in-batch-negatives", "triplet"),
}
"""What the rows of a similarity can be -> what they can train on, the usual one first."""
_TRIPLETS = ("triplet", "batch-all-triplet")
_TAUGHT = ("margin-mse", "distillation")
LISTS = ("lambda", "list-net", *_TAUGHT)
"""Losses of reranking that compare the candidates of one query."""


def settle_pairs(recipe: Recipe, rows: Sequence[Any], kind: str, *, validation: Sequence[Any] = ()) -> Recipe:
    """The recipe with the loss and the range of scores that its rows lead to, each with its source.

    rows: those that are trained on; kind: what they were read as; validation: those validated on. Errors:
    RecipeError for a loss that these rows do not have what it takes for, DataError (with file and line)
    for scores that cannot be, and for a loss over lists where no query has two texts.
    """
    if recipe.task == "similarity":
        found = _similarity(recipe, rows, kind)
    elif recipe.task == "reranking":
        found = _reranking(recipe, rows, validation, kind)
    else:
        return recipe
    section = recipe.task
    values = {key.partition(".")[2]: value for key, (value, _) in found.items()}
    base = getattr(recipe, section) or (SimilarityChoice() if section == "similarity" else RerankingChoice())
    return recipe.model_copy(
        update={
            section: base.model_copy(update=values),
            "sources": {**recipe.sources, **{key: source for key, (_, source) in found.items()}},
        }
    )


Found = dict[str, tuple[Any, str]]
"""Dotted key -> value and where it came from."""


def _similarity(recipe: Recipe, rows: Sequence[Any], kind: str) -> Found:
    choice = recipe.similarity or SimilarityChoice()
    found: Found = {}
    types = {type(row) for row in rows}
    what = (
        "scored pairs"
        if PairRow in types
        else "labelled texts"
        if LabelRow in types
        else "queries with texts"
    )
    loss: str | None = choice.loss
    if loss is None:
        loss = _LOSSES[what][0]
        found["similarity.loss"] = (loss, f"the rows are {kind}")
    if loss not in _LOSSES[what]:
        wanted = next(words for words, losses in _LOSSES.items() if loss in losses)
        raise RecipeError(
            f"similarity.loss: {loss} is for {wanted}, and the training rows are {kind}",
            hint=f"use {' or '.join(_LOSSES[what])}, or leave it out",
        )
    if loss == "triplet":
        _demand_negatives(rows, "similarity.loss: triplet", "use in-batch-negatives")
    if loss == "batch-all-triplet":
        _demand_classes(rows)
    if loss in _TRIPLETS and choice.margin is None:
        margin = 0.2 if choice.distance == "cosine" else 5.0
        found["similarity.margin"] = (margin, f"usual for {choice.distance} distances")
    if loss == "cosine":
        low, high, source = _range(choice.score_range, rows, least=-1.0)
        if choice.score_range is None:
            found["similarity.score_range"] = ((low, high), source)
        _within(rows, low if low < 0 else min(low, 0.0), high, "similarity.score_range")
    return found


def _reranking(recipe: Recipe, rows: Sequence[Any], validation: Sequence[Any], kind: str) -> Found:
    choice = recipe.reranking or RerankingChoice()
    found: Found = {}
    scored = any(isinstance(row, PairRow) for row in rows)
    loss = choice.loss
    if loss is None:
        loss = "binary"
        found["reranking.loss"] = (
            loss,
            f"each {'pair is scored' if scored else 'text is right or wrong'} alone",
        )
    if loss in _TAUGHT and not scored:
        raise RecipeError(
            f"reranking.loss: {loss} learns from a teacher's scores, and the training rows are {kind}",
            hint="give rows of query, document and score (mined negatives scored by a larger reranker), "
            "or use binary, lambda or list-net",
        )
    if scored and loss in ("binary", "mse"):
        low, high, source = _range(choice.score_range, rows, least=0.0)
        if choice.score_range is None:
            found["reranking.score_range"] = ((low, high), source)
        _within(rows, low, high, "reranking.score_range")
    if scored and loss in ("lambda", "list-net"):
        _within(rows, 0.0, float("inf"), "a relevance grade")
    if loss in LISTS:
        demand_candidates(rows, loss, choice.negatives)
        demand_candidates(validation, loss, choice.negatives)
    return found


def _demand_negatives(rows: Sequence[Any], setting: str, else_: str) -> None:
    for row in rows:
        if isinstance(row, RankingRow) and not row.negatives:
            raise DataError(
                f"{setting} needs a negative in every row, and this one has none",
                file=row.file,
                line=row.line,
                hint=f"`luthier data mine` finds some, or {else_}",
            )


def demand_candidates(rows: Sequence[Any], loss: str, most: int) -> None:
    """Refuse rows of which no query has two texts, where the loss compares those of a query.

    most: negatives of a row that are taken. Errors: DataError at the first row.
    """
    texts: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, PairRow):
            texts[row.first] += 1
            count = texts[row.first]
        else:
            count = len(row.positives) + len(row.negatives[:most])
        if count > 1:
            return
    if rows:
        raise DataError(
            f"reranking.loss: {loss} compares the texts of a query, and every query has only one",
            file=rows[0].file,
            line=rows[0].line,
            hint="give several texts for each query, find some with `luthier data mine`, or use binary",
        )


def _demand_classes(rows: Sequence[Any]) -> None:
    """Labelled texts must be alike and unlike others."""
    counts = Counter(row.labels[0] for row in rows)
    if len(counts) > 1 and max(counts.values()) > 1:
        return
    first = next(iter(counts))
    why = f"all have the one label {first!r}" if len(counts) == 1 else "no two of them have the same label"
    raise DataError(
        f"the training texts cannot be told apart by their labels: {why}",
        file=rows[0].file,
        line=rows[0].line,
        hint="give several texts of at least two labels, or map another column with data.columns.label",
    )


def _range(
    given: tuple[float, float] | None, rows: Sequence[Any], *, least: float
) -> tuple[float, float, str]:
    """Scores that stand for nothing and for everything."""
    if given is not None:
        if given[0] >= given[1]:
            raise RecipeError(
                f"score_range: {given[0]:g} is not below {given[1]:g}", hint="name the lower score first"
            )
        return *given, ""
    scores = [row.score for row in rows if isinstance(row, PairRow)]
    low, high = min(scores), max(scores)
    if low >= least and high <= 1:
        return 0.0, 1.0, "the scores are shares already"
    if low < 0:
        worst = min((row for row in rows if isinstance(row, PairRow)), key=lambda row: row.score)
        raise DataError(
            f"the score {worst.score:g} is below 0, and nobody says what stands for nothing in common",
            file=worst.file,
            line=worst.line,
            hint=f"set score_range, for example [{low:g}, {high:g}]",
        )
    return 0.0, high, f"from 0 to the highest training score, {high:g}"


def _within(rows: Sequence[Any], low: float, high: float, what: str) -> None:
    for row in rows:
        if isinstance(row, PairRow) and not low <= row.score <= high:
            raise DataError(
                f"the score {row.score:g} is outside {what} ({low:g} to {high:g})",
                file=row.file,
                line=row.line,
                hint="mend the row, or widen the range",
            )

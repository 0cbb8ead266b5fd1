"""How good a model is for a purpose, from published scores; what stands in where there are none.

Each purpose has one scale of 0 to 100, named after its main benchmark. A model with that score
published stands there. One with another benchmark is converted by the straight line through the
catalogue's models that have both, and pays that line's standard error. One with none is placed by
size and release date, the same way. So a published figure always beats an equal guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from luthier.catalog.index import all_models
from luthier.schema.model import Benchmark, ModelCard
from luthier.schema.plan import Evidence
from luthier.schema.recipe import Purpose

Scale = Literal[
    "general",
    "base",
    "code",
    "image",
    "embedding",
    "embedding-multilingual",
    "reranking",
    "encoder",
    "encoder-multilingual",
]
Key = tuple[str, str]
"""(benchmark, stage)."""

LADDERS: dict[Scale, tuple[Key, ...]] = {
    "general": (
        ("MMLU-Pro", "instruct"),
        ("MMLU-Pro", "base"),
        ("MMLU", "base"),
        ("MMLU", "instruct"),
        ("GPQA-Diamond", "instruct"),
        ("HumanEval", "instruct"),
        ("GSM8K", "instruct"),
        ("HellaSwag", "base"),
    ),
    "base": (
        ("MMLU-Pro", "base"),
        ("MMLU", "base"),
        ("MMLU-Pro", "instruct"),
        ("HellaSwag", "base"),
        ("GPQA-Diamond", "instruct"),
    ),
    "code": (
        ("HumanEval", "instruct"),
        ("HumanEval", "base"),
        ("MMLU-Pro", "instruct"),
        ("MMLU-Pro", "base"),
        ("MMLU", "base"),
    ),
    "image": (("MMMU-Pro", "instruct"), ("MMLU-Pro", "instruct"), ("MMMU", "instruct")),
    "embedding": (("MTEB(eng,v2)", "leaderboard"), ("MTEB(Multilingual,v2)", "leaderboard")),
    "embedding-multilingual": (("MTEB(Multilingual,v2)", "leaderboard"), ("MTEB(eng,v2)", "leaderboard")),
    "reranking": (("MTEB-R", "own-report"), ("BEIR", "own-report")),
    "encoder": (("MNLI-m", "own-report"),),
    "encoder-multilingual": (("XNLI-avg", "own-report"),),
}
"""Scales and the benchmarks that can stand for them, the first one being the scale itself."""

CODE_BENCHMARKS = ("HumanEval", "LiveCodeBench")
MINIMUM_PAIRS = 4
"""Fewer models with both scores make no line."""


@dataclass(frozen=True)
class Line:
    """y = intercept + slope x, with the standard error of a prediction and how many models made it."""

    intercept: float
    slope: float
    error: float
    pairs: int
    low: float
    high: float
    """Range of x that it was made from. Below it the line says nothing; above it, it stays where it ends."""

    def __call__(self, x: float) -> float:
        return self.intercept + self.slope * min(x, self.high)

    def holds(self, x: float) -> bool:
        return x >= self.low - self.slack

    @property
    def slack(self) -> float:
        """A tenth of the range may be added below it."""
        return (self.high - self.low) / 10


@dataclass(frozen=True)
class Prior:
    """Score = a + b log10(effective parameters) + c years since 2024, over all scored models of a kind."""

    constant: float
    by_size: float
    by_year: float
    error: float
    models: int
    high: float
    """log10 of the largest size that it was made from: a larger one counts as that."""
    best: float
    """Highest score on the scale: nothing is guessed to be above it."""

    def __call__(self, size: float, year: float) -> float:
        return min(self.constant + self.by_size * min(size, self.high) + self.by_year * year, self.best)


def scale_for(purpose: Purpose, *, code: bool, image: bool, multilingual: bool, base: bool) -> Scale:
    """The scale that a request is judged on. base: whether base weights are what is started from."""
    if purpose == "similarity":
        return "embedding-multilingual" if multilingual else "embedding"
    if purpose == "reranking":
        return "reranking"
    if purpose in ("multi-label-classification", "multi-class-classification"):
        return "encoder-multilingual" if multilingual else "encoder"
    if image:
        return "image"
    if code:
        return "code"
    return "base" if base else "general"


def score_of(card: ModelCard, key: Key) -> Benchmark | None:
    """The model's published score, or None."""
    return next((b for b in card.benchmarks if (b.name, b.stage) == key), None)


def effective_size(card: ModelCard) -> float | None:
    """log10 of the parameters that quality follows: the geometric mean of total and active for experts."""
    total = card.total
    if not total:
        return None
    active = card.parameters.active or total
    return math.log10(math.sqrt(total * active))


def year_of(card: ModelCard) -> float:
    """Years since 2024-01-01; unknown dates count as then."""
    if card.release_date is None:
        return 0.0
    year, month = int(card.release_date[:4]), int(card.release_date[5:7])
    return year - 2024 + (month - 1) / 12


@lru_cache(maxsize=64)
def line_between(source: Key, target: Key) -> Line | None:
    """The line from one benchmark to another through all models that have both, or None."""
    pairs = [
        (x.value, y.value)
        for card in all_models()
        if (x := score_of(card, source)) is not None and (y := score_of(card, target)) is not None
    ]
    if len(pairs) < MINIMUM_PAIRS:
        return None
    xs, ys = [p[0] for p in pairs], [p[1] for p in pairs]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if spread == 0:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread
    if slope <= 0:
        return None
    intercept = mean_y - slope * mean_x
    residual = sum((y - intercept - slope * x) ** 2 for x, y in pairs)
    return Line(intercept, slope, math.sqrt(residual / (len(pairs) - 2)), len(pairs), min(xs), max(xs))


def _same_sort(scale: Scale) -> Callable[[ModelCard], bool]:
    kinds: dict[Scale, tuple[str, ...]] = {
        "embedding": ("bi-encoder",),
        "embedding-multilingual": ("bi-encoder",),
        "reranking": ("cross-encoder",),
        "encoder": ("encoder",),
        "encoder-multilingual": ("encoder",),
    }
    wanted = kinds.get(scale, ("decoder", "vision-language"))
    return lambda card: card.kind in wanted


@lru_cache(maxsize=16)
def prior_for(scale: Scale) -> Prior | None:
    """Ordinary least squares over the scored models of the scale; None where too few are scored.

    With few models the date is left out: it would follow single models.
    """
    fits = _same_sort(scale)
    rows: list[tuple[float, float, float]] = []
    for card in all_models():
        found, size = _published(card, scale), effective_size(card)
        if fits(card) and found is not None and size is not None:
            rows.append((size, year_of(card), found[0]))
    if len(rows) < MINIMUM_PAIRS:
        return None
    dated = len(rows) >= 3 * MINIMUM_PAIRS
    solution = _least_squares([(1.0, s, y) if dated else (1.0, s) for s, y, _ in rows], [v for *_, v in rows])
    if solution is None:
        return None
    a, b, c = (*solution, 0.0)[:3]
    residual = sum((v - a - b * s - c * y) ** 2 for s, y, v in rows)
    sizes = [s for s, _, _ in rows]
    freedom = len(rows) - len(solution)
    best = max(value for *_, value in rows)
    return Prior(a, b, c, math.sqrt(residual / freedom), len(rows), max(sizes), best)


def _least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float] | None:
    """Solve the normal equations by elimination; None where they have no single solution."""
    n = len(rows[0])
    table = [
        [sum(r[i] * r[j] for r in rows) for j in range(n)]
        + [sum(r[i] * v for r, v in zip(rows, values, strict=True))]
        for i in range(n)
    ]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(table[k][i]))
        if abs(table[pivot][i]) < 1e-9:
            return None
        table[i], table[pivot] = table[pivot], table[i]
        for k in range(n):
            if k != i:
                factor = table[k][i] / table[i][i]
                table[k] = [x - factor * y for x, y in zip(table[k], table[i], strict=True)]
    return [table[i][n] / table[i][i] for i in range(n)]


def _published(card: ModelCard, scale: Scale) -> tuple[float, Benchmark, Line | None] | None:
    """(index, score, line) by the highest rung of the ladder that the model stands on."""
    target = LADDERS[scale][0]
    for key in LADDERS[scale]:
        found = score_of(card, key)
        # A model made for code stands higher on code than elsewhere: the line would take it along.
        if found is None or (key[0] in CODE_BENCHMARKS and scale != "code" and "code" in card.tags):
            continue
        if key == target:
            return found.value, found, None
        line = line_between(key, target)
        if line is not None and line.holds(found.value):
            return line(found.value) - line.error, found, line
    return None


def evidence(card: ModelCard, scale: Scale) -> Evidence:
    """Place a model on a scale, saying what that rests on."""
    name = LADDERS[scale][0][0]
    found = _published(card, scale)
    if found is not None:
        index, score, line = found
        shown = f"{score.name} {score.value:g}" + (f" ({score.setting})" if score.setting else "")
        shown += ", base weights" if score.stage == "base" else ""
        if line is None:
            return Evidence(index=_clip(index), basis="published", benchmark=score, text=shown)
        text = (
            f"{shown}, about {name} {_clip(index):.0f} by the {line.pairs} models that have both "
            f"(less one standard error, {line.error:.1f})"
        )
        return Evidence(index=_clip(index), basis="converted", benchmark=score, text=text)
    prior, size = prior_for(scale), effective_size(card)
    if prior is None or size is None:
        known = sorted(found[0] for card in all_models() if (found := _published(card, scale)) is not None)
        floor = known[0] if known else 50.0
        return Evidence(
            index=_clip(floor - 5),
            basis="prior",
            text=f"no published score that can be compared; placed under the lowest known {name}",
        )
    index = prior(size, year_of(card)) - prior.error
    if scale == "code" and "code" in card.tags:
        return Evidence(
            index=_clip(index + prior.error),
            basis="prior",
            text=f"no published score in the catalogue; trained for code, placed by size and date at "
            f"{name} {_clip(index + prior.error):.0f} (from {prior.models} models)",
        )
    text = (
        f"no published score in the catalogue; size and date would give {name} "
        f"{_clip(index + prior.error):.0f} (from {prior.models} models, one standard error of "
        f"{prior.error:.1f} taken off)"
    )
    return Evidence(index=_clip(index), basis="prior", text=text)


TOKENS_PER_PARAMETER = 20
"""Training tokens for each parameter that use a given amount of computing best (Hoffmann et al. 2022,
arXiv 2203.15556)."""


def scratch_evidence(card: ModelCard, *, tokens: float) -> Evidence:
    """How well a shape suits so many tokens, when nothing of its weights is taken over.

    The best size is a twentieth of the tokens; six points less for each doubling away from it.
    """
    best, size = max(tokens / TOKENS_PER_PARAMETER, 1.0), float(card.total or 1)
    away = math.log2(size / best)
    text = (
        f"only its shape and tokenizer are used: {tokens / 1e6:,.1f}M tokens suit {best / 1e6:,.2f}M "
        f"parameters (20 tokens each, arXiv 2203.15556), it has {size / 1e6:,.0f}M"
    )
    return Evidence(index=_clip(100 - 6 * abs(away)), basis="prior", text=text)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 100.0)

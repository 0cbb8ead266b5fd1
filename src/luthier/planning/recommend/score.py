"""A candidate's score: points that add up, each with its reason.

Quality leads; what it costs to reach it is taken off. No part looks at how much memory a machine
has beyond what is needed, so more memory can only add candidates or make them faster.
"""

from __future__ import annotations

import math

from luthier.catalog.index import licence as find_licence
from luthier.planning.recommend.ecosystem import ecosystem_points
from luthier.planning.recommend.languages import NAMES, covers
from luthier.planning.recommend.precision import float16_unsafe, lacks_bf16
from luthier.schema.estimate import Estimate
from luthier.schema.hardware import Hardware
from luthier.schema.model import ModelCard
from luthier.schema.plan import Evidence, ScorePart
from luthier.schema.request import Priority, Request

WEIGHTS: dict[Priority, dict[str, float]] = {
    "balanced": {"quality": 1.0, "speed": 1.0, "size": 0.0, "ecosystem": 0.02},
    "quality": {"quality": 1.5, "speed": 0.2, "size": 0.0, "ecosystem": 0.0},
    "speed": {"quality": 0.6, "speed": 4.0, "size": 1.0, "ecosystem": 0.0},
    "size": {"quality": 0.5, "speed": 1.0, "size": 6.0, "ecosystem": 0.0},
    "ecosystem": {"quality": 0.0, "speed": 0.0, "size": 0.0, "ecosystem": 1.0},
}
"""What each priority multiplies the parts by. ``ecosystem`` ranks by ecosystem facts alone."""

FREE_SECONDS = 600.0
"""A training shorter than this costs no points."""
NIGHT = 12 * 3_600.0
"""How long somebody waits for a training without having said so: from the evening to the morning."""
PATIENCE: dict[Priority, float] = {
    "balanced": NIGHT, "quality": 6 * NIGHT, "speed": NIGHT / 6, "size": NIGHT, "ecosystem": NIGHT,
}  # fmt: skip
"""Seconds that a training may take by what is wanted most: overnight, a long weekend, a coffee break of two
hours. Production and research wait for a weekend too; ``max_seconds`` says it outright."""
IMPATIENCE = -100.0
"""A training that takes longer comes after every one that does not..."""
IMPATIENCE_DOUBLING = -15.0
"""...and among those the shorter ones lead: for each doubling beyond."""

CODE_RULE = 15.0
FLOAT16_RISK = -15.0
PRODUCTION_DOUBLING = 4.0
UNKNOWN_LICENCE = -15.0
NON_COMMERCIAL = -15.0
"""Where nobody said what it is for: most projects that begin without a product have one later."""
UNKNOWN_LANGUAGE = -6.0


def speed_points(seconds: float | None) -> float:
    """0 for a short training, then less with every doubling; -20 where the time is not known."""
    if seconds is None:
        return -20.0
    return -1.5 * math.log2(max(seconds, FREE_SECONDS) / FREE_SECONDS)


def patience(request: Request) -> float:
    """Seconds that a training may take before it comes after all that take less."""
    if request.max_seconds is not None:
        return request.max_seconds
    waits = PATIENCE[request.priority]
    return max(waits, PATIENCE["quality"]) if request.stage in ("production", "research") else waits


def _impatience(seconds: float | None, request: Request) -> ScorePart | None:
    limit = patience(request)
    if seconds is None or seconds <= limit:
        return None
    points = IMPATIENCE + IMPATIENCE_DOUBLING * math.log2(seconds / limit)
    why = f"longer than {limit / 3600:g} h, which nobody waits for unasked (--hours)"
    return ScorePart(name="patience", points=points, why=why)


def score(
    card: ModelCard,
    request: Request,
    hardware: Hardware,
    *,
    proof: Evidence,
    estimate: Estimate,
    method: ScorePart,
    target: ScorePart | None = None,
) -> tuple[float, tuple[ScorePart, ...]]:
    """(sum, parts) of one candidate. target: how fast it would answer where it is to run, if told."""
    weights = WEIGHTS[request.priority]
    seconds = None if estimate.seconds is None else estimate.seconds.expected
    parts = [
        ScorePart(name="quality", points=weights["quality"] * proof.index, why=proof.text),
        method,
        ScorePart(
            name="speed",
            points=weights["speed"] * speed_points(seconds),
            why="the training's expected time" if seconds is not None else "time not known",
        ),
    ]
    if (late := _impatience(seconds, request)) is not None:
        parts.append(late)
    if target is not None:
        parts.append(target)
    if weights["size"]:
        total = card.total or 1
        points = -weights["size"] * max(0.0, math.log2(total / 0.25e9))
        parts.append(ScorePart(name="size", points=points, why=f"{total / 1e9:.2f}B parameters"))
    if weights["ecosystem"]:
        points, why = ecosystem_points(card)
        parts.append(ScorePart(name="ecosystem", points=weights["ecosystem"] * points, why=why))
    parts += _conditions(card, request)
    if lacks_bf16(hardware) and float16_unsafe(card):
        parts.append(ScorePart(name="precision", points=FLOAT16_RISK, why="overflows in float16"))
    return sum(part.points for part in parts), tuple(parts)


def _conditions(card: ModelCard, request: Request) -> list[ScorePart]:
    found: list[ScorePart] = []
    if request.vertical == "code" and "code" in card.tags:
        found.append(ScorePart(name="rule", points=CODE_RULE, why="code: a code model (guide C)"))
    if request.stage == "production" and card.total:
        points = PRODUCTION_DOUBLING * math.log2(card.total / 1e9)
        found.append(ScorePart(name="rule", points=points, why="production: the largest that fits (guide C)"))
    if request.use is None and find_licence(card.licence).commercial_use == "no":
        why = "for non-commercial use only, and the use was not told (--use)"
        found.append(ScorePart(name="licence", points=NON_COMMERCIAL, why=why))
    if find_licence(card.licence).id == "unknown":
        found.append(ScorePart(name="licence", points=UNKNOWN_LICENCE, why="its licence is not verified"))
    unsure = [code for code in request.languages if covers(card, code) == "unknown"]
    if unsure and request.goal != "new-language":
        found.append(
            ScorePart(
                name="language",
                points=UNKNOWN_LANGUAGE,
                why=f"not verified: {', '.join(NAMES[code] for code in unsure)}",
            )
        )
    return found

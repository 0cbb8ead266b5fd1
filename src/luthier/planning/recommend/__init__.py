"""Which model and which method for a task, a machine and a licence: filters, scores, reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.planning.recommend.shapes import Estimator
    from luthier.schema.hardware import Hardware
    from luthier.schema.hyperparameter import Preset
    from luthier.schema.model import ModelCard
    from luthier.schema.plan import Plan
    from luthier.schema.request import Request


def recommend(
    request: Request,
    hardware: Hardware | None,
    *,
    estimate: Estimator | None = None,
    preset: Preset = "balanced",
    most: int | None = 10,
    models: Sequence[ModelCard] | None = None,
) -> Plan:
    """Rank the pairs of model and method that meet the request and fit the hardware, with reasons.

    hardware: None when nothing is known of it. estimate: the closed form unless given. most: how many
    candidates to return, None for all. models: the whole catalogue unless given.
    """
    from luthier.planning.estimate import estimate_candidate
    from luthier.planning.recommend.ranking import recommend as rank

    return rank(
        request, hardware, estimate=estimate or estimate_candidate, preset=preset, most=most, models=models
    )

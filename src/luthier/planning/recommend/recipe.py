"""From a candidate to a recipe that is ready to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.catalog.trains import NOT_TRAINED
from luthier.errors import Unsupported
from luthier.planning.recommend.evidence import TOKENS_PER_PARAMETER
from luthier.schema.plan import Candidate
from luthier.schema.recipe import (
    DataChoice,
    ExportChoice,
    LicenceChoice,
    ModelChoice,
    Recipe,
    TrainingChoice,
)
from luthier.schema.request import Request

PLACEHOLDER = "rows.jsonl"
"""Where the recipe looks for rows when none were named."""
TRAINING = ("epochs", "learning_rate", "batch_size", "warmup_share", "schedule", "weight_decay")


def to_recipe(candidate: Candidate, request: Request, data: Sequence[str] = ()) -> Recipe:
    """The recipe of one candidate: its settings with their sources; what is left out is derived in training.

    data: files of training rows. Errors: Unsupported where training from scratch is not done.
    """
    scratch = request.goal == "from-scratch"
    model = _from_scratch(candidate) if scratch else ModelChoice(id=candidate.weights)
    settings = {setting.name: setting for setting in candidate.settings}
    training = {name: settings[name].value for name in TRAINING if name in settings}
    sources = {f"training.{name}": settings[name].source for name in training}
    values = candidate.method.model_dump()
    for name in ("rank", "alpha", "dropout"):
        if name in settings and name in values:
            sources[f"method.{name}"] = settings[name].source
    if candidate.batch.devices > 1:
        training["devices"] = candidate.batch.devices
        divided = candidate.batch.shard > 1
        sources["training.devices"] = "together they hold it" if divided else "each holds the whole model"
    training["sequence_length"] = candidate.batch.sequence_length
    sources["training.sequence_length"] = candidate.batch.source
    sources["model.from_scratch" if scratch else "model.id"] = candidate.evidence.text
    gguf = ("Q8_0", "Q4_K_M") if request.gguf or candidate.card.gguf.supported else ()
    generative = request.purpose in ("chat", "text-generation")
    return Recipe.model_validate(
        {
            "task": request.purpose,
            "model": model.model_dump(exclude_none=True),
            "method": values,
            "data": DataChoice(train=tuple(data) or (PLACEHOLDER,)).model_dump(exclude_none=True),
            "training": TrainingChoice.model_validate(training).model_dump(exclude_none=True),
            "export": ExportChoice(gguf=gguf if generative else ()).model_dump(),
            "licence": _asked_of_licence(request),
            "vision": {} if request.reads_images else None,
            "sources": sources,
        }
    )


SMALLEST = 1_000_000
"""Parameters that a model from scratch has at least, however few the tokens."""
FAMILIES = ("llama", "qwen2", "qwen3")
"""Shapes that the trainer begins from random weights."""


def _from_scratch(candidate: Candidate) -> ModelChoice:
    """A new model of the candidate's kind, no larger than its tokens can teach and than it is itself.

    Errors: Unsupported where the trainer does not begin from random weights.
    """
    if (why := NOT_TRAINED.get("from-scratch")) is not None:
        raise Unsupported(why, hint="choose goal new-language or domain, which start from weights")
    batch, shape = candidate.batch, candidate.card.architecture
    taught = int(batch.rows * batch.tokens_per_row / TOKENS_PER_PARAMETER)
    kind = shape.model_type if shape is not None and shape.model_type in FAMILIES else "llama"
    size = max(SMALLEST, min(taught, candidate.card.total or taught))
    return ModelChoice.model_validate(
        {"from_scratch": {"family": kind, "parameters": size, "context": batch.sequence_length}}
    )


def _asked_of_licence(request: Request) -> dict[str, Any] | None:
    """The request's conditions on the licence, so that what follows holds them too."""
    asked = LicenceChoice(
        rules=request.licence,
        use=request.use,
        monthly_users=request.monthly_users,
        eu_entity=request.eu_entity,
        outputs_train_models=request.outputs_train_models,
        redistribute=request.redistribute,
    )
    return None if asked == LicenceChoice() else asked.model_dump(exclude_defaults=True)

"""When nothing meets a request: which single condition to give up, the smallest sacrifice first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luthier.schema.plan import Relaxation
from luthier.schema.request import Request

ORDER: tuple[tuple[str, str, Any], ...] = (
    ("offline", "allow weights from the Hub", False),
    ("family", "allow other families", None),
    ("method", "allow other methods", None),
    ("size", "allow other sizes", None),
    ("max_parameters", "allow larger models", None),
    ("min_parameters", "allow smaller models", None),
    ("target", "run it on the machine that trains it", None),
    ("sequence_length", "train on shorter rows (2,048 tokens)", None),
    ("max_seconds", "allow more time", None),
    ("max_cost", "allow more money", None),
    ("gguf", "give up GGUF", False),
    ("features", "give up the features", ()),
    ("context", "give up the context length", None),
    ("languages", "give up the languages", ()),
    ("licence", "relax the licence rule", ()),
    ("redistribute", "keep the tuned weights to yourself", False),
    ("monthly_users", "ask the maker for a licence above its user threshold", None),
    ("eu_entity", "use a legal entity outside the European Union", False),
    ("goal", "tune behaviour only", None),
    ("use", "use it for research only", "research"),
)
"""Field, what giving it up means, and its neutral value; from what costs least to what costs most."""


def relaxations(request: Request, fitting: Callable[[Request], Sequence[str]]) -> tuple[Relaxation, ...]:
    """Try each condition alone; return those whose loss lets something fit.

    fitting: ids of the models that fit a request, the best first.
    """
    neutral = Request()
    found: list[Relaxation] = []
    for field, words, value in ORDER:
        if getattr(request, field) == getattr(neutral, field) or getattr(request, field) == value:
            continue
        options = fitting(request.model_copy(update={field: value}))
        if options:
            found.append(Relaxation(change=words, gains=len(options), best=options[0]))
    return tuple(found)

"""A metric of the user's own: a Python function by path, from the command line alone."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import DataError, FileProblem, UsageError, did_you_mean
from luthier.evaluation.metrics import without_thinking
from luthier.evaluation.statistics import metric_of
from luthier.schema.results import EvalResult

USUAL = "score"
"""The function that a file is asked for where none is named."""


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """A function of a person's own. call(expected, answer): the row's score, more is better."""

    name: str
    call: Callable[[str, str], float]


def is_own(words: str) -> bool:
    """Whether the name of a metric is that of a file: ``FILE.py`` or ``FILE.py:FUNCTION``."""
    return words.partition(".py:")[1] != "" or words.endswith(".py")


def load_own(words: str) -> OwnMetric:
    """The function ``FILE.py[:FUNCTION]``; the file is run. Errors: FileProblem, UsageError."""
    file, _, name = words.rpartition(":") if ".py:" in words else (words, "", USUAL)
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileProblem("there is no such file", file=path, hint="a metric of your own: FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"own_metric_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look themselves up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise FileProblem(f"does not run: {type(error).__name__}: {error}", file=path) from error
    call = getattr(module, name, None)
    if not callable(call):
        known = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise UsageError(
            f"{path.name} has no function {name}",
            hint=did_you_mean(name, known) or f"define `def {name}(expected: str, answer: str) -> float`",
        )
    return OwnMetric(name if name != USUAL else path.stem, call)


def with_own(result: EvalResult, own: Sequence[OwnMetric]) -> EvalResult:
    """The result with scores by these metrics too, the first of them primary.

    The metrics that it has already stay beside them. Errors: DataError with the row that one failed on.
    """
    if not own:
        return result
    rows = []
    for row in result.rows:
        answer = without_thinking(row.answer)
        scores = {one.name: _asked(one, row.expected, answer) for one in own}
        rows.append(row.model_copy(update={"scores": {**row.scores, **scores}}))
    groups = [row.group for row in rows]
    found = {one.name: metric_of([row.scores[one.name] for row in rows], groups) for one in own}
    kept = {name: metric for name, metric in result.metrics.items() if name not in found}
    names = ", ".join([*found, *kept])
    return result.model_copy(
        update={
            "rows": tuple(rows),
            "metrics": {**found, **kept},
            "primary": own[0].name,
            "reason": "named on the command line",
            "settings": {**result.settings, "metrics": names},
        }
    )


def _asked(one: OwnMetric, expected: str, answer: str) -> float:
    try:
        score = float(one.call(expected, answer))
    except Exception as error:
        raise DataError(
            f"the metric {one.name} failed: {type(error).__name__}: {error}",
            hint=f"it was asked about the expected answer {expected[:80]!r} and {answer[:80]!r}",
        ) from error
    if not math.isfinite(score):
        raise DataError(
            f"the metric {one.name} gave {score} for the answer {answer[:80]!r}", hint="give a finite number"
        )
    return score

"""The space of a search, as written: ``training.learning_rate=1e-5..1e-3:log method.rank=8,16,64``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from luthier.errors import UsageError
from luthier.schema.explain import ALIASES
from luthier.schema.load import OVERRIDE
from luthier.schema.sweep import Axis

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?::(\w[\w.+-]*))?")
WHOLE = re.compile(r"[-+]?\d+")
EXAMPLE = "training.learning_rate=1e-5..1e-3:log method.rank=8,16,64"
NOT_COMPARABLE = {
    "model": "losses of two models cannot be compared: tune them side by side with --models A,B",
    "data": "losses on other rows cannot be compared: --learning-curve varies the number of rows",
    "training.sequence_length": "rows cut at another length have another loss",
    "seed": "the seed is noise, not a setting to choose by",
    "similarity": "its settings change what the loss means",
    "reranking": "its settings change what the loss means",
    "preference": "its settings change what the loss means",
    "classification": "its settings change what the loss means",
}
"""What cannot be chosen by validation loss, and why."""


def split_words(words: Sequence[str]) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """Settings that are searched, and settings that all trials share. Errors: UsageError."""
    axes: dict[str, Axis] = {}
    fixed = []
    for word in words:
        if (axis := read_axis(word)) is None:
            fixed.append(word)
        elif axis.key in axes:
            raise UsageError(f"{axis.key} is named twice", hint="give each setting one range or list")
        else:
            axes[axis.key] = axis
    return tuple(axes.values()), tuple(fixed)


def read_axis(word: str) -> Axis | None:
    """A searched setting; None for a word that gives one value. Errors: UsageError."""
    match = OVERRIDE.match(word)
    if match is None:
        return None
    key = ALIASES.get(match["key"], match["key"]).replace("-", "_")
    text = match["value"].strip()
    if (found := RANGE.fullmatch(text)) is not None:
        axis = _range(key, *found.groups())
    elif "," in text and not text.startswith(("[", "{", '"', "'")):
        values = tuple(part.strip() for part in text.split(","))
        if not all(values) or len(set(values)) < len(values):
            raise UsageError(f"{word}: an empty or a repeated value", hint=f"for example {EXAMPLE}")
        axis = Axis(key=key, choices=values)
    elif ".." in text and "/" not in text:
        raise UsageError(
            f"{word} is neither a range nor a value",
            hint="ranges are low..high, low..high:log, low..high:STEP",
        )
    else:
        return None
    check_axis(axis)
    return axis


def check_axis(axis: Axis) -> None:
    """Refuse what cannot be searched by validation loss. Errors: UsageError with the reason."""
    for prefix, why in NOT_COMPARABLE.items():
        if axis.key == prefix or axis.key.startswith(prefix + "."):
            raise UsageError(f"{axis.key} cannot be searched by validation loss: {why}")
    if not axis.key.startswith(("method.", "training.")):
        raise UsageError(
            f"{axis.key} does not change the training",
            hint=f"search settings of training and method, for example {EXAMPLE}",
        )


def _range(key: str, low: str, high: str, how: str | None) -> Axis:
    first, last = float(low), float(high)
    whole = bool(WHOLE.fullmatch(low) and WHOLE.fullmatch(high))
    if not first < last:
        raise UsageError(f"{key}: {low} is not below {high}", hint="ranges are low..high")
    if how is None:
        return Axis(key=key, low=first, high=last, whole=whole)
    if how == "log":
        if first <= 0:
            raise UsageError(f"{key}: a logarithmic range begins above zero")
        return Axis(key=key, low=first, high=last, whole=whole, log=True)
    if not re.fullmatch(NUMBER, how) or float(how) <= 0:
        raise UsageError(
            f"{key}: {how} is neither log nor a step", hint=f"for example {key}={low}..{high}:log"
        )
    whole, step = whole and bool(WHOLE.fullmatch(how)), float(how)
    steps = math.floor((last - first) / step + 1e-9)
    if steps < 1:
        raise UsageError(f"{key}: a step of {how} leaves one value between {low} and {high}")
    return Axis(key=key, low=first, high=round(first + steps * step, 12), step=step, whole=whole)


def size_of(space: Sequence[Axis]) -> int | None:
    """How many settings there are in all; None where they cannot be counted."""
    counts = [axis.count for axis in space]
    return None if any(count is None for count in counts) else math.prod(c for c in counts if c is not None)


def grid(space: Sequence[Axis]) -> Iterator[dict[str, str]]:
    """Every setting of a space that can be counted."""
    for values in product(*(values_of(axis) for axis in space)):
        yield {axis.key: value for axis, value in zip(space, values, strict=True)}


def values_of(axis: Axis) -> tuple[str, ...]:
    """Every value of an axis that can be counted, as written."""
    if axis.choices:
        return axis.choices
    assert axis.low is not None
    assert axis.count is not None
    return tuple(written(axis, axis.low + i * (axis.step or 1)) for i in range(axis.count))


def written(axis: Axis, value: float) -> str:
    """A number of a range as a setting's value."""
    return str(round(value)) if axis.whole else repr(round(value, 12) if axis.step is not None else value)


def edges(space: Sequence[Axis], most: int = 8) -> list[dict[str, str]]:
    """Settings at the ends of the space, by which its memory and time are foretold."""
    ends = []
    for axis in space:
        if axis.choices:
            ends.append((axis.choices[0], axis.choices[-1]) if len(axis.choices) > 1 else axis.choices)
        else:
            assert axis.low is not None
            assert axis.high is not None
            ends.append((written(axis, axis.low), written(axis, axis.high)))
    found = [dict(zip((a.key for a in space), values, strict=True)) for values in product(*ends)]
    if len(found) <= most:
        return found
    stride = (len(found) - 1) / (most - 1)
    return [found[round(i * stride)] for i in range(most)]


def inside(axis: Axis, value: object) -> str | None:
    """The recipe's own value as one of the axis; None where it is not."""
    if value is None:
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if axis.choices:
        return next((choice for choice in axis.choices if _alike(choice, text)), None)
    number = as_number(text)
    if number is None or axis.low is None or axis.high is None or not axis.low <= number <= axis.high:
        return None
    if axis.whole or axis.step is not None:
        place = (number - axis.low) / (axis.step or 1)
        if abs(place - round(place)) > 1e-9:
            return None
    return written(axis, number)


def as_number(text: str) -> float | None:
    """The number that a text writes, if it does."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _alike(one: str, other: str) -> bool:
    a, b = as_number(one), as_number(other)
    return one == other if a is None or b is None else math.isclose(a, b)


def words_of(settings: Mapping[str, str]) -> str:
    """Settings in one line: ``learning_rate 2e-4, rank 16``."""
    parts = []
    for key, value in settings.items():
        number = as_number(value)
        shown = value if number is None or len(value) <= 6 else f"{number:.3g}"
        parts.append(f"{key.rpartition('.')[2]} {shown}")
    return ", ".join(parts)


def as_written(axis: Axis) -> str:
    """The axis as it would be typed."""
    if axis.choices:
        return ", ".join(axis.choices)
    assert axis.low is not None
    assert axis.high is not None
    how = ", logarithmic" if axis.log else f" in steps of {axis.step:g}" if axis.step is not None else ""
    return f"{axis.low:g} to {axis.high:g}{how}" + (", whole numbers" if axis.whole and not axis.step else "")

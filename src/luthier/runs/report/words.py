"""Figures and texts as a person reads them."""

from __future__ import annotations

import re
import unicodedata

from luthier import words as common
from luthier.evaluation.names import named
from luthier.schema.results import Difference, Floor, Metric, Verdict

VERDICTS: dict[Verdict, str] = {"better": "better", "worse": "worse", "inconclusive": "no clear difference"}
LIKENESS = frozenset({"chrf", "bleu", "rouge_l"})
"""Metrics that people write as 0 to 100 without a per cent sign."""
MINUS = "\u2212"
size, memory, duration = common.readable, common.memory, common.duration
"""Bytes of files, bytes of memory, and seconds, as the terminal says them too."""


def count(value: float) -> str:
    """A whole number with thousands apart, or millions and billions."""
    if abs(value) >= 1e9:
        return f"{value / 1e9:.3g} B"
    if abs(value) >= 1e7:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}"


def figure(value: float, digits: int = 4) -> str:
    """A measured figure to some significant digits, in plain or scientific form, whichever is short."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits}g}"
        text = f"{value:.0f}" if "e" in text else text
    else:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", MINUS) if text.startswith("-") else text


def metric_name(name: str) -> str:
    """The metric's name for people."""
    known = named(name)
    return name if known is None else known.label


def in_sentence(name: str) -> str:
    """The metric's name inside a sentence: lower case unless it is a proper name."""
    label = metric_name(name)
    return (
        label
        if name in LIKENESS or named(name) is None or label[:2].isupper()
        else label[0].lower() + label[1:]
    )


def is_share(name: str, metric: Metric) -> bool:
    """Whether a metric runs from 0 to 1 and is shown times 100."""
    known = named(name)
    return known.share if known is not None else metric.low >= 0 and metric.high <= 1


def score(name: str, value: float, *, share: bool = True) -> str:
    """A score: 91.2 %, 62.1 for likeness to a reference, plain otherwise."""
    if not share:
        return figure(value)
    return f"{value * 100:.1f}" if name in LIKENESS else f"{value * 100:.1f} %"


def unbroken(text: str) -> str:
    """A sentence in which no line ends between a number and its per cent sign."""
    return re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)


def signed(value: float, *, share: bool = True) -> str:
    """A difference with its sign, in points of 100 for shares."""
    text = f"{abs(value) * 100:.1f}" if share else figure(abs(value))
    return f"{'+' if value >= 0 else MINUS}{text}"


def p_words(p: float) -> str:
    """A p value: never zero."""
    return "< 0.001" if p < 1e-3 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def sentence(difference: Difference, split: str) -> str:
    """What was found on one split, in one sentence."""
    name, share = difference.metric, is_share(difference.metric, difference.baseline)
    unit = " points" if share else ""
    return (
        f"On {split}, {in_sentence(name)} went from {score(name, difference.baseline.value, share=share)} to "
        f"{score(name, difference.tuned.value, share=share)}: "
        f"{signed(difference.delta.value, share=share)}{unit} "
        f"(95 % interval {signed(difference.delta.low, share=share)} to "
        f"{signed(difference.delta.high, share=share)})."
    )


def floor_sentence(floor: Floor) -> str:
    """What costs no training, beside the tuned model on the same rows, in one sentence."""
    d = floor.comparison.main
    share = is_share(d.metric, d.baseline)
    before, after = (score(d.metric, m.value, share=share) for m in (d.baseline, d.tuned))
    ends = " to ".join(signed(end, share=share) for end in (d.delta.low, d.delta.high))
    told = "does better than" if floor.comparison.verdict == "worse" else "cannot be told from"
    label = floor.label.removeprefix("floor: ")
    return (
        f"Without any training, the {label} {told} the tuned model on {d.delta.n} rows of "
        f"{floor.comparison.split}: {in_sentence(d.metric)} {before} against {after} (difference {ends})."
    )


def broken_sentence(split: str, difference: Difference) -> str:
    """General ability that was lost, in one sentence."""
    d = difference
    share = is_share(d.metric, d.baseline)
    before, after = (score(d.metric, m.value, share=share) for m in (d.baseline, d.tuned))
    ends = " to ".join(signed(end, share=share) for end in (d.delta.low, d.delta.high))
    return (
        f"Warning: the tuning cost general ability. On {split} (not of this task) {in_sentence(d.metric)} "
        f"went from {before} to {after} (difference {ends}, {d.delta.n} rows)."
    )


def doubt(difference: Difference) -> str | None:
    """What an inconclusive result could and could not have shown; None where there is no doubt."""
    if difference.verdict != "inconclusive":
        return None
    share = is_share(difference.metric, difference.baseline)
    changed = difference.improved + difference.regressed
    parts = []
    if changed < 10:
        parts.append(
            f"Only {changed} of {difference.delta.n} rows changed; fewer than ten are never taken as proof."
        )
    elif not difference.delta.low <= 0 <= difference.delta.high:
        parts.append(
            f"The interval leaves out zero, but p is {p_words(difference.p_value)} after correction over "
            "the metrics, which is not beyond doubt."
        )
    if difference.detectable is not None:
        unit = " points" if share else ""
        amount = f"{difference.detectable * 100:.1f}" if share else figure(difference.detectable)
        parts.append(
            f"With {difference.delta.n} rows a true difference of {amount}{unit} "
            "would be found four times in five."
        )
    if difference.rows_needed is not None and difference.rows_needed > difference.delta.n:
        parts.append(f"One as large as the observed one needs about {difference.rows_needed:,} rows.")
    return " ".join(parts)


def clean(text: str, most: int = 4_000) -> str:
    """Untrusted text without control characters or broken code points, cut where it is very long.

    Marks that turn the direction of writing go too: they could make an answer look like another.
    """
    kept = "".join(
        c for c in text[: most + 1] if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")
    )
    kept = re.sub(r"\n{4,}", "\n\n\n", kept)
    return kept if len(text) <= most else f"{kept[:most]}\u2026 ({len(text) - most:,} more characters)"

"""Metrics of generated answers: what each is, how one row is scored, and which fit the data.

Every metric scores one row within 0..1 (chrF, BLEU and ROUGE-L too, where others write 0..100), and a
model's score is the mean over rows.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.errors import Unsupported, UsageError, did_you_mean
from luthier.evaluation import structured
from luthier.evaluation.structured import NOTHING


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric by name. score(expected, answer) is within 0..1, more is better."""

    name: str
    label: str
    definition: str
    score: Callable[[str, str], float]
    needs: str | None = None
    """Package that computes it, where it is not in the base install."""


def without_thinking(answer: str) -> str:
    """The answer after its reasoning: what stands before a closing ``</think>`` is not judged."""
    return re.sub(r"^\s*(?:<think>)?.*?</think>", "", answer, count=1, flags=re.DOTALL).strip()


def normalise(text: str) -> str:
    """NFC, runs of white space as one space, none at the ends; case and punctuation stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _exact(expected: str, answer: str) -> float:
    return float(normalise(expected) == normalise(answer))


def _json_valid(expected: str, answer: str) -> float:
    value, wanted = structured.parse_json(answer), structured.parse_json(expected)
    return float(value is not NOTHING and (wanted is NOTHING or type(value) is type(wanted)))


def _json_exact(expected: str, answer: str) -> float:
    value, wanted = structured.parse_json(answer), structured.parse_json(expected)
    return float(value is not NOTHING and structured.equal_json(wanted, value))


def _field_exact(expected: str, answer: str) -> float:
    scores = structured.field_scores(structured.find_json(expected), structured.find_json(answer))
    return sum(scores.values()) / len(scores)


def _field_f1(expected: str, answer: str) -> float:
    return structured.field_f1(structured.find_json(expected), structured.find_json(answer))


def _numeric(expected: str, answer: str) -> float:
    wanted, given = structured.numeric_answer(expected), structured.numeric_answer(answer)
    return float(wanted is not None and given is not None and wanted == given)


def _tool_call_exact(expected: str, answer: str) -> float:
    return float(structured.same_calls(structured.tool_calls(expected), structured.tool_calls(answer)))


def _tool_name(expected: str, answer: str) -> float:
    wanted, given = structured.tool_calls(expected), structured.tool_calls(answer)
    return float(sorted(c.name for c in wanted) == sorted(c.name for c in given))


def _chrf(expected: str, answer: str) -> float:
    import sacrebleu

    return float(sacrebleu.sentence_chrf(answer, [expected]).score) / 100


def _bleu(expected: str, answer: str) -> float:
    import sacrebleu

    return float(sacrebleu.sentence_bleu(answer, [expected]).score) / 100


def _rouge_l(expected: str, answer: str) -> float:
    scorer = importlib.import_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    return float(scorer.score(expected, answer)["rougeL"].fmeasure)


METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        MetricSpec(
            "field_exact",
            "Fields right",
            "Share of the expected fields whose value is exactly right. Words or a code fence around the "
            "JSON are forgiven; list elements are matched by position.",
            _field_exact,
        ),
        MetricSpec(
            "json_exact",
            "Whole answer right",
            "The answer is JSON and nothing else, and equal to the expected value (key order aside).",
            _json_exact,
        ),
        MetricSpec(
            "json_valid",
            "Valid JSON",
            "The answer is JSON and nothing else (RFC 8259), an object where an object is expected.",
            _json_valid,
        ),
        MetricSpec(
            "field_f1",
            "Field F1",
            "F1 over pairs of field and value: missing, wrong and invented fields all cost. List order "
            "does not matter.",
            _field_f1,
        ),
        MetricSpec(
            "tool_call_exact",
            "Tool calls right",
            "The same calls, names and arguments, in any order; no call where none is expected.",
            _tool_call_exact,
        ),
        MetricSpec(
            "tool_name", "Tool names right", "The same tools called, whatever the arguments.", _tool_name
        ),
        MetricSpec(
            "numeric_exact",
            "Number right",
            "The number after #### (else the last one in the answer) equals the expected number.",
            _numeric,
        ),
        MetricSpec(
            "exact_match",
            "Exact match",
            "The answer equals the expected text after Unicode NFC and with runs of white space as one "
            "space; case and punctuation count.",
            _exact,
        ),
        MetricSpec(
            "chrf",
            "chrF",
            "Character n-gram F2 of each answer against the expected one (sacrebleu sentence chrF), mean "
            "over rows.",
            _chrf,
            needs="sacrebleu",
        ),
        MetricSpec(
            "bleu",
            "BLEU",
            "Sentence BLEU of each answer against the expected one (sacrebleu, exponential smoothing), "
            "mean over rows.",
            _bleu,
            needs="sacrebleu",
        ),
        MetricSpec(
            "rouge_l",
            "ROUGE-L",
            "F1 of the longest common word sequence (rouge-score, no stemming), mean over rows.",
            _rouge_l,
            needs="rouge_score",
        ),
    )
}


def metric_specs(names: Sequence[str]) -> list[MetricSpec]:
    """The metrics of these names. UsageError on an unknown one, Unsupported where its package is missing."""
    specs = []
    for name in names:
        spec = METRICS.get(name)
        if spec is None:
            near = did_you_mean(name, METRICS)
            raise UsageError(
                f"{name} is not a metric", hint=near or f"known metrics: {', '.join(sorted(METRICS))}"
            )
        if spec.needs is not None and importlib.util.find_spec(spec.needs) is None:
            package = spec.needs.replace("_", "-")
            raise Unsupported(
                f"the metric {name} needs {package}, which is not installed",
                hint=f"pip install {package}, or name other metrics in evaluation.metrics",
            )
        specs.append(spec)
    if not specs:
        raise UsageError("no metric to score with", hint=f"known metrics: {', '.join(sorted(METRICS))}")
    return specs


@dataclass(frozen=True, slots=True)
class MetricChoice:
    """Which metrics fit the data. reason says why, in words for the report."""

    names: tuple[str, ...]
    primary: str
    reason: str


MOST = 0.9
"""Share of expected answers that must have a shape before it is taken as the shape of the data."""


def choose_metrics(expected: Sequence[str]) -> MetricChoice:
    """Metrics from the shape of the expected answers; the first of the choice is the primary one.

    Raises UsageError when there are none.
    """
    if not expected:
        raise UsageError("no expected answer to choose metrics from", hint="the split has no rows")
    n = len(expected)

    def share(test: Callable[[str], bool]) -> float:
        return sum(map(test, expected)) / n

    if any("<tool_call>" in e for e in expected) or share(_is_call) >= MOST:
        calls = share(_is_call)
        return MetricChoice(
            ("tool_call_exact", "tool_name"),
            "tool_call_exact",
            f"{_percent(calls)} of the expected answers call tools",
        )
    as_json = share(lambda e: isinstance(structured.parse_json(e), (dict, list)))
    if as_json >= MOST:
        return MetricChoice(
            ("field_exact", "json_exact", "json_valid", "field_f1"),
            "field_exact",
            f"{_percent(as_json)} of the expected answers are JSON",
        )
    marked = share(lambda e: "####" in e and structured.numeric_answer(e) is not None)
    plain = share(_is_number)
    if max(marked, plain) >= MOST:
        how = "end in #### and a number" if marked >= plain else "are numbers"
        return MetricChoice(
            ("numeric_exact",),
            "numeric_exact",
            f"{_percent(max(marked, plain))} of the expected answers {how}",
        )
    lengths = sorted(len(e.split()) for e in expected)
    median = lengths[n // 2]
    distinct = len({normalise(e) for e in expected})
    if median <= 4:
        shape = f"the expected answers are short (median {median} words, {distinct} different ones)"
        return MetricChoice(("exact_match",), "exact_match", shape)
    optional = tuple(m for m, package in (("rouge_l", "rouge_score"),) if importlib.util.find_spec(package))
    return MetricChoice(
        ("chrf", *optional, "exact_match"),
        "chrf",
        f"the expected answers are free text (median {median} words): likeness to the reference is "
        "measured, which is not the same as quality",
    )


def _is_call(text: str) -> bool:
    return bool(structured.tool_calls(text))


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?\$?[\d,]*\.?\d+\s*", text))


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def per_field(expected: str, answer: str) -> dict[str, float] | None:
    """Expected field -> share right in this row (a list may hold a field often), or None if not JSON."""
    wanted = structured.parse_json(expected)
    if not isinstance(wanted, (dict, list)):
        return None
    found: dict[str, list[bool]] = {}
    for path, right in structured.field_scores(wanted, structured.find_json(answer)).items():
        found.setdefault(structured.without_index(path), []).append(right)
    return {path: sum(rights) / len(rights) for path, rights in found.items()}

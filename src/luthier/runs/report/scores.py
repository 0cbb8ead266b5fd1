"""Scores before and after: tracks with intervals, tables by metric, field and slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from luthier.data.languages import guess_language
from luthier.evaluation.compare import Slice, slices
from luthier.evaluation.names import named
from luthier.runs.report import words
from luthier.runs.report.charts import Interval, Tick, nice_ticks, on_track
from luthier.runs.report.context import ReportContext
from luthier.runs.report.facts import Fact
from luthier.schema.results import Comparison, Difference, Metric, ScoredRow

FEWEST_ROWS = 30
"""Rows of a split that is shown in parts."""
FEWEST_IN_PART = 10
MOST_PARTS = 8
"""Parts of one kind that are shown, the worst ones."""
LONGEST_LABEL = 40
"""Characters of an expected answer that rows are parted by."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A score or difference with its interval on a track."""

    label: str
    value: str
    interval: str
    style: str
    place: Interval


@dataclass(frozen=True, slots=True)
class Track:
    """Dots on one axis."""

    title: str
    note: str
    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    zero: float | None = None
    """Where zero lies, in per cent, on an axis of differences."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One metric, base and tuned on one lane."""

    label: str
    primary: bool
    base: Dot
    tuned: Dot


@dataclass(frozen=True, slots=True)
class PairTrack:
    """Metrics before and after on one axis."""

    title: str
    note: str
    rows: tuple[Pair, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of one split, before and after."""

    split: str
    name: str
    primary: bool
    baseline: str
    baseline_interval: str
    tuned: str
    tuned_interval: str
    delta: str
    delta_interval: str
    p: str
    improved: int
    regressed: int
    verdict: str
    kind: str


def interval_words(name: str, metric: Metric, *, share: bool, sign: bool = False) -> str:
    """The ends of an interval."""
    if sign:
        return f"{words.signed(metric.low, share=share)} to {words.signed(metric.high, share=share)}"
    low, high = (words.score(name, x, share=share).removesuffix(" %") for x in (metric.low, metric.high))
    return f"{low} to {high}"


def score_tracks(context: ReportContext) -> list[PairTrack]:
    """Every metric before and after, one track a split, on one axis."""
    comparisons = context.comparisons
    if not comparisons:
        return []
    share = all(words.is_share(d.metric, d.baseline) for c in comparisons for d in c.differences)
    shown = [(c, c.differences if share else (c.main,)) for c in comparisons]
    ends = [x for _, part in shown for d in part for m in (d.baseline, d.tuned) for x in (m.low, m.high)]
    start, end = (0.0, 1.0) if share else (min(ends), max(ends))
    return [
        PairTrack(
            title=c.split,
            note=f"{c.main.delta.n} rows{', 0 to 100' if share else ''}",
            rows=tuple(
                Pair(
                    label=words.metric_name(d.metric),
                    primary=d.metric == c.primary,
                    base=metric_dot("Base", "base", d.metric, d.baseline, (start, end)),
                    tuned=metric_dot("Tuned", "tuned", d.metric, d.tuned, (start, end)),
                )
                for d in part
            ),
            ticks=axis(start, end, share=share),
        )
        for c, part in shown
    ]


def metric_dot(label: str, style: str, name: str, metric: Metric, ends: tuple[float, float]) -> Dot:
    """A score with its interval, placed on an axis."""
    share = words.is_share(name, metric)
    return Dot(
        label=label,
        value=words.score(name, metric.value, share=share),
        interval=interval_words(name, metric, share=share),
        style=style,
        place=on_track(metric.low, metric.value, metric.high, start=ends[0], end=ends[1]),
    )


def axis(start: float, end: float, *, share: bool, sign: bool = False) -> tuple[Tick, ...]:
    """Ticks of a track."""
    span = end - start or 1
    found = []
    for value in nice_ticks(start, end, 5):
        text = f"{value * 100:.0f}" if share else words.figure(value, 3)
        if sign and value != 0:
            text = f"{'+' if value > 0 else words.MINUS}{text.lstrip('-').lstrip(words.MINUS)}"
        found.append(Tick((value - start) / span * 100, text))
    return tuple(found)


def difference_tracks(context: ReportContext) -> list[Track]:
    """Differences of every metric, one track a split."""
    found = []
    for c in context.comparisons:
        share = all(words.is_share(d.metric, d.baseline) for d in c.differences)
        shown = c.differences if share else (c.main,)
        far = max([abs(x) for d in shown for x in (d.delta.low, d.delta.high)] + [1e-9])
        start = -far if min(d.delta.low for d in shown) < 0 else -0.08 * far
        end = far if max(d.delta.high for d in shown) > 0 else 0.08 * far
        dots = tuple(
            Dot(
                label=words.metric_name(d.metric),
                value=words.signed(d.delta.value, share=share),
                interval=interval_words(d.metric, d.delta, share=share, sign=True),
                style={"better": "ok", "worse": "bad", "inconclusive": "base"}[d.verdict],
                place=on_track(d.delta.low, d.delta.value, d.delta.high, start=start, end=end),
            )
            for d in shown
        )
        found.append(
            Track(
                title=c.split,
                note="tuned minus base, points" if share else "tuned minus base",
                dots=dots,
                ticks=axis(start, end, share=share, sign=True),
                zero=(0 - start) / (end - start) * 100,
            )
        )
    return found


def metric_rows(comparisons: Iterable[Comparison]) -> list[MetricRow]:
    """Every metric of every split."""
    return [_metric_row(c, d) for c in comparisons for d in c.differences]


def _metric_row(c: Comparison, d: Difference) -> MetricRow:
    share = words.is_share(d.metric, d.baseline)
    return MetricRow(
        split=c.split,
        name=words.metric_name(d.metric),
        primary=d.metric == c.primary,
        baseline=words.score(d.metric, d.baseline.value, share=share),
        baseline_interval=interval_words(d.metric, d.baseline, share=share),
        tuned=words.score(d.metric, d.tuned.value, share=share),
        tuned_interval=interval_words(d.metric, d.tuned, share=share),
        delta=words.signed(d.delta.value, share=share),
        delta_interval=interval_words(d.metric, d.delta, share=share, sign=True),
        p=words.p_words(d.p_value),
        improved=d.improved,
        regressed=d.regressed,
        verdict=words.VERDICTS[d.verdict],
        kind=d.verdict,
    )


def definitions(context: ReportContext) -> list[Fact]:
    """What each metric shown means."""
    shown = (*context.comparisons, *context.abilities)
    names = dict.fromkeys(d.metric for c in shown for d in c.differences)
    known = [found for name in names if (found := named(name)) is not None]
    return [Fact(found.label, found.definition) for found in known]


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One field of JSON answers, base and tuned, by split."""

    name: str
    base: Dot
    tuned: Dot
    n: int


def field_tables(context: ReportContext) -> list[tuple[str, list[FieldRow]]]:
    """For JSON answers: each expected field before and after, by split."""
    found = []
    for split, tuned in context.tuned.items():
        base = context.baseline.get(split)
        if base is None or not tuned.fields or any(row.gold for row in tuned.rows):
            continue
        rows = []
        for name, metric in tuned.fields.items():
            if name not in base.fields:
                continue
            ends = (0.0, 1.0)
            dots = [
                metric_dot("Base", "base", "field_exact", base.fields[name], ends),
                metric_dot("Tuned", "tuned", "field_exact", metric, ends),
            ]
            rows.append(FieldRow(words.clean(name, 80) or "(whole answer)", dots[0], dots[1], metric.n))
        if rows:
            found.append((split, rows))
    return found


@dataclass(frozen=True, slots=True)
class SliceRow:
    """A part of a split on its own."""

    split: str
    name: str
    rows: int
    baseline: str
    tuned: str
    delta: str
    interval: str
    verdict: str
    kind: str


def slice_rows(context: ReportContext) -> list[SliceRow]:
    """Each split in parts: by length, language, expected answer and source, each of them worst first."""
    found = []
    for c in context.comparisons:
        base, tuned = context.baseline.get(c.split), context.tuned.get(c.split)
        if base is None or tuned is None or len(tuned.rows) < FEWEST_ROWS:
            continue
        if c.primary not in tuned.rows[0].scores:
            continue  # a score of the whole set, which parts do not add up to
        for by in (None, *parts_of(tuned.rows)):
            parts = slices(base, tuned, by)
            if len(parts) > 1:
                found += [_slice_row(c.split, part) for part in parts[:MOST_PARTS]]
    return found


def parts_of(rows: Sequence[ScoredRow]) -> list[Callable[[ScoredRow], str]]:
    """Ways to part rows that give several parts of some size: language, expected answer, source."""
    languages = {row.id: guess_language(row.prompt) for row in rows}
    found: list[Callable[[ScoredRow], str]] = []

    def many(names: Counter[str]) -> bool:
        return sum(n >= FEWEST_IN_PART for n in names.values()) > 1

    # The guess of a short text may be wrong; a language that a tenth of the rows seem to have is there.
    common = {
        name for name, n in Counter(languages.values()).items() if n >= max(len(rows) / 10, FEWEST_IN_PART)
    }
    if len(common) > 1:
        found.append(
            lambda row: f"language {languages[row.id]}" if languages[row.id] in common else "other languages"
        )
    names = Counter(row.expected for row in rows if 0 < len(row.expected) <= LONGEST_LABEL)
    if many(names) and not all(_is_number(name) for name in names):
        found.append(lambda row: f"expected: {row.expected[:LONGEST_LABEL]}")
    if many(Counter(g for row in rows if (g := source_of(row)) is not None)):
        found.append(lambda row: f"source {source_of(row) or 'not named'}")
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def source_of(row: ScoredRow) -> str | None:
    """The group that the data names; copies of one row are a group of their own that says nothing."""
    return None if row.group is None or row.group.startswith("row ") else row.group


def _slice_row(split: str, part: Slice) -> SliceRow:
    d, share = part.difference, words.is_share(part.difference.metric, part.difference.baseline)
    return SliceRow(
        split=split,
        name=words.clean(part.name, 80),
        rows=d.delta.n,
        baseline=words.score(d.metric, d.baseline.value, share=share),
        tuned=words.score(d.metric, d.tuned.value, share=share),
        delta=words.signed(d.delta.value, share=share),
        interval=interval_words(d.metric, d.delta, share=share, sign=True),
        verdict=words.VERDICTS[d.verdict],
        kind=d.verdict,
    )


@dataclass(frozen=True, slots=True)
class OtherRow:
    """Another model, or a floor, on the same rows."""

    split: str
    model: str
    dot: Dot
    n: int


def other_rows(context: ReportContext) -> list[OtherRow]:
    """Everything that was judged on a split, base and tuned among the rest, best first."""
    if not context.others:
        return []
    found: list[tuple[float, OtherRow]] = []
    for result in (*context.baseline.values(), *context.tuned.values(), *context.others):
        metric = result.metrics[result.primary]
        style = {"base": "base", "tuned": "tuned"}.get(result.model, "third")
        share = words.is_share(result.primary, metric)
        ends = (0.0, 1.0) if share else (min(0.0, metric.low), metric.high)
        dot = metric_dot(result.model, style, result.primary, metric, ends)
        row = OtherRow(result.split, words.clean(result.model, 120), dot, metric.n)
        found.append((metric.value if metric.greater_is_better else -metric.value, row))
    order = list(dict.fromkeys(row.split for _, row in found))
    return [row for _, row in sorted(found, key=lambda item: (order.index(item[1].split), -item[0]))]

"""Records into what the templates show: words, places on tracks, rows of tables. No markup here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from luthier.evaluation.compare import RowChange, row_changes, slices
from luthier.evaluation.diff import Span, word_diff
from luthier.evaluation.metrics import METRICS
from luthier.runs.report import words
from luthier.runs.report.charts import Chart, Interval, Series, Tick, chart, nice_ticks, on_track, smooth
from luthier.runs.report.context import ReportContext
from luthier.schema.base import Range
from luthier.schema.plan import Candidate
from luthier.schema.recipe import Full, QLora
from luthier.schema.results import Artifact, Comparison, Difference, EvalResult, Metric, ScoredRow

MOST_CHANGED = 20
"""Changed rows of each kind that are listed."""
PART_NAMES = {
    "weights": "Weights",
    "adapters": "Adapters",
    "gradients": "Gradients",
    "optimizer": "Optimiser",
    "activations": "Activations",
    "logits": "Logits",
    "buffers": "Buffers",
    "workspace": "Workspace",
    "runtime": "Runtime",
}
STAGE_NAMES = {
    "prepare": "Prepare",
    "baseline": "Baseline",
    "train": "Train",
    "prove": "Prove",
    "ship": "Ship",
    "report": "Report",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """One measured figure at the head of the page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """A row of a two- or three-column table."""

    label: str
    value: str
    source: str = ""


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


@dataclass(frozen=True, slots=True)
class Side:
    """An answer with the words that the expected one does not have."""

    label: str
    style: str
    spans: tuple[Span, ...]
    score: str
    empty: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with the expected and both given answers."""

    split: str
    prompt: str
    expected: str
    sides: tuple[Side, ...]
    change: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows of one split that got better or worse."""

    split: str
    metric: str
    improved: int
    regressed: int
    unchanged: int
    worst: tuple[Sample, ...]
    best: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Band:
    """A prediction with its band, and what was measured."""

    label: str
    predicted: str
    band: str
    measured: str
    verdict: str
    kind: str
    low: float
    expected: float
    high: float
    dot: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the predicted memory; share in per cent."""

    label: str
    value: str
    share: float


def when(context: ReportContext) -> str:
    """The day and time of the run's start, in UTC."""
    if context.created is None:
        return ""
    return datetime.fromtimestamp(context.created, UTC).strftime("%Y-%m-%d %H:%M UTC")


def name_of(context: ReportContext) -> str:
    """What the run is called."""
    return context.recipe.name or context.run_id


def method_name(context: ReportContext) -> str:
    """The method with what sets it apart: LoRA rank 16."""
    method = context.recipe.method
    if isinstance(method, Full):
        return "full fine-tuning"
    label = "QLoRA" if isinstance(method, QLora) else "LoRA"
    return f"{label} rank {method.rank}{', DoRA' if method.dora else ''}{', rsLoRA' if method.rslora else ''}"


# --- the verdict ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Banner:
    """What the run came to, in a few words."""

    kind: str
    """better, worse, inconclusive, mixed or none."""
    headline: str
    sentences: tuple[str, ...]


def banner(context: ReportContext) -> Banner:
    """The verdict over all splits, or why there is none."""
    found = context.comparisons
    status = context.status
    if not found:
        if status is not None and status.failure is not None:
            failure = status.failure
            why = (words.clean(failure.message, 600), words.clean(failure.hint or "", 600))
            return Banner("worse", "The run failed", tuple(s for s in why if s))
        if status is not None and status.state in ("stopped", "lost", "stopping"):
            return Banner("none", "The run stopped early", ("Nothing was proved yet.",))
        return Banner("none", "Not proved yet", ("No held-out rows were judged before and after.",))
    kinds = {c.verdict for c in found}
    headlines = {
        "better": "The tuning helped",
        "worse": "The tuning made it worse",
        "inconclusive": "No clear difference",
    }
    kind: str
    if len(kinds) == 1:
        kind, headline = found[0].verdict, headlines[found[0].verdict]
    else:
        kind = "worse" if "worse" in kinds else "mixed"
        headline = "; ".join(f"{c.split}: {words.VERDICTS[c.verdict]}" for c in found)
    said: list[str] = []
    for comparison in found:
        said.append(words.sentence(comparison.main, comparison.split))
        said.append(words.doubt(comparison.main) or "")
        worse = [d for d in comparison.differences if d.verdict == "worse" and d.metric != comparison.primary]
        if worse:
            names = ", ".join(words.in_sentence(d.metric) for d in worse)
            said.append(f"Worse on {comparison.split} by another measure: {names}.")
    return Banner(kind, headline, tuple(s for s in said if s))


def tiles(context: ReportContext) -> list[Tile]:
    """Up to six figures for a first look."""
    found = []
    if context.comparisons:
        main = context.comparisons[0].main
        share = words.is_share(main.metric, main.baseline)
        for label, metric in (("Base model", main.baseline), ("Tuned model", main.tuned)):
            found.append(Tile(label, words.score(main.metric, metric.value, share=share), main_note(context)))
        low, high = (words.signed(x, share=share) for x in (main.delta.low, main.delta.high))
        found.append(Tile("Difference", words.signed(main.delta.value, share=share), f"{low} to {high}"))
    if context.train is not None:
        train = context.train
        found.append(Tile("Training", words.duration(train.seconds), f"{train.steps:,} steps"))
        found.append(Tile("Peak memory", words.size(train.peak_memory), memory_kind(context)))
    ggufs = [a for a in context.artifacts if a.kind.startswith("gguf:")]
    if ggufs:
        least = min(ggufs, key=lambda a: a.bytes)
        found.append(Tile("Smallest file", words.size(least.bytes), least.kind.removeprefix("gguf:")))
    return found


def main_note(context: ReportContext) -> str:
    """Which metric and split the first tiles show."""
    comparison = context.comparisons[0]
    return f"{words.in_sentence(comparison.primary)}, {comparison.split}"


def memory_kind(context: ReportContext) -> str:
    """What the peak memory of training counts."""
    return "resident" if context.train is not None and context.train.device.startswith("cpu") else "tensors"


# --- scores ---------------------------------------------------------------------------------------


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
                    base=_dot("Base", "base", d.metric, d.baseline, (start, end)),
                    tuned=_dot("Tuned", "tuned", d.metric, d.tuned, (start, end)),
                )
                for d in part
            ),
            ticks=axis(start, end, share=share),
        )
        for c, part in shown
    ]


def _dot(label: str, style: str, name: str, metric: Metric, ends: tuple[float, float]) -> Dot:
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
    names = dict.fromkeys(d.metric for c in context.comparisons for d in c.differences)
    return [Fact(METRICS[n].label, METRICS[n].definition) for n in names if n in METRICS]


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
        if base is None or not tuned.fields:
            continue
        rows = []
        for name, metric in tuned.fields.items():
            if name not in base.fields:
                continue
            ends = (0.0, 1.0)
            dots = [
                _dot("Base", "base", "field_exact", base.fields[name], ends),
                _dot("Tuned", "tuned", "field_exact", metric, ends),
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
    """Each split in thirds of prompt length, worst first."""
    found = []
    for c in context.comparisons:
        base, tuned = context.baseline.get(c.split), context.tuned.get(c.split)
        if base is None or tuned is None or len(tuned.rows) < 30:
            continue
        for part in slices(base, tuned):
            d, share = part.difference, words.is_share(part.difference.metric, part.difference.baseline)
            found.append(
                SliceRow(
                    split=c.split,
                    name=part.name,
                    rows=d.delta.n,
                    baseline=words.score(d.metric, d.baseline.value, share=share),
                    tuned=words.score(d.metric, d.tuned.value, share=share),
                    delta=words.signed(d.delta.value, share=share),
                    interval=interval_words(d.metric, d.delta, share=share, sign=True),
                    verdict=words.VERDICTS[d.verdict],
                    kind=d.verdict,
                )
            )
    return found


# --- answers --------------------------------------------------------------------------------------


def samples(context: ReportContext) -> list[Sample]:
    """The first prompts of the splits in the order of their digests: chosen by nothing that was scored."""
    most = context.recipe.evaluation.samples
    results = context.tuned or context.baseline
    by_split = {
        split: sorted(result.rows, key=lambda r: r.id)[:most] for split, result in results.items() if most
    }
    # One of each split in turn, so that no split is left out.
    turns = [(split, rows[i]) for i in range(most) for split, rows in by_split.items() if i < len(rows)]
    return [_sample(context, split, row.id) for split, row in turns[:most]]


def _sample(context: ReportContext, split: str, row_id: str, change: str = "") -> Sample:
    sides = []
    shown: ScoredRow | None = None
    for label, style, results in (("Base", "base", context.baseline), ("Tuned", "tuned", context.tuned)):
        result = results.get(split)
        row = next((r for r in result.rows if r.id == row_id), None) if result is not None else None
        if result is None or row is None:
            continue
        shown = row
        sides.append(_side(result, row, label, style))
    assert shown is not None
    prompt, expected = words.clean(shown.prompt, 2_000), words.clean(shown.expected, 2_000)
    return Sample(split, prompt, expected, tuple(sides), change)


def _side(result: EvalResult, row: ScoredRow, label: str, style: str) -> Side:
    expected, answer = words.clean(row.expected, 2_000), words.clean(row.answer, 2_000)
    _, spans = word_diff(expected, answer)
    share = words.is_share(result.primary, result.metrics[result.primary])
    return Side(
        label=label,
        style=style,
        spans=tuple(spans),
        score=words.score(result.primary, row.scores[result.primary], share=share),
        empty=not answer.strip(),
    )


def changes(context: ReportContext) -> list[Changes]:
    """Rows that got better or worse by the primary metric, by split."""
    found = []
    for c in context.comparisons:
        base, tuned = context.baseline.get(c.split), context.tuned.get(c.split)
        if base is None or tuned is None:
            continue
        rows = row_changes(base, tuned)
        share = words.is_share(c.primary, c.main.baseline)

        def listed(part: list[RowChange], split: str = c.split, share: bool = share) -> tuple[Sample, ...]:
            return tuple(
                _sample(context, split, r.after.id, words.signed(r.change, share=share)) for r in part
            )

        worse = [r for r in rows if r.kind == "regressed"]
        better = [r for r in reversed(rows) if r.kind == "improved"]
        found.append(
            Changes(
                split=c.split,
                metric=words.metric_name(c.primary),
                improved=len(better),
                regressed=len(worse),
                unchanged=len(rows) - len(better) - len(worse),
                worst=listed(worse[:MOST_CHANGED]),
                best=listed(better[:MOST_CHANGED]),
            )
        )
    return found


# --- predicted and measured -----------------------------------------------------------------------


def bands(context: ReportContext) -> list[Band]:
    """Memory, time and speed: what was predicted, with its band, and what was measured."""
    estimate, train = context.estimate, context.train
    if estimate is None:
        return []
    on_cpu = train is None or train.device.startswith("cpu")
    found = [
        _band(
            "Peak memory" if on_cpu else "Peak memory of tensors",
            estimate.process if on_cpu else estimate.tensors,
            None if train is None else train.peak_memory,
            words.size,
        )
    ]
    if estimate.seconds is not None:
        seconds = None if train is None else train.seconds
        found.append(_band("Training time", estimate.seconds, seconds, words.duration))
    if estimate.tokens_per_second is not None:
        found.append(
            _band(
                "Tokens a second",
                estimate.tokens_per_second,
                None if train is None else train.tokens_per_second,
                words.count,
            )
        )
    return found


def _band(label: str, predicted: Range, measured: float | None, show: Callable[[float], str]) -> Band:
    top = max(predicted.high, measured or 0) * 1.12 or 1.0
    verdict, kind = "", "none"
    if measured is not None:
        if predicted.low <= measured <= predicted.high:
            verdict, kind = "within the band", "better"
        else:
            edge = predicted.high if measured > predicted.high else predicted.low
            off = abs(measured / edge - 1) * 100 if edge else 0.0
            side = "above" if measured > predicted.high else "below"
            verdict, kind = f"{off:.0f} % {side} the band", "inconclusive"
    return Band(
        label=label,
        predicted=show(predicted.expected),
        band=f"{show(predicted.low)} to {show(predicted.high)}",
        measured="" if measured is None else show(measured),
        verdict=verdict,
        kind=kind,
        low=predicted.low / top * 100,
        expected=predicted.expected / top * 100,
        high=predicted.high / top * 100,
        dot=None if measured is None else measured / top * 100,
    )


def memory_parts(context: ReportContext) -> list[Part]:
    """The parts of the predicted peak, largest first."""
    if context.estimate is None or not context.estimate.phases:
        return []
    peak = context.estimate.peak
    total = peak.total or 1
    parts = sorted(peak.parts.items(), key=lambda item: -item[1])
    return [Part(PART_NAMES[name], words.size(n), n / total * 100) for name, n in parts if n > 0]


def stage_rows(context: ReportContext) -> list[tuple[str, str, str]]:
    """Stage, wall time, and peak memory of its largest process."""
    status = context.status
    if status is None:
        return []
    return [
        (
            STAGE_NAMES.get(stage, stage),
            words.duration(seconds),
            words.size(status.peak_memory[stage]) if stage in status.peak_memory else "",
        )
        for stage, seconds in status.seconds.items()
    ]


def curves(context: ReportContext) -> list[Chart]:
    """Loss first, then what else was measured at each step."""
    points = context.points

    def line(name: str) -> list[tuple[float, float]]:
        return [(p.step, value) for p in points if (value := getattr(p, name)) is not None]

    loss, memory = line("loss"), [(x, y / 1e9) for x, y in line("memory")]
    many = len(loss) > 30
    losses = [
        Series("train, each step" if many else "train", loss, "base" if many else "tuned", faint=many),
        *([Series("train, smoothed", smooth(loss), "tuned")] if many else []),
        Series("validation", line("validation_loss"), "eval", dots=True),
    ]
    charts = [
        chart("Loss", losses, unit="nats a token"),
        chart("Learning rate", [Series("learning rate", line("learning_rate"), "third")], from_zero=True),
        chart("Gradient norm", [Series("gradient norm", line("grad_norm"), "third")], from_zero=True),
        chart("Tokens a second", [Series("tokens/s", line("tokens_per_second"), "third")], from_zero=True),
        chart("Memory, GB", [Series("memory", memory, "third")], unit="GB", from_zero=True),
    ]
    return [c for c in charts if c is not None]


# --- what was asked, chosen, read, written --------------------------------------------------------


def request_facts(context: ReportContext) -> list[Fact]:
    """What was asked of the recommender, where it was; else of the recipe."""
    if context.plan is None:
        return []
    request = context.plan.request
    default = type(request)()
    hidden = {"words", "mapped", "profile"}
    found = [Fact("purpose", request.purpose)]
    if request.words:
        found.insert(0, Fact("in words", words.clean(request.words, 400)))
    for name in type(request).model_fields:
        value = getattr(request, name)
        if name in hidden or name == "purpose" or value == getattr(default, name):
            continue
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        found.append(Fact(name.replace("_", " "), words.clean(text, 200)))
    return found


def chosen_facts(context: ReportContext) -> list[Fact]:
    """The settings that made this run, each with where it came from."""
    recipe, sources = context.recipe, context.recipe.sources
    flat: dict[str, object] = {"model.id": recipe.model.id}
    if context.revision:
        flat["model.revision"] = context.revision
    for section in ("model", "method", "training"):
        record = getattr(recipe, section)
        for key, value in record.model_dump(mode="json").items():
            name = f"{section}.{key}"
            if name in flat or value is None:
                continue
            default = type(record).model_fields[key].default
            if name in sources or value != default or name in ("method.name", "method.rank"):
                flat[name] = value
    flat["evaluation.max_new_tokens"] = recipe.evaluation.max_new_tokens
    flat["seed"] = recipe.seed

    def source_of(name: str) -> str:
        if name in sources:
            return sources[name]
        section, _, key = name.rpartition(".")
        record = getattr(recipe, section) if section else recipe
        field = type(record).model_fields.get(key)
        return "default" if field is not None and getattr(record, key) == field.default else "given"

    return [
        Fact(name, words.clean(_plain(value), 300), words.clean(source_of(name), 300))
        for name, value in flat.items()
    ]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return words.figure(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One recommended model."""

    rank: int
    name: str
    method: str
    memory: str
    time: str
    licence: str
    why: tuple[str, ...]
    chosen: bool


def candidates(context: ReportContext) -> list[CandidateRow]:
    """The recommended models with their reasons, the chosen one marked."""
    if context.plan is None:
        return []
    return [_candidate(context, c) for c in context.plan.candidates[:5]]


def _candidate(context: ReportContext, c: Candidate) -> CandidateRow:
    seconds = c.estimate.seconds
    return CandidateRow(
        rank=c.rank,
        name=c.card.id,
        method=c.method.name,
        memory=words.size(c.estimate.process.expected),
        time="" if seconds is None else words.duration(seconds.expected),
        licence=c.card.licence,
        why=tuple(words.clean(r.text, 300) for r in c.reasons[:4]),
        chosen=context.recipe.model.id in (c.card.id, c.weights),
    )


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One split of the data."""

    name: str
    read: str
    kept: str
    dropped: str
    tokens: str
    note: str


def split_rows(context: ReportContext) -> list[SplitRow]:
    """What was read, kept and dropped."""
    if context.data is None:
        return []
    found = []
    for s in context.data.splits:
        notes = []
        if s.cut_from_train:
            notes.append("cut from train by seed")
        if s.truncated:
            notes.append(f"{s.truncated:,} truncated")
        if s.duplicates:
            notes.append(f"{s.duplicates:,} duplicates")
        for leaks, what in ((context.data.leakage, "rows"), (context.data.prompt_leakage, "prompts")):
            if leaks.get(s.name):
                notes.append(f"{leaks[s.name]:,} {what} stand in train too")
        dropped = ", ".join(f"{n:,} {words.clean(reason, 80)}" for reason, n in s.dropped.items())
        tokens = "" if s.tokens is None else f"{s.tokens.median:,} median, {s.tokens.maximum:,} longest"
        found.append(SplitRow(s.name, f"{s.read:,}", f"{s.kept:,}", dropped, tokens, "; ".join(notes)))
    return found


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """One thing written for use elsewhere."""

    kind: str
    path: str
    size: str
    predicted: str
    parity: str
    passed: str
    """yes, no or empty where there was no check."""
    details: tuple[str, ...]
    sha256: str


def artifact_rows(artifacts: Iterable[Artifact]) -> list[ArtifactRow]:
    """Sizes, predicted sizes and whether each answers like the trained model."""
    found = []
    for a in artifacts:
        predicted = ""
        if a.predicted_bytes:
            off = (a.bytes / a.predicted_bytes - 1) * 100
            sign = "+" if off >= 0 else words.MINUS
            predicted = f"{words.size(a.predicted_bytes)} ({sign}{abs(off):.1f} %)"
        parity, passed, details = "", "", [*a.notes]
        if a.parity is not None:
            p = a.parity
            passed = "yes" if p.passed else "no"
            parity = f"{p.equal_tokens}/{p.compared_tokens} tokens"
            details += [
                f"prompt ids equal on {p.equal_token_ids} of {p.prompts}",
                f"{p.near_ties} ended at a near-tie" if p.near_ties else "",
                "" if p.mean_kl is None else f"mean KL {words.figure(p.mean_kl, 2)} nats",
                "" if p.stops else "the end token does not stop it",
                *p.problems,
            ]
        found.append(
            ArtifactRow(
                kind=a.kind,
                path=a.path,
                size=words.size(a.bytes),
                predicted=predicted,
                parity=parity,
                passed=passed,
                details=tuple(words.clean(d, 300) for d in details if d),
                sha256=a.sha256,
            )
        )
    return found


def machine_facts(context: ReportContext) -> list[Fact]:
    """Where the run was done."""
    found = []
    hardware = context.hardware
    if hardware is not None:
        p = hardware.processor
        sets = f", {' '.join(p.instruction_sets)}" if p.instruction_sets else ""
        found.append(Fact("Processor", f"{p.name}, {p.cores} cores{sets}"))
        free = words.size(hardware.memory_free)
        found.append(Fact("Memory", f"{words.size(hardware.memory_total)}, {free} free at the start"))
        found += [
            Fact(f"GPU {g.index}", f"{g.name}, {words.size(g.memory_total)}") for g in hardware.accelerators
        ]
        if hardware.os:
            found.append(Fact("System", hardware.os))
    if context.matrix_gflops is not None:
        found.append(Fact("Matrix rate", f"{words.figure(context.matrix_gflops, 3)} GFLOP/s, measured"))
    if context.train is not None:
        t = context.train
        found.append(Fact("Trained on", f"{t.device} in {t.dtype}"))
        share = t.trainable_parameters / t.total_parameters * 100 if t.total_parameters else 0
        of = f"{words.count(t.trainable_parameters)} of {words.count(t.total_parameters)}"
        found.append(Fact("Parameters", f"{of} trained ({share:.2g} %)"))
        found.append(Fact("Tokens", f"{t.tokens:,}, of which {t.trained_tokens:,} carried loss"))
    return found

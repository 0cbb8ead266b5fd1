"""What was judged: every comparison of every run, its rows, slices and the words that tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from luthier.evaluation.compare import RowChange, row_changes
from luthier.evaluation.diff import Span, word_diff
from luthier.evaluation.names import named
from luthier.runs.abilities import load_abilities
from luthier.runs.directory import RunDirectory, list_runs
from luthier.runs.report import words
from luthier.runs.report.context import ReportContext
from luthier.runs.report.scores import FieldRow, MetricRow, SliceRow, field_tables, metric_rows, slice_rows
from luthier.runs.report.verdict import Banner, banner
from luthier.runs.stages import load_comparisons, load_floors, load_results
from luthier.schema.results import Comparison, EvalResult, Metric
from luthier.studio.problems import NotFound
from luthier.studio.services.runs import Headings, headings

Only = Literal["all", "regressed", "improved", "unchanged"]
Against = Literal["expected", "other"]
PAGE_ROWS = 20
MOST_MARKED = 0.7
"""Share of an answer beyond which its words are not marked: nothing would stand out."""
LONGEST = 4_000
"""Letters of a prompt or an answer that are shown."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One comparison of one run, for the list."""

    run: str
    name: str
    task: str
    model: str
    created: float
    split: str
    extra: bool
    """Judged later, on rows that the recipe does not name."""
    metric: str
    baseline: str
    tuned: str
    delta: str
    low: str
    high: str
    rows: int
    improved: int
    regressed: int
    verdict: str
    words: str
    plot: Plot


@dataclass(frozen=True, slots=True)
class Plot:
    """A difference with its interval on an axis, in per cent of its width."""

    low: float
    value: float
    high: float
    zero: float


def extras(run: RunDirectory) -> list[str]:
    """Names of the splits that were judged later."""
    return sorted(path.stem for path in (run.path / "evaluations").glob("*.json"))


def _extra(run: RunDirectory, name: str) -> dict[str, Any]:
    if name not in extras(run):
        raise NotFound(f"{run.id} was not judged on {name!r}", hint="see /evals")
    found: dict[str, Any] = run.stage_values(f"evaluations/{name}") or {}
    return found


def judged(runs: Path, q: str = "", verdict: str = "") -> list[Judged]:
    """Every comparison under the root, newest run first. q: part of a run, model or split."""
    found = [one for run in list_runs(runs) for one in _of_run(run.path, _stamp(run))]
    wanted = q.casefold().strip()
    return [
        one
        for one in found
        if (not verdict or one.verdict == verdict)
        and (not wanted or wanted in f"{one.run} {one.name} {one.model} {one.split} {one.task}".casefold())
    ]


def _stamp(run: RunDirectory) -> tuple[int, ...]:
    """Changes when what was judged of a run may have."""
    files = [run.path / "comparison.json", *sorted((run.path / "evaluations").glob("*.json"))]
    return tuple(path.stat().st_mtime_ns for path in files if path.is_file())


@lru_cache(maxsize=2_000)
def _of_run(path: Path, stamp: tuple[int, ...]) -> tuple[Judged, ...]:
    """A run's comparisons; read again only when they have changed."""
    if not stamp:
        return ()
    run = RunDirectory(path)
    known = [(c, False) for c in load_comparisons(run)]
    known += [(Comparison.model_validate(_extra(run, name)["comparison"]), True) for name in extras(run)]
    head = headings(run) if known else None
    return tuple(_listed(run, head, c, extra=extra) for c, extra in known if head is not None)


def _listed(run: RunDirectory, head: Headings, c: Comparison, *, extra: bool) -> Judged:
    d = c.main
    share = words.is_share(d.metric, d.baseline)
    return Judged(
        run=run.id,
        name=head.name or run.id,
        task=head.task,
        model=head.model,
        created=(run.path / "recipe.yaml").stat().st_mtime,
        split=c.split,
        extra=extra,
        metric=words.metric_name(d.metric),
        baseline=words.score(d.metric, d.baseline.value, share=share),
        tuned=words.score(d.metric, d.tuned.value, share=share),
        delta=words.signed(d.delta.value, share=share),
        low=words.signed(d.delta.low, share=share),
        high=words.signed(d.delta.high, share=share),
        rows=d.delta.n,
        improved=d.improved,
        regressed=d.regressed,
        verdict=c.verdict,
        words=words.VERDICTS[c.verdict],
        plot=plot_of(d.delta, share=share),
    )


def plot_of(delta: Metric, *, share: bool) -> Plot:
    """A difference on an axis around zero; shares all stand on one axis, from -1 to 1."""
    far = 1.0 if share else max(abs(delta.low), abs(delta.high), 1e-9) * 1.1
    low, value, high = (50 + max(-1.0, min(1.0, x / far)) * 50 for x in (delta.low, delta.value, delta.high))
    return Plot(round(low, 2), round(value, 2), round(high, 2), 50.0)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Base and tuned model of one run on one split."""

    run: RunDirectory
    splits: tuple[str, ...]
    split: str
    comparison: Comparison
    baseline: EvalResult | None
    tuned: EvalResult | None
    context: ReportContext

    @property
    def metric(self) -> str:
        """The metric by which rows are told better or worse: the primary one, if rows have it."""
        rows = () if self.tuned is None else self.tuned.rows
        first = rows[0].scores if rows else {}
        return self.comparison.primary if self.comparison.primary in first or not first else next(iter(first))

    @property
    def banner(self) -> Banner:
        """The verdict in words."""
        return banner(self.context)

    @property
    def metrics(self) -> list[MetricRow]:
        """Every metric before and after."""
        return metric_rows([self.comparison])

    @property
    def fields(self) -> list[FieldRow]:
        """For JSON answers, each expected field before and after."""
        return next((rows for _, rows in field_tables(self.context)), [])

    @property
    def slices(self) -> list[SliceRow]:
        """Parts of the split on their own; none where rows carry no score."""
        if self.tuned is None or self.metric != self.comparison.primary:
            return []
        return slice_rows(self.context)

    @property
    def definition(self) -> str:
        """What the primary metric means."""
        known = named(self.comparison.primary)
        return "" if known is None else known.definition


def open_evaluation(run: RunDirectory, split: str | None = None) -> Evaluation:
    """One comparison with all that was answered. Errors: NotFound."""
    own = load_comparisons(run)
    more = extras(run)
    splits = (*(c.split for c in own), *more)
    if not splits:
        raise NotFound(f"{run.id} was not judged on held-out rows", hint="it may be under way: see its page")
    chosen = split or splits[0]
    if chosen in {c.split for c in own}:
        comparison = next(c for c in own if c.split == chosen)
        baseline = load_results(run, "baseline").get(chosen)
        tuned = load_results(run, "tuned").get(chosen)
        floors = tuple(floor for floor in load_floors(run) if floor.comparison.split == chosen)
        abilities = tuple(load_abilities(run))
    else:
        values = _extra(run, chosen)
        comparison = Comparison.model_validate(values["comparison"])
        baseline = EvalResult.model_validate(values["baseline"])
        tuned = EvalResult.model_validate(values["tuned"])
        floors, abilities = (), ()
    context = ReportContext(
        run_id=run.id,
        recipe=run.recipe,
        baseline={} if baseline is None else {chosen: baseline},
        tuned={} if tuned is None else {chosen: tuned},
        comparisons=(comparison,),
        floors=floors,
        abilities=abilities,
    )
    return Evaluation(run, splits, chosen, comparison, baseline, tuned, context)


@dataclass(frozen=True, slots=True)
class Side:
    """One model's answer to a row."""

    label: str
    style: str
    spans: tuple[Span, ...]
    score: str
    same: bool
    """Word for word what it is held against."""


@dataclass(frozen=True, slots=True)
class RowView:
    """One held-out row with both answers."""

    id: str
    prompt: str
    expected: str
    sides: tuple[Side, Side]
    change: str
    kind: str


@dataclass(frozen=True, slots=True)
class RowPage:
    """Some rows of many."""

    rows: tuple[RowView, ...]
    page: int
    pages: int
    found: int
    counts: dict[str, int]
    """all, regressed, improved, unchanged -> rows."""


def row_page(
    evaluation: Evaluation,
    *,
    only: Only = "all",
    against: Against = "expected",
    q: str = "",
    page: int = 1,
    size: int = PAGE_ROWS,
) -> RowPage:
    """Rows with their answers: regressed ones worst first, improved ones best first.

    against: what marked words differ from: the expected answer, or the other model's.
    """
    if evaluation.baseline is None or evaluation.tuned is None:
        return RowPage((), 1, 1, 0, dict.fromkeys(("all", "regressed", "improved", "unchanged"), 0))
    rows = row_changes(evaluation.baseline, evaluation.tuned, evaluation.metric)
    counts = {"all": len(rows)} | {
        kind: sum(row.kind == kind for row in rows) for kind in ("regressed", "improved", "unchanged")
    }
    if only != "all":
        rows = [row for row in rows if row.kind == only]
    if only == "improved":
        rows = rows[::-1]
    if wanted := q.casefold().strip():
        rows = [row for row in rows if wanted in _text(row).casefold()]
    pages = max(1, -(-len(rows) // size))
    page = min(max(1, page), pages)
    shown = tuple(_row(evaluation, row, against) for row in rows[(page - 1) * size : page * size])
    return RowPage(shown, page, pages, len(rows), counts)


def _text(row: RowChange) -> str:
    return "\n".join((row.after.prompt, row.after.expected, row.before.answer, row.after.answer))


def _row(evaluation: Evaluation, row: RowChange, against: Against) -> RowView:
    assert evaluation.tuned is not None
    metric = evaluation.metric
    known = evaluation.tuned.metrics.get(metric)
    share = known is None or words.is_share(metric, known)
    expected, before, after = (
        words.clean(text, LONGEST) for text in (row.after.expected, row.before.answer, row.after.answer)
    )
    by_expected = against == "expected" and bool(expected)

    def side(label: str, style: str, own: str, other: str, value: float) -> Side:
        reference = expected if by_expected else other
        _, spans = word_diff(reference, own)
        marked = sum(len(span.text) for span in spans if span.changed)
        if not reference or marked > MOST_MARKED * len(own):
            spans = [Span(own, changed=False)] if own else []
        return Side(
            label, style, tuple(spans), words.score(metric, value, share=share), same=own == reference != ""
        )

    return RowView(
        id=row.after.id,
        prompt=words.clean(row.after.prompt, LONGEST),
        expected=expected,
        sides=(
            side("Base", "base", before, after, row.before.scores[metric]),
            side("Tuned", "tuned", after, before, row.after.scores[metric]),
        ),
        change=words.signed(row.change, share=share),
        kind=row.kind,
    )


def plain_rows(page: RowPage) -> list[dict[str, Any]]:
    """Rows as plain values, for programs."""
    return [
        {
            "id": row.id,
            "prompt": row.prompt,
            "expected": row.expected,
            "change": row.change,
            "kind": row.kind,
            **{
                side.label.lower(): {"answer": _joined(side.spans), "score": side.score} for side in row.sides
            },
        }
        for row in page.rows
    ]


def _joined(spans: Sequence[Span]) -> str:
    return "".join(span.text for span in spans)

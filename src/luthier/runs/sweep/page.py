"""A sweep as one HTML page and as Markdown: tables, what mattered, and the charts of a run's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.files import write_text
from luthier.runs.report import words
from luthier.runs.report.charts import Axis as ChartAxis
from luthier.runs.report.charts import Chart, Series, chart
from luthier.runs.report.render import HERE, environment
from luthier.runs.sweep.space import as_number, as_written
from luthier.schema.sweep import Axis, SweepResult, Trial

HTML, MARKDOWN = "report.html", "report.md"
STATES = {
    "running": "not over",
    "done": "done",
    "pruned": "ended early",
    "infeasible": "cannot be trained here",
    "failed": "failed",
}
PILLS = {"done": "better", "pruned": "mixed", "infeasible": "warning", "failed": "worse", "running": ""}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of runs."""

    head: str
    cell: Callable[[Trial], str]
    number: bool = True


def write_page(result: SweepResult) -> Path:
    """Write ``report.html`` and ``report.md`` into the sweep's folder; the path of the first."""
    folder = Path(result.path)
    write_text(folder / MARKDOWN, markdown(result))
    return write_text(folder / HTML, html(result).encode("utf-8", "replace").decode("utf-8"))


def html(result: SweepResult) -> str:
    """The page. Everything that comes from settings or models is escaped."""
    template = environment(Path(__file__).parent, autoescape=True).get_template("sweep.html.j2")
    css = (HERE / "report.css").read_text(encoding="utf-8")
    return template.render(css=css, charts=charts(result), **_parts(result))


def markdown(result: SweepResult) -> str:
    """The same as Markdown, without the charts."""
    return (
        environment(Path(__file__).parent, autoescape=False)
        .get_template("sweep.md.j2")
        .render(**_parts(result))
    )


def _parts(result: SweepResult) -> dict[str, object]:
    cols = columns(result)
    return {
        "result": result,
        "headline": headline(result),
        "sentences": sentences(result),
        "space": [(axis.key, as_written(axis)) for axis in result.choice.space],
        "importance": [(key, f"{share:.0%}", share * 100) for key, share in result.importance.items()],
        "heads": [(column.head, column.number) for column in cols],
        "rows": [
            {
                "trial": trial,
                "state": STATES[trial.state],
                "pill": PILLS[trial.state],
                "best": trial.number == result.best,
                "cells": [(column.cell(trial), column.number) for column in cols],
                "note": note_of(trial),
            }
            for trial in ordered(result)
        ],
        "curves": [(name, fit.words) for name, fit in result.curves.items()],
    }


def ordered(result: SweepResult) -> list[Trial]:
    """Best first; what has no result last. A learning curve by model and rows."""
    if result.choice.kind == "learning-curve":
        return sorted(result.trials, key=lambda t: (t.model or "", t.rows or 0))
    sign = -1.0 if any(t.score is not None and t.score.greater_is_better for t in result.trials) else 1.0

    def key(trial: Trial) -> tuple[int, float, int]:
        ranked = trial.score.value * sign if trial.score is not None else trial.loss
        place = {"done": 0, "running": 1, "pruned": 2}.get(trial.state, 3)
        return place, ranked if ranked is not None else 0.0, trial.number

    return sorted(result.trials, key=key)


def columns(result: SweepResult) -> list[Column]:
    """What the table shows for this kind of sweep."""
    kind = result.choice.kind
    found = [Column("Run", lambda t: t.run or "", number=False)]
    if kind == "search":
        found += [Column(name_of(axis), setting_of(axis.key)) for axis in result.choice.space]
        found.append(Column("Validation loss", lambda t: "" if t.loss is None else words.figure(t.loss)))
    else:
        if any(t.model for t in result.trials):
            found.append(Column("Model", lambda t: t.model or "", number=False))
        if kind == "learning-curve":
            found.append(Column("Rows", lambda t: f"{t.rows:,}" if t.rows else ""))
        found += [
            Column(words.metric_name(result.metric), lambda t: score_of(t, result.metric)),
            Column("To the best", lambda t: gap_of(t, result.metric), number=False),
            Column("Validation loss", lambda t: "" if t.loss is None else words.figure(t.loss)),
        ]
    found += [
        Column("Training", lambda t: "" if t.seconds is None else words.duration(t.seconds)),
        Column("Memory", lambda t: "" if t.peak_memory is None else words.memory(t.peak_memory)),
    ]
    if any(t.cost is not None for t in result.trials):
        found.append(Column("Cost", lambda t: "" if t.cost is None else f"${t.cost:.2f}"))
    return found


def name_of(axis: Axis) -> str:
    """A setting's last name in words."""
    return axis.key.rpartition(".")[2].replace("_", " ")


def setting_of(key: str) -> Callable[[Trial], str]:
    """Reads one setting of a trial."""
    return lambda trial: short(trial.settings.get(key, ""))


def short(value: str) -> str:
    """A setting's value as people read it."""
    number = as_number(value)
    return value if number is None or len(value) <= 6 else words.figure(number, 3)


def score_of(trial: Trial, metric: str) -> str:
    """A score with its interval."""
    if trial.score is None:
        return ""
    one, share = trial.score, words.is_share(metric, trial.score)
    low, high = (words.score(metric, value, share=share) for value in (one.low, one.high))
    return f"{words.score(metric, one.value, share=share)} [{low}, {high}]"


def gap_of(trial: Trial, metric: str) -> str:
    """The paired difference to the best, with its interval and verdict."""
    if trial.difference is None:
        return "best" if trial.score is not None else ""
    delta = trial.difference.delta
    share = words.is_share(metric, trial.difference.baseline)
    low, high = words.signed(delta.low, share=share), words.signed(delta.high, share=share)
    verdict = words.VERDICTS[trial.difference.verdict]
    return f"{words.signed(delta.value, share=share)} [{low}, {high}], {verdict}"


def note_of(trial: Trial) -> str:
    """What is to be said of one trial."""
    parts = [trial.why, trial.reason]
    if trial.same_as is not None:
        parts.append(f"the same settings as trial {trial.same_as}")
    return "; ".join(part for part in parts if part)


def headline(result: SweepResult) -> str:
    """One line on what was found."""
    best = result.winner
    if best is None:
        return "No trial has a result yet" if result.trials else "Nothing was tried yet"
    if result.choice.kind == "search":
        return f"Best of {len(result.trials)} trials: {best.name}"
    if result.choice.kind == "models":
        return f"Best model: {best.model}"
    return f"Score by number of training rows, up to {max(t.rows or 0 for t in result.trials):,}"


def sentences(result: SweepResult) -> list[str]:
    """What the table does not say by itself."""
    found: list[str] = []
    best = result.winner
    counts = {state: sum(t.state == state for t in result.trials) for state in STATES}
    if result.choice.kind == "search" and best is not None:
        found.append(
            f"Validation loss {words.figure(best.loss or 0.0)} in {best.run}; {counts['done']} trials done, "
            f"{counts['pruned']} ended early, {counts['infeasible']} cannot be trained here, "
            f"{counts['failed']} failed."
        )
        own = next(
            (t for t in result.trials if t.why == "the recipe's own settings" and t.loss is not None), None
        )
        if own is not None and own.number != best.number and own.loss and best.loss is not None:
            found.append(
                f"The recipe's own settings came to {words.figure(own.loss)}: the search lowered the "
                f"validation loss by {1 - best.loss / own.loss:.1%}."
            )
        elif own is not None and own.number == best.number:
            found.append("No setting was better than the recipe's own.")
        found.append(
            f"Held-out rows were answered by {', '.join(result.proved)} alone."
            if result.proved
            else "No held-out row has been answered."
        )
    elif best is not None:
        tied = [
            t for t in result.trials if t.difference is not None and t.difference.verdict == "inconclusive"
        ]
        if result.choice.kind == "models" and tied:
            found.append(
                f"Cannot be told from the best on these rows: {', '.join(t.model or t.name for t in tied)}."
            )
        if result.choice.kind == "models":
            found.append(
                "The best was chosen for its score on these rows, so its own score flatters it a little."
            )
    return [*found, *(fit.words for fit in result.curves.values()), *result.notes]


# --- charts -------------------------------------------------------------------------------------


def charts(result: SweepResult) -> list[Chart]:
    """The course of the search, each setting against the loss, every trial's losses; or the curve."""
    if result.choice.kind == "learning-curve":
        return [c for c in (_curve(result),) if c is not None]
    if result.choice.kind == "models":
        return [c for c in (_losses(result),) if c is not None]
    found = [_history(result), _losses(result), *(_by(result, axis) for axis in result.choice.space)]
    return [c for c in found if c is not None]


def _history(result: SweepResult) -> Chart | None:
    done = [(float(t.number), t.loss) for t in result.trials if t.state == "done" and t.loss is not None]
    pruned = [(float(t.number), t.loss) for t in result.trials if t.state == "pruned" and t.loss is not None]
    best: list[tuple[float, float]] = []
    for number, loss in done:
        best.append((number, min(loss, best[-1][1]) if best else loss))
    series = [
        Series("best so far", best, "tuned"),
        Series("trial", done, "eval", dots=True, joined=False),
        Series("ended early", pruned, "base", dots=True, joined=False),
    ]
    return chart("Validation loss by trial", series, axis=ChartAxis("Trial"))


def _by(result: SweepResult, axis: Axis) -> Chart | None:
    values = {t.number: t.settings.get(axis.key, "") for t in result.trials}
    numbers = {n: as_number(v) for n, v in values.items()}
    lettered = bool(axis.choices) and any(as_number(v) is None for v in axis.choices)

    def place(trial: Trial) -> float | None:
        if lettered:
            return (
                float(axis.choices.index(values[trial.number]))
                if values[trial.number] in axis.choices
                else None
            )
        return numbers[trial.number]

    def points(state: str) -> list[tuple[float, float]]:
        found = [(place(t), t.loss) for t in result.trials if t.state == state and t.same_as is None]
        return sorted((x, y) for x, y in found if x is not None and y is not None)

    spread = [n for n in map(as_number, axis.choices) if n is not None]
    log = axis.log or (len(spread) > 2 and min(spread) > 0 and max(spread) / min(spread) >= 8)
    series = [
        Series("trial", points("done"), "eval", dots=True, joined=False),
        Series("ended early", points("pruned"), "base", dots=True, joined=False),
    ]
    over = ChartAxis(axis.key, log=log and not lettered, labels=axis.choices if lettered else ())
    return chart(f"Validation loss by {name_of(axis)}", series, axis=over)


def _losses(result: SweepResult) -> Chart | None:
    ranked = [t for t in ordered(result) if len(t.losses) > 1]
    series = [
        Series(
            f"trial {t.number}" if result.choice.kind == "search" else t.name,
            [(share * 100, loss) for share, loss in t.losses],
            "tuned" if t.number == result.best else "base",
            faint=t.number != result.best,
        )
        for t in reversed(ranked[:12])
    ]
    return chart("Validation loss while training", series, axis=ChartAxis("Per cent of the training"))


def _curve(result: SweepResult) -> Chart | None:
    series: list[Series] = []
    scale = 100.0 if _share(result) else 1.0
    styles = ("tuned", "eval", "third", "base")
    models: list[str] = list(dict.fromkeys(t.model or "" for t in result.trials))
    for place, model in enumerate(models):
        style = styles[place % len(styles)]
        scored = [t for t in result.trials if (t.model or "") == model and t.score is not None and t.rows]
        points = sorted((float(t.rows or 0), t.score.value * scale) for t in scored if t.score is not None)
        called = model if len(models) > 1 else "score"
        series.append(Series(called, points, style, dots=True, joined=False))
        if (fit := result.curves.get(model)) is not None:
            band: Sequence[tuple[str, int]] = (("fit, low", 1), ("fit", 2), ("fit, high", 3))
            series += [
                Series(
                    f"{called}: {name}" if len(models) > 1 else name,
                    [(point[0], point[at] * scale) for point in fit.points],
                    style,
                    faint=at != 2,
                )
                for name, at in band
            ]
    title = words.metric_name(result.metric)
    return chart(
        f"{title} by training rows",
        series,
        unit="%" if scale > 1 else "",
        axis=ChartAxis("Training rows", log=True),
    )


def _share(result: SweepResult) -> bool:
    scored = next((t.score for t in result.trials if t.score is not None), None)
    return scored is not None and words.is_share(result.metric, scored)

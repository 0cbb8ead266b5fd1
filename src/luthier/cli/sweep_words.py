"""What a sweep says of itself in the terminal: its trials, its result, its forecast, and the list of all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from luthier.runs.sweep.search import Forecast
    from luthier.schema.sweep import SweepChoice, SweepResult, Trial

COLOURS = {"done": "green", "pruned": "yellow", "infeasible": "yellow", "failed": "red", "running": "cyan"}


def line(trial: Trial, result: SweepResult) -> str:
    """One trial in one line."""
    from luthier.cli.console import duration
    from luthier.runs.sweep.page import STATES, score_of

    if trial.state == "running":
        expected = "" if trial.predicted_seconds is None else f", about {duration(trial.predicted_seconds)}"
        return f"{trial.number:>3}  {trial.name}: begun{expected}"
    parts = [f"{trial.number:>3}  {trial.name}: {STATES[trial.state]}"]
    if trial.score is not None:
        parts.append(score_of(trial, result.metric))
    elif trial.loss is not None and trial.state == "done":
        parts.append(f"validation loss {trial.loss:.4g}")
    if trial.seconds is not None:
        parts.append(duration(trial.seconds))
    if trial.reason:
        parts.append(trial.reason)
    return ", ".join(parts)


def table_of(result: SweepResult) -> Table:
    """All trials in the order of their place, with state and note."""
    from rich.text import Text

    from luthier.cli.story import columns
    from luthier.runs.sweep import page

    cols = page.columns(result)
    numbers = [i for i, c in enumerate(cols) if c.number]
    table = columns(*(c.head for c in cols), "state", "", numbers=numbers, gap=1)
    table.columns[0].overflow = "fold"  # the runs of a sweep are told apart by their ends
    for column, of in zip(table.columns[1:], cols[1:], strict=False):
        column.min_width = max(map(len, of.head.split()))
    for trial in page.ordered(result):
        style = "bold" if trial.number == result.best else ""
        state = page.STATES[trial.state]
        if trial.state == "running" and trial.losses:
            state = f"{trial.losses[-1][0]:.0%}, loss {trial.losses[-1][1]:.4g}"
        table.add_row(
            *(Text(c.cell(trial), style=style) for c in cols),
            Text(state, style=COLOURS[trial.state]),
            Text(page.note_of(trial), style="dim"),
        )
    return table


def show(result: SweepResult, *, json: bool) -> None:
    """The result of a sweep, in the terminal or as one JSON object."""
    from rich.padding import Padding

    from luthier.cli import story
    from luthier.cli.console import out, print_json
    from luthier.runs.stages import load_comparisons
    from luthier.runs.sweep import page
    from luthier.runs.sweep.crew import run_named

    if json:
        comparisons = []
        for name in result.proved:
            if (run := run_named(name)) is not None:
                comparisons = [c.model_dump(mode="json") for c in load_comparisons(run)]
        print_json({**result.model_dump(mode="json"), "comparisons": comparisons})
        return
    story.heading(None, "Sweep", page.headline(result))
    out().print(Padding(table_of(result), (0, 0, 0, 2)))
    for sentence in page.sentences(result):
        out().print(f"  {sentence}", markup=False, highlight=False, soft_wrap=True)
    if result.importance:
        told = ", ".join(f"{key} {share:.0%}" for key, share in result.importance.items())
        out().print(f"  what mattered: {told}", markup=False, highlight=False, soft_wrap=True)
    out().print(f"  page  {Path(result.path) / page.HTML}", markup=False, highlight=False, soft_wrap=True)


def list_all(*, json: bool) -> int:
    """Every sweep that there is; the exit code."""
    from rich.padding import Padding

    from luthier.cli.console import out, print_json
    from luthier.cli.story import columns
    from luthier.runs.sweep.folder import list_sweeps, sweeps_root
    from luthier.runs.sweep.page import headline

    found = list_sweeps()
    if json:
        print_json({"sweeps": [{"name": one.path.name, "path": str(one.path)} for one in found]})
        return 0
    if not found:
        out().print(f"no sweeps under {sweeps_root()}")
        return 0
    table = columns("sweep", "kind", "runs", "result", numbers=(2,))
    for one in found:
        result = one.result
        runs = 0 if result is None else len(result.trials)
        table.add_row(
            one.path.name, one.choice.kind, str(runs), "nothing yet" if result is None else headline(result)
        )
    out().print(Padding(table, (0, 0, 0, 2)))
    return 0


def show_forecast(choice: SweepChoice, found: Forecast) -> None:
    """What a sweep would do and take."""
    from luthier.cli.console import duration, err, memory, out
    from luthier.cli.story import grid
    from luthier.runs.sweep.space import as_written

    rows: list[tuple[str, str]] = [(axis.key, as_written(axis)) for axis in choice.space]
    rows += [("Models", ", ".join(choice.models))] if choice.models else []
    rows += [("Rows", ", ".join(f"{n:,}" for n in choice.sizes))] if choice.sizes else []
    of = "" if found.size is None or choice.kind != "search" else f" of {found.size} settings in all"
    rows.append(("Runs", f"{found.trials}{of}, {choice.jobs} at once"))
    if found.seconds is not None:
        low, high = found.seconds
        whole = duration(high) if round(low) == round(high) else f"{duration(low)} to {duration(high)}"
        early = "" if choice.pruner == "none" or choice.kind != "search" else ", less what is ended early"
        rows.append(("Training", f"{whole} in all{early}; preparation and proof come on top"))
    if found.memory is not None:
        rows.append(("Memory", f"{memory(found.memory[0])} to {memory(found.memory[1])} a run"))
    out().print(grid(rows))
    for words in found.infeasible:
        err().print(f"! cannot be trained here: {words}", style="yellow", soft_wrap=True, markup=False)

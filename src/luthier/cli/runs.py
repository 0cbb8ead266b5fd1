"""``luthier runs``: list and look after runs."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Annotated

from cyclopts import App, Parameter
from rich.padding import Padding
from rich.text import Text

from luthier.cli import story
from luthier.cli.attend import Attendant, run_json
from luthier.cli.console import duration, err, memory, out, print_json, size
from luthier.errors import UsageError
from luthier.runs.directory import RunDirectory, find_run, list_runs, runs_root
from luthier.runs.process import ACTIVE, current_state, stop_worker
from luthier.runs.stages import load_comparisons, load_estimate, load_results
from luthier.schema.measurement import Measurement
from luthier.schema.results import TrainResult
from luthier.schema.run import Origin

app = App(name="runs", help="List and look after runs.", help_format="plaintext")

STYLES = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "stopped": "yellow"}


@app.default
def ls(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """All runs, newest first.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    runs = list_runs()
    if json:
        print_json({"runs": [{"id": r.id, "path": str(r.path), "state": current_state(r)} for r in runs]})
        return
    if not runs:
        out().print(f"no runs under {runs_root()}; start one with `luthier train recipe.yaml`")
        return
    table = story.columns("run", "state", "step", "started", "verdict", gap=1)
    table.columns[0].overflow = "fold"  # two ids that begin alike are told apart by their ends
    for run in runs:
        status = run.status
        state = current_state(run)
        verdicts = [story.VERDICTS[c.verdict] for c in load_comparisons(run)[:1]]
        started = datetime.fromtimestamp((run.path / "recipe.yaml").stat().st_mtime).astimezone()
        table.add_row(
            Text(run.id, style="bold"),
            Text(state, style=STYLES.get(state, "")),
            f"{status.step}/{status.total_steps}" if status.total_steps else "",
            f"{started:%Y-%m-%d %H:%M}",
            Text(*verdicts[0]) if verdicts else "",
        )
    out().print(Padding(table, (0, 0, 0, 2)))


@app.command
def show(run: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """One run: plan, training, scores, artifacts.

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    json
        Print one JSON object.
    """
    found = find_run(run)
    if json:
        run_json(found)
        return
    state = current_state(found)
    story.heading(None, found.id, state)
    if (origin := found.stage("origin", Origin)) is not None:
        story.show_origin(origin)
    if (estimate := load_estimate(found)) is not None:
        story.show_plan(found.recipe, estimate)
    show_stage = Attendant(found, None)
    for stage, file in (
        ("baseline", "baseline"),
        ("train", "train"),
        ("prove", "comparison"),
        ("ship", "artifacts"),
    ):
        if found.stage_values(file) is not None:
            show_stage(stage, "start")
            show_stage(stage, "done")
    if (correction := found.status.correction) is not None:
        out().print(f"  [dim]{story.correction_words(correction)}[/]", soft_wrap=True)
    if (measured := found.stage("measurement", Measurement)) is not None:
        story.heading(None, "Predicted and measured", measured.kernels)
        story.show_measurement(measured)
    if (failure := found.status.failure) is not None:
        err().print(f"failed: {failure.message}")


@app.command
def logs(
    run: str, /, *, follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative="")] = False
) -> None:
    """A run's log.

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    follow
        Go on printing while the run works.
    """
    found = find_run(run)
    path = found.path / "log.txt"
    if not path.exists():
        raise UsageError(f"{found.id} has written no log yet", hint="it starts with the run's worker")
    with path.open(encoding="utf-8", errors="replace") as log:
        while True:
            if text := log.read():
                sys.stdout.write(text)
                sys.stdout.flush()
            elif not follow or current_state(found) not in ACTIVE:
                return
            else:
                time.sleep(0.3)


@app.command
def stop(run: str, /) -> None:
    """Stop a run and keep its work.

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    """
    found = find_run(run)
    if current_state(found) not in ACTIVE:
        raise UsageError(f"{found.id} is not running ({current_state(found)})")
    stop_worker(found)
    err().print(f"{found.id}: {current_state(found)}; go on with: luthier train --resume {found.id}")


@app.command
def rm(run: str, /, *, yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False) -> None:
    """Remove a run's folder with its checkpoints and artifacts; never one that is in use or protected.

    Parameters
    ----------
    run
        Id, beginning of one, or path.
    yes
        Do not ask.
    """
    from luthier.runs.upkeep import bytes_of, demand_free, remove

    found = find_run(run)
    demand_free(found)
    if _agreed(f"remove {found.path} ({size(bytes_of(found.path))})?", yes=yes):
        err().print(f"removed {found.id} ({size(remove(found))})")


@app.command
def archive(
    run: str,
    /,
    *,
    checkpoints: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
) -> None:
    """Pack a run into one file and remove its folder; never one that is in use or protected.

    Parameters
    ----------
    run
        Id, beginning of one, or path.
    checkpoints
        Pack the checkpoints too; without them the run can be read but not gone on with.
    yes
        Do not ask.
    """
    from luthier.runs import upkeep

    found = find_run(run)
    upkeep.demand_free(found)
    before = upkeep.bytes_of(found.path)
    if _agreed(f"pack {found.path} ({size(before)}) and remove the folder?", yes=yes):
        path = upkeep.archive(found, checkpoints=checkpoints)
        err().print(f"packed into {path} ({size(path.stat().st_size)} of {size(before)})", soft_wrap=True)
        err().print(f"bring it back with: tar xzf {path} -C {path.parent.parent}", soft_wrap=True)


@app.command
def prune(
    *runs: str,
    selected_only: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
) -> None:
    """Delete checkpoints of finished runs, all but the selected and the last one.

    Parameters
    ----------
    runs
        Ids; all runs when none is given.
    selected_only
        Keep the selected checkpoint alone: such a run cannot be extended.
    yes
        Do not ask.
    """
    from luthier.runs import upkeep

    chosen = [find_run(name) for name in runs] or list_runs()
    found = upkeep.prunable(chosen, selected_only=selected_only)
    if not found:
        out().print("nothing to delete: runs that could go on, are in use or protected are left as they are")
        return
    table = story.columns("run", "checkpoints", "frees", numbers=(1, 2))
    for one in found:
        table.add_row(one.run.id, str(len(one.folders)), size(one.bytes))
    out().print(Padding(table, (0, 0, 0, 2)))
    if _agreed(f"delete them ({size(sum(one.bytes for one in found))})?", yes=yes):
        for one in found:
            upkeep.prune(one)
        err().print(f"freed {size(sum(one.bytes for one in found))}")


@app.command
def protect(run: str, why: str = "", /, *, off: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Mark a run so that nothing removes, packs or thins it. Deployed runs are kept without a mark.

    Parameters
    ----------
    run
        Id, beginning of one, or path.
    why
        What to say when somebody tries.
    off
        Take the mark back.
    """
    from luthier.runs import upkeep

    found = find_run(run)
    if off:
        upkeep.unprotect(found)
    else:
        upkeep.protect(found, why)
    err().print(f"{found.id} is {'no longer ' if off else ''}protected")


@app.command
def compare(one: str, other: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Two runs side by side: settings that differ, then scores, loss, time and memory.

    Parameters
    ----------
    one
        Id, beginning of one, path, or latest.
    other
        The other run.
    json
        Print one JSON object.
    """
    from luthier.runs.lineage import changes

    first, second = find_run(one), find_run(other)
    changed = changes(first.recipe, second.recipe)
    rows = {name: (first_value, second_value) for name, first_value, second_value in _outcomes(first, second)}
    if json:
        settings = {key: {"one": c.before, "other": c.after} for key, c in changed.items()}
        print_json({"one": first.id, "other": second.id, "settings": settings, "outcomes": rows})
        return
    story.heading(None, "Settings", "those that differ" if changed else "all equal")
    story.show_changes(changed, first.id, second.id)
    story.heading(None, "Outcomes")
    table = story.columns("", first.id, second.id, numbers=(1, 2))
    for name, pair in rows.items():
        table.add_row(name, *(value or "–" for value in pair))
    out().print(Padding(table, (0, 0, 0, 2)))


def _outcomes(*runs: RunDirectory) -> list[tuple[str, str, str]]:
    """Scores of the tuned models and what the trainings came to, in words; empty where there is none."""
    found: dict[str, list[str]] = {}
    for place, run in enumerate(runs):
        words: dict[str, str] = {}
        for split, result in load_results(run, "tuned").items():
            words |= {f"{split}: {name}": story.score(metric) for name, metric in result.metrics.items()}
        train = run.stage("train", TrainResult)
        if train is not None:
            if train.best_validation_loss is not None:
                words["best validation loss"] = f"{train.best_validation_loss:.4f}"
            words |= {
                "last loss": f"{train.last_loss:.4f}",
                "steps": str(train.steps),
                "training": duration(train.seconds),
                "tokens/s": f"{train.tokens_per_second:,.0f}",
                "peak memory": memory(train.peak_memory),
                "trained parameters": f"{train.trainable_parameters:,}",
            }
        for name, value in words.items():
            found.setdefault(name, [""] * len(runs))[place] = value
    return [(name, *pair) for name, pair in found.items()]  # type: ignore[misc]


def _agreed(question: str, *, yes: bool) -> bool:
    """Whether the user wants it. Errors: UsageError where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("this asks first", hint="say --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


app.command(ls, name="ls")
app.command(compare, name="diff")

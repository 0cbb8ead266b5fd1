"""``luthier runs``: list and look after runs."""

from __future__ import annotations

import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.padding import Padding
from rich.text import Text

from luthier.cli import story
from luthier.cli.attend import Attendant, run_json
from luthier.cli.console import err, out, print_json
from luthier.errors import UsageError
from luthier.runs.directory import find_run, list_runs, runs_root
from luthier.runs.process import ACTIVE, current_state, stop_worker
from luthier.runs.stages import load_comparisons, load_estimate
from luthier.schema.measurement import Measurement
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
    table = story.columns("run", "state", "step", "started", "verdict")
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
    """Remove a run's folder with its checkpoints and artifacts.

    Parameters
    ----------
    run
        Id, beginning of one, or path.
    yes
        Do not ask.
    """
    found = find_run(run)
    if current_state(found) in ACTIVE:
        raise UsageError(f"{found.id} is running", hint=f"stop it first: luthier runs stop {found.id}")
    held = sum(p.stat().st_size for p in Path(found.path).rglob("*") if p.is_file())
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("removing a run asks first", hint="say --yes")
        if input(f"remove {found.path} ({held / 1e6:.0f} MB)? [y/N] ").strip().lower() not in ("y", "yes"):
            return
    shutil.rmtree(found.path)
    err().print(f"removed {found.id} ({held / 1e6:.0f} MB)")


app.command(ls, name="ls")

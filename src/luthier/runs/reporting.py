"""A run's report from what its directory holds, and what to try next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.runs.abilities import BASELINE, TUNED, load_abilities, load_probe
from luthier.runs.columns import load_columns
from luthier.runs.directory import RunDirectory
from luthier.runs.judgements import load_judgements
from luthier.runs.report.context import Command, ReportContext, read_points
from luthier.runs.report.render import render_markdown, write_report
from luthier.runs.stages import (
    licence_of,
    load_artifacts,
    load_comparisons,
    load_estimate,
    load_floor_results,
    load_floors,
    load_results,
)
from luthier.schema.data import DataReport
from luthier.schema.hardware import Hardware
from luthier.schema.measurement import Measurement
from luthier.schema.plan import Plan
from luthier.schema.results import TrainResult


def context_of(run: RunDirectory) -> ReportContext:
    """All that the report says, read from the run's files; what is missing is left out.

    Writing the report is a run's last stage: while it is under way the run counts as done.
    """
    status = run.status
    if status.state == "running" and status.stage == "report":
        status = status.model_copy(update={"state": "done"})
    recipe = run.recipe
    facts: dict[str, Any] = run.stage_values("model") or {}
    env: dict[str, Any] = run.stage_values("env") or {}
    rate = env.get("probe", {}).get(recipe.model.dtype or "")
    return ReportContext(
        run_id=run.id,
        recipe=recipe,
        created=(run.path / "recipe.yaml").stat().st_mtime,
        status=status,
        hardware=run.stage("hardware", Hardware),
        matrix_gflops=None if rate is None else rate / 1e9,
        plan=run.stage("advice", Plan),
        estimate=load_estimate(run),
        measurement=run.stage("measurement", Measurement),
        data=run.stage("data", DataReport),
        train=run.stage("train", TrainResult),
        points=read_points(values for values, _ in run.lines("metrics")),
        baseline=load_results(run, "baseline"),
        tuned=load_results(run, "tuned"),
        comparisons=tuple(load_comparisons(run)),
        floors=tuple(load_floors(run)),
        abilities=tuple(load_abilities(run)),
        abilities_before=load_probe(run, BASELINE),
        abilities_after=load_probe(run, TUNED),
        others=(*load_floor_results(run), *load_columns(run)),
        judgements=tuple(load_judgements(run)),
        artifacts=tuple(load_artifacts(run)),
        licence=licence_of(facts.get("licence")),
        revision=facts.get("revision"),
        commands=tuple(Command(line, purpose) for line, purpose in next_commands(run)),
        versions=env.get("versions", {}),
    )


def next_commands(run: RunDirectory) -> list[tuple[str, str]]:
    """Commands that make sense now, each with what it is for."""
    commands = []
    if any(a.kind.startswith("gguf") for a in load_artifacts(run)):
        commands.append((f"luthier chat {run.id}", "talk to the tuned model"))
    commands += [
        (f"luthier report {run.id} --open", "read the report in the browser"),
        (f"luthier evaluate {run.id} --data FILE", "judge base and tuned model on rows of your own"),
        (f"luthier export {run.id} --gguf Q5_K_M", "another quantisation, checked like the others"),
        (f"luthier train {run.path / 'recipe.yaml'} training.epochs=2", "the same with another setting"),
    ]
    return commands


def make_report(run: RunDirectory) -> Path:
    """Write ``report.html``, one file that needs nothing else, and return its path."""
    return write_report(run.path, context_of(run))


def make_markdown(run: RunDirectory) -> str:
    """The report as Markdown."""
    return render_markdown(context_of(run))

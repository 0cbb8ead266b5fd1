"""Write the report: one HTML file without a single request, or the same as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from luthier.evaluation.probe import broken
from luthier.files import write_text
from luthier.runs.report import answers, facts, judges, labels, measured, scores, verdict, words
from luthier.runs.report.context import ReportContext
from luthier.schema.load import dump_recipe

HERE = Path(__file__).parent
HTML_NAME, MARKDOWN_NAME = "report.html", "report.md"


def write_report(run_dir: Path, context: ReportContext, *, markdown: bool = False) -> Path:
    """Write ``report.html`` (or ``report.md``) into the run directory, replacing an older one."""
    path = run_dir / (MARKDOWN_NAME if markdown else HTML_NAME)
    text = render_markdown(context) if markdown else render_html(context)
    # A lone surrogate in a model's answer must not cost the whole report.
    return write_text(path, text.encode("utf-8", "replace").decode("utf-8"))


def render_html(context: ReportContext) -> str:
    """The report as one page. Everything that comes from data or a model is escaped."""
    template = environment(autoescape=True).get_template("report.html.j2")
    return template.render(css=(HERE / "report.css").read_text(encoding="utf-8"), **_parts(context))


def render_markdown(context: ReportContext) -> str:
    """The report as Markdown, without the curves and the rows one by one."""
    template = environment(autoescape=False).get_template("report.md.j2")
    return template.render(**_parts(context))


def environment(*folders: Path, autoescape: bool) -> Environment:
    """Templates of these folders and of the report, with their filters."""
    found = Environment(
        loader=FileSystemLoader([*folders, HERE]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["duration"] = words.duration
    found.filters["unbroken"] = words.unbroken
    found.filters["cell"] = markdown_cell
    found.filters["fence"] = markdown_fence
    return found


def markdown_cell(text: object) -> str:
    """Text that cannot leave a Markdown table cell or be taken for markup."""
    flat = " ".join(str(text).split())
    for sign in "\\`*_[]|#":
        flat = flat.replace(sign, f"\\{sign}")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_fence(text: str) -> str:
    """Text as a code block whose fence is longer than any run of backticks in it."""
    longest, run = 0, 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _parts(context: ReportContext) -> dict[str, Any]:
    return {
        "luthier_version": context.versions.get("luthier", ""),
        "run_id": context.run_id,
        "name": words.clean(verdict.name_of(context), 120),
        "model_id": context.recipe.model.id,
        "method": verdict.method_name(context),
        "task": context.recipe.task,
        "when": verdict.when(context),
        "state": "" if context.status is None else context.status.state,
        "banner": verdict.banner(context),
        "tiles": verdict.tiles(context),
        "score_tracks": scores.score_tracks(context),
        "difference_tracks": scores.difference_tracks(context),
        "metric_rows": scores.metric_rows(context.comparisons),
        "broke_rows": scores.metric_rows(context.abilities),
        "broken": broken(context.abilities),
        "broke_changes": answers.broken_rows(context),
        "label_tables": labels.label_tables(context),
        "matrices": labels.matrices(context),
        "calibration": labels.calibration(context),
        "definitions": scores.definitions(context),
        "metric_reason": next((r.reason for r in context.tuned.values() if r.reason), ""),
        "fields": scores.field_tables(context),
        "others": scores.other_rows(context),
        "slices": scores.slice_rows(context),
        "cut_off": [
            (split, label, r.cut_off, len(r.rows))
            for label, results in (("base", context.baseline), ("tuned", context.tuned))
            for split, r in results.items()
            if r.cut_off
        ],
        "samples": answers.samples(context),
        "changes": answers.changes(context),
        "judged": judges.judged(context),
        "bands": measured.bands(context),
        "parts": measured.memory_parts(context),
        "peak_phase": context.estimate.peak.name if context.estimate and context.estimate.phases else "",
        "assumptions": () if context.estimate is None else context.estimate.assumptions,
        "basis": "" if context.estimate is None else context.estimate.basis,
        "phases": measured.phase_rows(context),
        "shortages": measured.shortage_rows(context),
        "stages": measured.stage_rows(context),
        "curves": measured.curves(context),
        "train": context.train,
        "request": facts.request_facts(context),
        "chosen": facts.chosen_facts(context),
        "candidates": facts.candidates(context),
        "splits": facts.split_rows(context),
        "data": context.data,
        "findings": context.findings,
        "artifacts": facts.artifact_rows(context.artifacts),
        "file_scores": facts.file_scores(context.artifacts),
        "licence": context.licence,
        "duties": [*(context.licence.duties if context.licence else ()), *context.duties],
        "machine": facts.machine_facts(context),
        "versions": dict(sorted(context.versions.items())),
        "recipe_yaml": words.clean(dump_recipe(context.recipe), 40_000),
        "commands": context.commands,
    }

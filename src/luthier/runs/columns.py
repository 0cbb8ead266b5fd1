"""Anything that answers chats, on a run's own held-out rows: a further column beside base and tuned."""

from __future__ import annotations

import re
from pathlib import Path

from luthier.data.splits import choose
from luthier.errors import UsageError
from luthier.evaluation.compare import compare
from luthier.runs.directory import RunDirectory
from luthier.runs.judgements import demand_answers
from luthier.runs.judging import answering, judge
from luthier.runs.model import Say
from luthier.runs.prepare import read_data, tokenizer_of
from luthier.runs.stages import load_comparisons, load_results
from luthier.schema.protocols import Progress
from luthier.schema.results import Comparison, EvalResult

FOLDER = "columns"


def load_columns(run: RunDirectory) -> list[EvalResult]:
    """What was judged beside a run's base and tuned model, in the order of names."""
    names = sorted(path.stem for path in (run.path / FOLDER).glob("*.json"))
    found = [run.stage(f"{FOLDER}/{name}", EvalResult) for name in names]
    return [one for one in found if one is not None]


def add_column(
    run: RunDirectory, what: str, *, model: str | None = None, say: Say, progress: Progress | None = None
) -> Comparison:
    """Judge something on the rows of a run's first held-out split, and compare the tuned model with it.

    The result is kept for the report. what: as ``answering`` takes it. Errors: UsageError where the run has
    judged nothing or its rows have changed, Unsupported for a run that writes no answers.
    """
    demand_answers(run)
    comparisons = load_comparisons(run)
    if not comparisons:
        raise UsageError(f"{run.id} was not judged on held-out rows", hint=f"luthier evaluate {run.id}")
    split, recipe = comparisons[0].split, run.recipe
    tuned = load_results(run, "tuned")[split]
    folder = Path((run.stage_values("model") or {}).get("path", ""))
    rows = read_data(recipe, tokenizer_of(recipe, folder)).splits.tests[split]
    rows = choose(rows, recipe.evaluation.max_rows or len(rows), seed=recipe.seed)
    longest = recipe.evaluation.max_new_tokens
    with answering(what, model=model, longest=longest, say=say) as generator:
        found = judge(
            generator, rows, split=split, metrics=tuple(tuned.metrics), longest=longest, progress=progress
        )
    comparison = compare(found, tuned)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", found.model).strip("-")[:80] or "other"
    run.save_stage(f"{FOLDER}/{name}", "", found)
    return comparison

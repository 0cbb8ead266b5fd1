"""``luthier train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from luthier.cli.console import err, print_json
from luthier.errors import UsageError


def train(
    recipe: Path | None = None,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    resume: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    detach: Annotated[bool, Parameter(negative="")] = False,
    offline: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Tune a model by a recipe: baseline, training, proof, export and report.

    Parameters
    ----------
    recipe
        A recipe.yaml.
    overrides
        Settings that win over the recipe's: training.epochs=2 method.rank=32 ~key.
    resume
        Go on with this run from its last finished stage and checkpoint (id, beginning of one, or latest).
    dry_run
        Derive every value, predict memory and time, and stop before anything is loaded.
    detach
        Start the run and leave it to itself.
    offline
        Fetch nothing: the model must be on disk.
    json
        Print one JSON object to stdout when the run is over.
    """
    from luthier.cli import story
    from luthier.cli.attend import attend, run_json
    from luthier.runs.directory import find_run
    from luthier.runs.prepare import create_run, prepare
    from luthier.runs.process import start_worker
    from luthier.schema.load import load_recipe

    if resume is not None:
        if recipe is not None or overrides:
            raise UsageError(
                "--resume takes the run's own recipe",
                hint="drop the recipe and the settings, or start a new run without --resume",
            )
        run = find_run(resume)
    else:
        if recipe is None:
            raise UsageError("name a recipe", hint="luthier train recipe.yaml, or luthier train --resume RUN")
        prepared = prepare(
            load_recipe(recipe, overrides), say=lambda words: err().print(words), offline=offline
        )
        if dry_run:
            if json:
                print_json(
                    {
                        "recipe": prepared.recipe.model_dump(mode="json"),
                        "estimate": prepared.resolved.estimate.model_dump(mode="json"),
                    }
                )
            else:
                story.show_plan(prepared.recipe, prepared.resolved.estimate)
            return 0
        if not json:
            story.heading(None, "Plan", "every derived value with its source")
            story.show_plan(prepared.recipe, prepared.resolved.estimate)
        run = create_run(prepared)
    err().print(f"run {run.id}", style="dim")
    if detach:
        start_worker(run)
        err().print(f"left to itself; see `luthier runs show {run.id}`")
        return 0
    code = attend(run, quiet=json)
    if json:
        run_json(run)
    return code

"""``luthier evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def evaluate(
    run: str,
    /,
    *,
    data: tuple[Path, ...] = (),
    name: str | None = None,
    min_delta: float | None = None,
    no_regression: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Judge base and tuned model on the same rows: scores, difference with interval, verdict.

    Without --data the run's own test splits are judged (a baseline is never computed twice).

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    data
        Other rows to judge on (one or more files).
    name
        What the split of --data is called; the first file's name when not given.
    min_delta
        Leave with exit code 5 unless the primary metric of every split gains at least this much, and
        the gain is beyond doubt, for use in CI.
    no_regression
        Leave with exit code 5 where any metric of any split is worse beyond doubt.
    json
        Print one JSON object.
    """
    from luthier.cli import story
    from luthier.cli.attend import attend
    from luthier.cli.console import print_json
    from luthier.runs.registry import resolve
    from luthier.runs.stages import load_comparisons, load_extra, load_floors
    from luthier.schema.run import Job

    found = resolve(run)
    if data:
        label = name or data[0].name.split(".")[0]
        files = tuple(str(path.expanduser().resolve()) for path in data)
        code = attend(found, Job(kind="evaluate", data=files, name=label), quiet=True)
        comparisons = [load_extra(found, label)]
    else:
        comparisons = load_comparisons(found)
        code = 0 if comparisons else attend(found, quiet=True)
        comparisons = comparisons or load_comparisons(found)
    if code != 0:
        return code
    if json:
        print_json({"run": found.id, "comparisons": [c.model_dump(mode="json") for c in comparisons]})
    else:
        story.show_comparisons(comparisons, () if data else load_floors(found))
    if min_delta is not None or no_regression:
        from luthier.evaluation.floors import check_gate

        check_gate(comparisons, min_delta=min_delta, no_regression=no_regression)
    return 0

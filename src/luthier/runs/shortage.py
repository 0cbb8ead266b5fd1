"""What would need less memory than a training that ran out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.planning.estimate import device_of
from luthier.planning.solver import Question, changes
from luthier.runs.directory import RunDirectory
from luthier.schema.hardware import Hardware
from luthier.schema.run import Planned
from luthier.sizing.model_config import architecture_of
from luthier.sizing.parameters import with_new_tokens


def ways_out(run: RunDirectory) -> str | None:
    """What each change of the run's own plan would save, by how little it gives up.

    The plan said that the step fits, so nothing is said of what would fit: only what is saved. None where
    the run was prepared before shapes were kept, or its model has gone.
    """
    planned, hardware = run.stage("planned", Planned), run.stage("hardware", Hardware)
    facts: dict[str, Any] = run.stage_values("model") or {}
    if planned is None or hardware is None or "path" not in facts:
        return None
    try:
        arch = architecture_of(Path(facts["path"]))
    except LuthierError:
        return None
    recipe = run.recipe
    new = len(recipe.model.new_tokens)
    arch = with_new_tokens(arch, range(arch.vocab_size, arch.vocab_size + new))
    question = Question(arch, recipe.method, hardware, device_of(hardware), str(recipe.model.dtype))
    # The worker has halved its micro-batches down to one row before it gave up.
    shape = planned.shape.model_copy(update={"micro_batch_size": 1})
    found = [change.told for change in changes(question, shape)]
    return "; ".join([*found, "a smaller model (`luthier recommend`)"])

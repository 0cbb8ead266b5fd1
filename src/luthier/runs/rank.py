"""One of the processes that train a run together, told by its surroundings which one it is.

``python -m luthier.runs.rank RUN_DIR DIGEST`` with RANK, WORLD_SIZE, LOCAL_RANK and RENDEZVOUS set. The
first writes one JSON object a line on its standard output: ``{"metrics": ...}`` for each event of the
training, ``{"result": ...}`` at the end. Whichever fails writes ``{"error": ...}``; everything else that a
process has to say goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError


def main() -> int:
    """Entry of the process. Returns its exit code."""
    words = os.dup(1)  # what libraries print must not come between the lines
    os.dup2(2, 1)
    with os.fdopen(words, "w", encoding="utf-8") as out:

        def tell(**values: Any) -> None:
            out.write(json.dumps(values) + "\n")
            out.flush()

        try:
            _train(Path(sys.argv[1]), sys.argv[2], tell)
        except LuthierError as error:
            found = {"kind": type(error).__name__, "message": str(error), "hint": error.hint}
            tell(error=found, code=error.exit_code)
            return error.exit_code
    return 0


def _train(path: Path, digest: str, tell: Any) -> None:
    from luthier.runs.directory import RunDirectory
    from luthier.runs.workflow import Inputs
    from luthier.training.world import together

    run = RunDirectory(path)
    work = Inputs(run, run.recipe)
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    kind = str(work.model_facts["device"]).partition(":")[0]
    with together(rank, size, kind, local=local, address=os.environ["RENDEZVOUS"]) as world:
        work.device = str(world.device)
        result = work.task.fit(
            work.data.splits,
            run.path,
            on_metrics=lambda values: tell(metrics=values),
            control=run.asked,
            recipe_digest=digest,
            world=world,
        )
    if world.first:
        tell(result=result.model_dump(mode="json"))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

"""One of the processes that train a run together, told by its surroundings which one it is.

``python -m luthier.runs.rank RUN_DIR DIGEST`` with RANK, WORLD_SIZE, LOCAL_RANK and RENDEZVOUS set; GUEST=1
on a machine whose folder is not the run's own. The first writes one JSON object a line on its standard
output: ``{"metrics": ...}`` for each event of the training, ``{"result": ...}`` at the end. Whichever fails
writes ``{"error": ...}``; everything else that a process has to say goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError, UsageError

if TYPE_CHECKING:
    from luthier.runs.workflow import Inputs
    from luthier.training.world import World


def main() -> int:
    """Entry of the process. Returns its exit code."""
    words = os.dup(1)  # what libraries print must not come between the lines
    os.dup2(2, 1)
    with os.fdopen(words, "w", encoding="utf-8") as out:

        def tell(**values: Any) -> None:
            out.write(json.dumps(values) + "\n")
            out.flush()

        from luthier.runs.gone import gpu_gone
        from luthier.training.touch import lost_touch

        try:
            _train(Path(sys.argv[1]), sys.argv[2], tell)
        except LuthierError as error:
            found = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            found["file"] = error.where
            tell(error=found, code=error.exit_code)
            return error.exit_code
        except (RuntimeError, AssertionError) as error:
            gone = gpu_gone(error, Path(sys.argv[1]).name)
            lost = lost_touch(error, int(os.environ["RANK"])) if isinstance(error, RuntimeError) else None
            if (said := gone or lost) is None:
                raise
            traceback.print_exc()
            found = {"kind": "TrainingError", "message": str(said), "hint": said.hint}
            # Who has only lost the others says less than one who knows why.
            tell(error=found, code=said.exit_code, **({} if gone else {"lost_touch": True}))
            return said.exit_code
    return 0


def _train(path: Path, digest: str, tell: Any) -> None:
    from luthier.runs.directory import RunDirectory
    from luthier.runs.workflow import Inputs
    from luthier.training.touch import hand_out
    from luthier.training.world import together

    run = RunDirectory(path)
    work = Inputs(run, run.recipe)
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    guest = os.environ.get("GUEST") == "1"
    kind = str(work.model_facts["device"]).partition(":")[0]
    choice = work.recipe.training
    with together(
        rank, size, kind, local=local, address=os.environ["RENDEZVOUS"], parallel=choice.parallel
    ) as world:
        work.device, work.divided = str(world.device), world.divided
        if choice.nodes > 1:
            _same_everywhere(work, world)
            hand_out(run.path, world, guest=guest, writes=guest and local == 0)
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


def _same_everywhere(work: Inputs, world: World) -> None:
    """Refuse machines whose rows or base model are not the first one's."""
    from luthier.training.touch import told_by_first

    mine = {"the training rows": work.data.report.digest, "the base model": work.task.base_digest}
    for what, digest in told_by_first(mine, world).items():
        if mine[what] != digest:
            raise UsageError(
                f"{what} of process {world.rank} are not those of the first machine"
                if what.endswith("rows")
                else f"{what} of process {world.rank} is not that of the first machine",
                hint="copy the same files to every machine, or name a shared folder in the recipe",
            )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

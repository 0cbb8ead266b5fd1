"""Prepares one entry of the queue. ``python -m luthier.runs.submit RUNS JOB``.

A process of its own, so that reading a large data set neither holds up nor grows who asked for it.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

from luthier.errors import LuthierError
from luthier.runs import lineage
from luthier.runs.directory import RunDirectory
from luthier.runs.model import Say
from luthier.runs.prepare import Prepared, create_run, prepare
from luthier.runs.queue import Queue
from luthier.schema.load import recipe_from
from luthier.schema.queue import JobRequest, QueuedJob
from luthier.schema.run import Origin


def take(root: Path, job_id: str) -> QueuedJob:
    """Prepare an entry's run and let it wait; a failure is written into the entry."""
    queue = Queue(root)
    job = queue.get(job_id)
    last = 0.0

    def say(words: str) -> None:
        nonlocal last
        print(words, flush=True)  # noqa: T201 - stdout is the entry's log
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            queue.change(job_id, note=words[:200])

    try:
        run = _prepare(root, job.request, say)
        return queue.prepared(job_id, run)
    except LuthierError as error:
        print(f"{error}\n{error.hint or ''}", flush=True)  # noqa: T201
        return queue.failed(job_id, error)
    except Exception as error:  # a bug: its traceback goes to the log
        traceback.print_exc()
        return queue.failed(job_id, error)


def _prepare(root: Path, request: JobRequest, say: Say) -> RunDirectory:
    prepared: Prepared
    origin: Origin | None = None
    if request.source != "recipe":
        assert request.run is not None
        take_from = {"clone": lineage.clone, "extend": lineage.extend, "branch": lineage.branch}
        prepared, origin = take_from[request.source](request.run, request.overrides, say=say)
    else:
        recipe = recipe_from(request.recipe or {}, request.overrides)
        if request.init_from is not None:
            recipe, origin = lineage.warm_start(recipe, request.init_from)
        prepared = prepare(recipe, say=say)
    if origin is None:
        return create_run(prepared, root=root)
    return lineage.start_from(prepared, origin, root=root)


def main() -> None:
    """Entry of the preparing process."""
    job = take(Path(sys.argv[1]), sys.argv[2])
    sys.exit(0 if job.failure is None else job.failure.exit_code)


if __name__ == "__main__":
    main()

"""New rows for a tuned model: a job that judges base and tuned model on a data set of the studio."""

from __future__ import annotations

import re
from pathlib import Path

from luthier.runs.directory import RunDirectory
from luthier.schema.queue import QueuedJob
from luthier.studio.services.datasets import dataset
from luthier.studio.services.jobs import AskedJob, submit
from luthier.studio.settings import StudioSettings


def judge_more(settings: StudioSettings, run: RunDirectory, data: str, name: str = "") -> QueuedJob:
    """Enter a job that judges base and tuned model on the rows of a data set of this studio.

    name: what the split is called; the data set's own name when not given. Errors: NotFound, AlreadyBusy,
    UsageError where the run is not trained.
    """
    known = dataset(settings.uploads, data)
    called = re.sub(r"[^A-Za-z0-9._-]+", "-", name.strip() or Path(known.name).stem).strip("-.")[:60]
    asked = AskedJob(kind="evaluate", run=run.id, data=[known.file], name=called or "extra", first=True)
    return submit(settings, asked)

"""``luthier queue``: what waits for this machine, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.padding import Padding
from rich.text import Text

from luthier.cli import story
from luthier.cli.console import err, memory, out, print_json
from luthier.errors import UsageError
from luthier.runs.queue import NotQueued, Queue
from luthier.schema.queue import OPEN

if TYPE_CHECKING:
    from luthier.schema.queue import QueuedJob

Flag = Annotated[bool, Parameter(negative="")]
app = App(name="queue", help="What waits for this machine, and in which order.", help_format="plaintext")


@app.default
def ls(*, json: Flag = False) -> None:
    """What runs and what waits, in order, and who else holds memory.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    queue = Queue()
    queue.settle()
    jobs, leases = queue.jobs(OPEN), queue.leases()
    if json:
        print_json(
            {
                "jobs": [one.model_dump(mode="json", exclude={"request", "worker"}) for one in jobs],
                "leases": [one.model_dump(mode="json", exclude={"worker"}) for one in leases],
            }
        )
        return
    if not jobs:
        out().print("nothing waits; `luthier train recipe.yaml --queue` enters a run")
    else:
        table = story.columns("job", "what", "state", "memory", "note", numbers=(3,))
        for one in jobs:
            need = memory(one.need) if one.need else ""
            name = one.run or f"{one.name} ({one.id})"
            table.add_row(Text(name, style="bold"), one.kind, one.state, need, one.note)
        out().print(Padding(table, (0, 0, 0, 2)))
    for lease in leases:
        out().print(f"  {lease.name} holds {memory(lease.bytes)} ({lease.kind})", style="dim")


@app.command
def move(job: str, place: int, /) -> None:
    """Put a job that waits at a place; 1 is next.

    Parameters
    ----------
    job
        Id of the job, or of its run.
    place
        Its new place among those that wait.
    """
    if place < 1:
        raise UsageError("places are counted from 1", hint="1 is next")
    queue = Queue()
    found = queue.move(_find(queue, job).id, place - 1)
    err().print(f"{found.name} is moved")


@app.command
def cancel(job: str, /) -> None:
    """Take back a job that has not started; its run stays, as stopped.

    Parameters
    ----------
    job
        Id of the job, or of its run.
    """
    queue = Queue()
    found = queue.cancel(_find(queue, job).id)
    err().print(f"{found.name} is cancelled")


def _find(queue: Queue, name: str) -> QueuedJob:
    found = [one for one in queue.jobs(OPEN) if name in (one.id, one.run) or (one.run or "").startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} is the beginning of {len(found)} jobs", hint="write more of it")
    raise NotQueued(f"nothing of the name {name!r} waits or runs", hint="see `luthier queue`")

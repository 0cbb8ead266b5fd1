"""Starts what waits in the queue, in order, and ends with it. ``python -m luthier.runs.scheduler RUNS``.

One at a time holds the lock. It loads no torch, and nothing is lost when it is killed: the next entry, or the
studio, wakes another, which finds the workers by their names.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from filelock import Timeout

from luthier.planning.audit import audit
from luthier.runs.queue import Queue

EVERY = 1.0
"""Seconds between two looks."""


def serve(root: Path, *, every: float = EVERY) -> None:
    """Look after the queue until nothing waits."""
    queue = Queue(root)
    while True:
        try:
            with queue.lock.acquire(timeout=0):
                while queue.tick(audit(root, versions=False)):
                    time.sleep(every)
        except Timeout:
            return  # another one is at it
        # Something may have been entered between the last look and the lock's release.
        if not queue.jobs(frozenset({"queued", "preparing"})):
            return


def main() -> None:
    """Entry of the scheduler's process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    serve(Path(sys.argv[1]))


if __name__ == "__main__":
    main()

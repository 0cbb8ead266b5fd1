"""Stop a run without waiting for it, and end it for sure if it does not listen."""

from __future__ import annotations

import threading

from luthier.runs.directory import RunDirectory
from luthier.runs.process import stop_worker


def stop(run: RunDirectory) -> None:
    """Ask for a stop at the next step; SIGTERM after a minute, SIGKILL after half a minute more."""
    run.ask("stop")  # at once, also if the thread is slow to start
    threading.Thread(target=stop_worker, args=(run,), name=f"stop-{run.id}", daemon=True).start()

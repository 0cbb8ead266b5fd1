"""The worker: one process that takes a run from its frozen recipe to its report.

``python -m luthier.runs.worker RUN_DIR [JOB]``. It is started in a session of its own, writes only into
the run's directory, looks for wishes in ``control/`` after every step, and may be killed at any
moment: a new worker on the same directory goes on from the last finished stage and checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from luthier.errors import DoesNotFit, Interrupted, LuthierError
from luthier.runs.directory import RunDirectory
from luthier.runs.gone import gpu_gone
from luthier.runs.memory import MemoryWatch
from luthier.runs.process import identity
from luthier.runs.shortage import ways_out
from luthier.schema.run import Failure, Job, Stage, State, Status

HEARTBEAT = 5.0
"""Seconds between signs of life."""
RESERVE, RESERVED = ".reserve", 1 << 16
"""A file that a worker lets go of where the disk is full, so that why the run ended can still be written."""


class Board:
    """The only writer of a running run's ``status.json``; also keeps its clock and heartbeat."""

    def __init__(self, run: RunDirectory, memory: MemoryWatch) -> None:
        self.run = run
        self._memory = memory
        self._lock = threading.Lock()
        before = run.status
        self._status = Status(
            state="running",
            worker=identity(),
            heartbeat=time.time(),
            seconds=before.seconds,
            peak_memory=before.peak_memory,
            step=before.step,
            total_steps=before.total_steps,
            correction=before.correction,
            was=before.was,
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        with contextlib.suppress(OSError):
            (run.path / RESERVE).write_bytes(os.urandom(RESERVED))  # zeros take no room on some disks
        self.set()
        self._thread.start()

    def set(self, **changes: Any) -> None:
        """Change fields of the status and write it."""
        with self._lock:
            self._status = self._status.model_copy(update={"heartbeat": time.time(), **changes})
            try:
                self.run.set_status(self._status)
            except OSError as error:
                if error.errno != errno.ENOSPC or not changes:
                    raise
                (self.run.path / RESERVE).unlink(missing_ok=True)
                self.run.set_status(self._status)

    def close(self, **changes: Any) -> None:
        """Write the last status of this worker."""
        self._done.set()
        self._thread.join()
        self.set(**changes)
        (self.run.path / RESERVE).unlink(missing_ok=True)

    def interrupted(self) -> Failure | None:
        """What is kept of a job on top of a finished run that was stopped; None for the run itself."""
        if self._status.was is None:
            return None
        code = Interrupted.exit_code
        return Failure(
            kind="Interrupted", message="stopped on request", hint="ask for it again", exit_code=code
        )

    def end(self, state: State, failure: Failure | None = None) -> None:
        """The last word of this worker; a run that was finished before is again what it was."""
        before = self._status.was
        self.close(
            state=before if before is not None and failure is not None else state, failure=failure, was=None
        )
        with contextlib.suppress(OSError):  # the status has said it
            self.event("state", state=self._status.state)

    def event(self, event: str, **values: Any) -> None:
        """Append to the run's events."""
        self.run.append("events", {"event": event, **values})

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Time a stage and keep its largest process, also when it is interrupted."""
        self.set(stage=name)
        self.event("stage", stage=name, state="start")
        self._memory.restart()
        began = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                seconds = dict(self._status.seconds)
                peaks = dict(self._status.peak_memory)
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
            peaks[name] = max(peaks.get(name, 0), self._memory.largest)
            self.set(seconds=seconds, peak_memory=peaks)
        self.event("stage", stage=name, state="done", seconds=round(seconds[name], 3))

    def skip(self, name: Stage) -> None:
        """Say that a stage was finished before, from the same inputs."""
        self.event("stage", stage=name, state="skipped")

    def progress(self, stage: Stage, what: str) -> _Progress:
        """A callback that writes progress of one piece of work at most five times a second."""
        return _Progress(self, stage, what)

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a full disk is told by the work itself
                self.set()


class _Progress:
    def __init__(self, board: Board, stage: Stage, what: str) -> None:
        self._board, self._stage, self._what = board, stage, what
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last < 0.2:
            return
        self._last = now
        self._board.event("progress", stage=self._stage, what=self._what, done=done, total=total)
        if self._board.run.asked() == "stop" and done < total:
            raise Interrupted("stopped on request", hint="`luthier train --resume RUN` goes on from here")


def work(path: Path, job: Job | None = None) -> int:
    """Take a run as far as it goes, or do one job on it. Returns the exit code to pass on."""
    from luthier.runs.workflow import execute

    run = RunDirectory(path)
    with MemoryWatch() as memory:
        board = Board(run, memory)

        def stop(_number: int, _frame: FrameType | None) -> None:
            run.ask("stop")

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        try:
            execute(run, board, job)
        except Interrupted:
            board.end("stopped", board.interrupted())
            return Interrupted.exit_code
        except LuthierError as error:
            hint = error.hint
            # What names a file or folder is short of room on a disk, which no change of the plan mends.
            if isinstance(error, DoesNotFit) and error.file is None and run.status.stage == "train":
                hint = ways_out(run) or hint
            failure = Failure(
                kind=type(error).__name__, message=str(error), hint=hint, exit_code=error.exit_code
            )
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            failure = Failure(
                kind="DoesNotFit",
                message=f"the disk is full: {error}; whole checkpoints are untouched",
                hint=f"free space there, then go on with luthier train --resume {run.id}",
                exit_code=DoesNotFit.exit_code,
            )
        except Exception as error:  # a bug: its traceback goes to the log, its one line to the status
            traceback.print_exc()
            failure = _failed(error, run)
        else:
            board.end("done")
            return 0
        board.end("failed", failure)
        return failure.exit_code


def _failed(error: Exception, run: RunDirectory) -> Failure:
    """What is said of an error that nobody raised for a person: a GPU that has gone, or a bug."""
    if (gone := gpu_gone(error, run.id)) is not None:
        return Failure(kind=type(gone).__name__, message=str(gone), hint=gone.hint, exit_code=gone.exit_code)
    return Failure(
        kind=type(error).__name__,
        message=f"{type(error).__name__}: {error}",
        hint=f"this is a fault of Luthier; the log has its traceback: luthier runs logs {run.id}",
        exit_code=1,
    )


def main() -> None:
    """Entry of the worker process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns, and may hang, after a fork
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is on disk by now; nothing else is fetched
    job = Job.model_validate_json(sys.argv[2]) if len(sys.argv) > 2 else None
    sys.exit(work(Path(sys.argv[1]), job))


if __name__ == "__main__":
    main()

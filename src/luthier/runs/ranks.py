"""A training by several processes, one a device: started together, heard by one, ended together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from luthier import errors
from luthier.errors import LuthierError, TrainingError
from luthier.runs.directory import RunDirectory
from luthier.schema.results import TrainResult

GRACE = 10.0
"""Seconds that the others have to end by themselves once one has ended badly."""
Child = subprocess.Popen[str]


def train_together(
    run: RunDirectory, digest: str, size: int, *, on_metrics: Callable[[dict[str, Any]], None]
) -> TrainResult:
    """Train a run with so many processes of this machine; what the first of them tells goes to on_metrics.

    The processes belong to the group of the caller: whoever kills that ends them too.
    Raises what a process raised, and TrainingError where one has died without a word; all others are
    ended then, and the last checkpoint stays.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-ranks-") as folder:
        children = [_start(run, digest, rank, size, Path(folder) / "meeting") for rank in range(size)]
        try:
            return _heard(run, children, on_metrics)
        finally:
            _end(children)


def _start(run: RunDirectory, digest: str, rank: int, size: int, meeting: Path) -> Child:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "RENDEZVOUS": f"file://{meeting}"}
    return subprocess.Popen(
        [sys.executable, "-m", "luthier.runs.rank", str(run.path), digest],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, **{name: str(value) for name, value in places.items()}},
        text=True,
        encoding="utf-8",
    )


def _heard(
    run: RunDirectory, children: Sequence[Child], on_metrics: Callable[[dict[str, Any]], None]
) -> TrainResult:
    """Listen until all have ended."""
    said: SimpleQueue[tuple[int, dict[str, Any] | None]] = SimpleQueue()
    for rank, child in enumerate(children):
        threading.Thread(target=_listen, args=(rank, child, said), daemon=True).start()
    result, left = None, len(children)
    while left:
        rank, values = said.get()
        if values is None:
            left -= 1
            if (code := children[rank].wait()) != 0:
                raise _died(run, rank, code)
        elif "metrics" in values:
            on_metrics(values["metrics"])
        elif "error" in values:
            raise _told(values["error"])
        elif "result" in values:
            result = TrainResult.model_validate(values["result"])
    if result is None:
        raise TrainingError("the processes ended without a result", hint=_go_on(run))
    return result


def _listen(rank: int, child: Child, said: SimpleQueue[tuple[int, dict[str, Any] | None]]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        said.put((rank, json.loads(line)))
    said.put((rank, None))


def _told(error: dict[str, Any]) -> LuthierError:
    """The error that a process raised, as one of the same kind."""
    kind = getattr(errors, error["kind"], TrainingError)
    found = kind(error["message"], hint=error["hint"])
    assert isinstance(found, LuthierError)
    return found


def _died(run: RunDirectory, rank: int, code: int) -> TrainingError:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return TrainingError(
        f"process {rank} of the training {how}; all others were ended, the last checkpoint is whole",
        hint=f"{_go_on(run)}; what it said is in the log: luthier runs logs {run.id}",
    )


def _go_on(run: RunDirectory) -> str:
    return f"go on from the last checkpoint with luthier train --resume {run.id}"


def _end(children: Sequence[Child]) -> None:
    """Let nobody behind."""
    alive = [child for child in children if child.poll() is None]
    until = time.monotonic() + GRACE
    for child in alive:
        child.terminate()
    for child in alive:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, until - time.monotonic()))
        if child.poll() is None:
            child.kill()
            child.wait()
    for child in children:
        if child.stdout is not None:
            child.stdout.close()

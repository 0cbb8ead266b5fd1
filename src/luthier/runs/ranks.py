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
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from luthier import errors
from luthier.errors import LuthierError, TrainingError
from luthier.runs.directory import RunDirectory
from luthier.schema.results import TrainResult

if TYPE_CHECKING:
    from luthier.runs.crew import Crew

GRACE = 10.0
"""Seconds that the others have to end by themselves once one has ended badly."""
CAUSE = 5.0
"""Seconds that a process which lost touch with another waits for that one's own words."""
LOOK = 0.5
"""Seconds between two looks at what happens outside these processes."""
Child = subprocess.Popen[str]
Said = SimpleQueue[tuple[int, dict[str, Any] | None]]
Watch = Callable[[], LuthierError | None]


@dataclass(frozen=True)
class Ranks:
    """The processes of this machine among all that train together."""

    first: int
    """Rank of the first of them."""
    count: int
    size: int
    """Processes on all machines."""
    address: str
    """Where they form their group."""
    guest: bool = False
    """Whether the run's folder is another machine's: this one's is empty."""


def train_together(
    run: RunDirectory,
    digest: str,
    size: int,
    *,
    on_metrics: Callable[[dict[str, Any]], None],
    crew: Crew | None = None,
) -> TrainResult:
    """Train a run with so many processes; what the first of them tells goes to on_metrics.

    crew: the other machines that have a part of the processes; without, all are of this machine. The
    processes belong to the group of the caller: whoever kills that ends them too.
    Raises what a process raised, and TrainingError where one has died without a word; all others are
    ended then, and the last checkpoint stays.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-ranks-") as folder:
        if crew is None:
            ranks = Ranks(0, size, size, f"file://{Path(folder) / 'meeting'}")
            result = hear(run, digest, ranks, on_metrics=on_metrics)
        else:
            with crew.training(digest, size) as ranks:
                result = hear(run, digest, ranks, on_metrics=on_metrics, watch=crew.trouble)
    if result is None:
        raise TrainingError("the processes ended without a result", hint=go_on(run))
    return result


def hear(
    run: RunDirectory,
    digest: str,
    ranks: Ranks,
    *,
    on_metrics: Callable[[dict[str, Any]], None],
    watch: Watch = lambda: None,
) -> TrainResult | None:
    """Start this machine's processes and listen until all have ended; the result, if the first is of them.

    watch: is asked now and then whether something outside has gone wrong. Errors: as `train_together`.
    """
    children = [_start(run, digest, ranks, place) for place in range(ranks.count)]
    try:
        return _Ear(run, ranks, children, on_metrics, watch).listen()
    finally:
        _end(children)


def _start(run: RunDirectory, digest: str, ranks: Ranks, place: int) -> Child:
    words = {
        "RANK": ranks.first + place,
        "LOCAL_RANK": place,
        "LOCAL_SIZE": ranks.count,
        "WORLD_SIZE": ranks.size,
        "RENDEZVOUS": ranks.address,
        "GUEST": int(ranks.guest),
    }
    # torch would take torchrun's words for a store that is kept already.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    return subprocess.Popen(
        [sys.executable, "-m", "luthier.runs.rank", str(run.path), digest],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**kept, **{name: str(value) for name, value in words.items()}},
        text=True,
        encoding="utf-8",
    )


class _Ear:
    """Hears the processes of one machine."""

    def __init__(
        self,
        run: RunDirectory,
        ranks: Ranks,
        children: Sequence[Child],
        on_metrics: Callable[[dict[str, Any]], None],
        watch: Watch,
    ) -> None:
        self._run, self._ranks, self._children = run, ranks, children
        self._on_metrics, self._watch = on_metrics, watch
        self._result: TrainResult | None = None
        self._lost: tuple[LuthierError, float] | None = None
        self._silent: set[int] = set()

    def listen(self) -> TrainResult | None:
        """Until all have ended."""
        said: Said = SimpleQueue()
        for place, child in enumerate(self._children):
            threading.Thread(target=_listen, args=(place, child, said), daemon=True).start()
        left = len(self._children)
        while left:
            try:
                place, values = said.get(timeout=LOOK)
            except Empty:
                self._look()
                continue
            if values is None:
                left -= 1
                self._ended(place)
            else:
                self._take(place, values)
            self._look()
        if self._lost is not None:
            self._wait_for_cause()
        return self._result

    def _take(self, place: int, values: dict[str, Any]) -> None:
        if "metrics" in values:
            self._on_metrics(values["metrics"])
        elif "result" in values:
            self._result = TrainResult.model_validate(values["result"])
        elif "error" in values:
            if not values.get("lost_touch"):
                raise told(values["error"])
            # Whoever it lost may say, or show by its end, why.
            self._silent.add(place)
            self._lost = self._lost or (told(values["error"]), time.monotonic() + CAUSE)

    def _ended(self, place: int) -> None:
        if (code := self._children[place].wait()) != 0 and place not in self._silent:
            raise _died(self._run, self._ranks.first + place, code)

    def _look(self) -> None:
        if (trouble := self._watch()) is not None:
            raise trouble
        if self._lost is not None and time.monotonic() > self._lost[1]:
            raise self._lost[0]

    def _wait_for_cause(self) -> None:
        while True:
            self._look()
            time.sleep(LOOK / 5)


def _listen(place: int, child: Child, said: Said) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        said.put((place, json.loads(line)))
    said.put((place, None))


def told(error: dict[str, Any]) -> LuthierError:
    """The error that another process raised, as one of the same kind."""
    kind = getattr(errors, error["kind"], TrainingError)
    found = kind(error["message"], hint=error["hint"], file=error.get("file"))
    assert isinstance(found, LuthierError)
    return found


def _died(run: RunDirectory, rank: int, code: int) -> TrainingError:
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGABRT:
            how += " (NCCL ends a process whose partner does not answer)"
    return TrainingError(
        f"process {rank} of the training {how}; all others were ended, the last checkpoint is whole",
        hint=f"{go_on(run)}; what it said is in the log: luthier runs logs {run.id}",
    )


def go_on(run: RunDirectory) -> str:
    """How to take the work up again."""
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

"""Rows of the grid in processes of their own: each begins with an empty card and cannot end the others."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grid_rows import Row

LIMIT = 420
"""Seconds after which a row is given up."""
PATIENCE = 8.0
"""Seconds that the other devices of a row have after one has failed."""

Measure = Callable[["Row", int, str, bool], dict[str, Any]]
"""(row, rank, where its devices meet, whether it is alone on its card) to what was found."""


def die_with_parent() -> None:
    """End this process when the one that started it does (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass
class Child:
    """A fork that measures a row on one device."""

    process: int
    pipe: int
    said: bytes = b""

    @classmethod
    def start(cls, measure: Measure, row: Row, rank: int, meeting: str, *, alone: bool) -> Child:
        hear, say = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's threads are idle
            process = os.fork()
        if process:
            os.close(say)
            return cls(process, hear)
        os.close(hear)
        die_with_parent()
        signal.alarm(LIMIT)
        try:
            found = measure(row, rank, meeting, alone)
        except BaseException as error:
            found = {
                "error": f"{type(error).__name__}: {error}"[:800],
                "trace": traceback.format_exc()[-1800:],
            }
        with os.fdopen(say, "wb") as pipe:
            pipe.write(json.dumps(found).encode())
        os._exit(0)

    def read(self) -> bool:
        """Take what it has said; whether it has ended."""
        part = os.read(self.pipe, 1 << 16)
        self.said += part
        return not part

    def end(self) -> None:
        os.kill(self.process, signal.SIGKILL)

    def found(self) -> dict[str, Any]:
        """What it found, once it has ended."""
        os.close(self.pipe)
        _, status = os.waitpid(self.process, 0)
        if not self.said:
            return {"error": f"ended with status {status}"}
        said: dict[str, Any] = json.loads(self.said)
        return said


@dataclass
class Going:
    """A row that is being measured, on one device or several."""

    row: Row
    children: list[Child]
    open: list[Child]
    room: float
    began: float = field(default_factory=time.monotonic)
    until: float | None = None

    @classmethod
    def start(cls, measure: Measure, row: Row, devices: int, room: float, *, alone: bool) -> Going:
        meeting = str(Path(tempfile.mkdtemp(prefix="grid-")) / "meeting")
        made = [Child.start(measure, row, rank, meeting, alone=alone) for rank in range(devices)]
        return cls(row, made, list(made), room)

    def hear(self, child: Child) -> None:
        """Take what one of its processes says."""
        if child.read():
            self.open.remove(child)
            if self.open and b'"error"' in child.said:
                self.until = time.monotonic() + PATIENCE

    def found(self) -> dict[str, Any]:
        """The first device's figures with the most memory of any, or what went wrong."""
        said = [child.found() for child in self.children]
        failed = [one for one in said if "trace" in one] or [one for one in said if "error" in one]
        if failed:
            return failed[0]
        first = said[0]
        for name in ("allocated", "reserved", "context"):
            if first.get(name) is not None:
                first[name] = max(one[name] for one in said)
        return first


def run(
    rows: list[Row],
    measure: Measure,
    *,
    workers: int,
    room: float,
    planned: Callable[[Row], float],
    devices: Callable[[Row], int],
    begins: Callable[[], bool],
) -> Iterator[tuple[Row, dict[str, Any], float]]:
    """Measure rows, so many beside each other as their planned peaks leave room for; as each ends.

    room: bytes of a card that they may take together. begins: whether another row may still begin. Yields
    row, what was found, and the seconds it took. Rows that were begun are taken off ``rows``.
    """
    going: list[Going] = []
    while True:
        while begins() and len(going) < workers:
            left = room - sum(one.room for one in going)
            fitting = next((row for row in rows if planned(row) <= left or not going), None)
            if fitting is None:
                break
            rows.remove(fitting)
            need = planned(fitting)
            going.append(Going.start(measure, fitting, devices(fitting), need, alone=workers == 1))
        if not going:
            return
        pipes = {child.pipe: (one, child) for one in going for child in one.open}
        ready, _, _ = select.select(list(pipes), [], [], 1.0)
        for pipe in ready:
            one, child = pipes[pipe]
            one.hear(child)
        for one in going:
            if one.until is not None and time.monotonic() > one.until:
                for child in one.open:
                    child.end()
                one.until = None
        for one in [one for one in going if not one.open]:
            going.remove(one)
            yield one.row, one.found(), time.monotonic() - one.began

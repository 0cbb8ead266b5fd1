"""The largest process of a run, watched from inside."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

import psutil


class MemoryWatch:
    """Samples the resident memory of this process and its children; keeps the largest of any one.

    A sample every 0.2 seconds sees allocations that last; the exact high-water mark of this
    process is read from the kernel where it tells (Linux).
    """

    def __init__(self, interval: float = 0.2) -> None:
        self._interval = interval
        self._largest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def largest(self) -> int:
        """Bytes of the largest process since the last ``restart``."""
        return self._largest

    def restart(self) -> None:
        """Forget what was seen, for the next stage."""
        self._largest = psutil.Process().memory_info().rss

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(self._interval):
            for process in (me, *self._children(me)):
                with contextlib.suppress(psutil.Error):
                    self._largest = max(self._largest, process.memory_info().rss)

    @staticmethod
    def _children(me: psutil.Process) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return me.children(recursive=True)
        return []

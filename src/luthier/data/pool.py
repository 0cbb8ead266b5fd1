"""One job over many pieces in processes of their own, results in order.

The processes are started by name (``python -c``), not forked or spawned by multiprocessing: forking is
unsafe once a tokenizer has started threads, and spawning runs the caller's own script again.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any

from luthier.errors import LuthierError

Job = Callable[[Any], Any]
"""A function of one piece."""
_START = "import sys; sys.path[:] = {path!r}; from luthier.data.pool import serve; serve()"


def processes() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(job: str, setup: Any, pieces: Iterable[Any], *, count: int) -> Iterator[Any]:
    """Results of ``job`` for each piece, in order, with at most 2 x count pieces in flight.

    job: ``module:function``; the function makes the job out of setup once a process. setup and pieces
    must be picklable. With count 1 all is done here. An error of Luthier's is raised again as it was;
    any other ends the run as RuntimeError with the process's traceback.
    """
    if count <= 1:
        work = _find(job)(setup)
        yield from map(work, pieces)
        return
    workers = [_Worker(job, setup) for _ in range(count)]
    free: queue.Queue[_Worker] = queue.Queue()
    for worker in workers:
        free.put(worker)

    def ask(piece: Any) -> Any:
        worker = free.get()
        try:
            return worker.ask(piece)
        finally:
            free.put(worker)

    waiting: deque[Future[Any]] = deque()
    try:
        with ThreadPoolExecutor(count) as threads:
            try:
                for piece in pieces:
                    if len(waiting) >= 2 * count:
                        yield waiting.popleft().result()
                    waiting.append(threads.submit(ask, piece))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for left in waiting:
                    left.cancel()
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """One process, asked by one thread at a time."""

    def __init__(self, job: str, setup: Any) -> None:
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _START.format(path=sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self._send((job, setup))

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(value, self._process.stdin, protocol=5)
        self._process.stdin.flush()

    def ask(self, piece: Any) -> Any:
        try:
            self._send(piece)
            assert self._process.stdout is not None
            kind, value = pickle.load(self._process.stdout)  # noqa: S301 - from ourselves
        except (EOFError, OSError) as error:
            code = self._process.poll()
            raise LuthierError(
                "a process that renders rows has ended" + (f" with exit code {code}" if code else ""),
                hint="it may have run out of memory: close other programs, or set data.processes=1",
            ) from error
        if kind == "problem":
            raise restored(value)
        if kind == "crash":
            raise RuntimeError(f"in a data process:\n{value}")
        return value

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # it has ended already; that was told where it was asked
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve() -> None:
    """A process's own loop: the job, then pieces, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks is told, and closes the pipe
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that prints may break the answers
    try:
        job, setup = pickle.load(source)  # noqa: S301 - from our parent
        work: Job | None = None
        while True:
            piece = pickle.load(source)  # noqa: S301 - from our parent
            try:
                work = work or _find(job)(setup)
                answer = ("ok", work(piece))
            except LuthierError as error:
                answer = ("problem", packed(error))
            except Exception:  # told whole to the parent, which raises it
                answer = ("crash", traceback.format_exc())
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)


def _find(job: str) -> Callable[[Any], Job]:
    module, name = job.split(":")
    found: Callable[[Any], Job] = getattr(import_module(module), name)
    return found


def packed(error: LuthierError) -> tuple[Any, ...]:
    """An error as plain values, since errors with keyword arguments do not pickle."""
    kind = type(error)
    code = getattr(error, "code", None)
    return kind.__module__, kind.__qualname__, error.message, error.file, error.line, error.hint, code


def restored(values: tuple[Any, ...]) -> LuthierError:
    """The error again."""
    module, name, message, file, line, hint, code = values
    kind = getattr(import_module(module), name)
    if code is not None:
        error: LuthierError = kind(code, message, file=file, line=line, hint=hint)
    else:
        error = kind(message, file=file, line=line, hint=hint)
    return error

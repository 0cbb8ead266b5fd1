"""Runs a tool in a child process: output into a log, a time limit, no child left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from luthier.errors import ToolchainError

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Environment that keeps Hugging Face's libraries off the network."""


def run_child(
    argv: Sequence[str],
    *,
    what: str,
    log: Path,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    hint: str | None = None,
) -> None:
    """Run a command to its end, its output appended to ``log``; ``on_line`` sees each line of stdout.

    The child stays in the caller's process group, so that ending the group ends it too.
    Errors: ToolchainError with the last lines of the log when it fails or takes longer than ``timeout``
    seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    expired = threading.Event()
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, **(environment or {})},
            text=True,
            errors="replace",
        ) as child,
    ):

        def expire() -> None:
            expired.set()
            end_tree(child.pid)

        clock = threading.Timer(timeout, expire)
        clock.daemon = True
        clock.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                file.write(line)
                file.flush()
                if on_line is not None:
                    on_line(line.rstrip("\n"))
            code = child.wait()
        finally:
            clock.cancel()
            if child.poll() is None:
                end_tree(child.pid)
    if expired.is_set():
        raise ToolchainError(
            f"{what} took longer than {timeout:,.0f} s and was stopped",
            file=log,
            hint=hint or _tail_hint(log),
        )
    if code != 0:
        raise ToolchainError(
            f"{what} failed ({_reason(code)}): {last_lines(log, 1)}", file=log, hint=hint or _tail_hint(log)
        )


def end_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def last_lines(log: Path, count: int = 8) -> str:
    """The last lines of a log that say something."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-count:]) or "no output"


def _tail_hint(log: Path) -> str:
    return f"the last lines of its log:\n{last_lines(log)}"


def _reason(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"


def cores() -> int:
    """Physical cores that this process may use: more threads only slow llama.cpp down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))

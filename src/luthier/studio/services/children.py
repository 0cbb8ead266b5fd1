"""Child processes of the studio: detached, so that they outlive it, and named for good."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from luthier.runs.process import alive, identity
from luthier.schema.run import WorkerIdentity

_known: dict[str, WorkerIdentity] = {}


def start(
    key: str,
    module: str,
    words: Sequence[str],
    *,
    out: Path | None = None,
    err: Path | None = None,
    env: dict[str, str] | None = None,
) -> WorkerIdentity:
    """Run ``python -m MODULE WORDS`` in a session of its own. key: what it is asked for by.

    out, err: files for what it prints (err: as out where only that is given).
    """
    streams = [subprocess.DEVNULL if one is None else one.open("wb") for one in (out, err)]
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.DEVNULL,
            stdout=streams[0],
            stderr=subprocess.STDOUT if err is None and out is not None else streams[1],
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    finally:
        for stream in streams:
            if not isinstance(stream, int):
                stream.close()
    named = _known[key] = identity(child.pid)
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()
    return named


def running(key: str, lock: Path | None = None) -> bool:
    """Whether the child of that key is at it: this server's, or one that holds the lock file."""
    named = _known.get(key)
    if named is not None:
        if alive(named):
            return True
        _known.pop(key, None)
    if lock is None or not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True

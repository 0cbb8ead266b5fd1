"""The command line as a person runs it: a process of its own, in a folder, with its own runs and cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def luthier(
    folder: Path, *words: str, code: int = 0, own_cache: bool = True, width: int = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``luthier WORDS`` in that folder; fails unless it ends with that code.

    own_cache: whether the cache is in the folder too, and not this person's own. width: columns of lines.
    """
    rooms = {"LUTHIER_RUNS": str(folder / "runs")}
    if own_cache:
        rooms["LUTHIER_CACHE"] = str(folder / "cache")
    done = subprocess.run(
        [sys.executable, "-m", "luthier", *words],
        cwd=folder,
        env={**os.environ, **rooms, "CI": "1", "COLUMNS": str(width)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def says(folder: Path, *words: str, code: int = 0) -> str:
    """What that command answers, or what it says on stderr where it is to fail."""
    done = luthier(folder, *words, code=code)
    return done.stdout if code == 0 else done.stderr

"""Fetch one model in a process of its own (``python -m ... PLACE ID REVISION``); PLACE says how far it is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from luthier.errors import LuthierError
from luthier.files import write_text
from luthier.runs.model import obtain
from luthier.schema.recipe import ModelChoice

EVERY = 0.5
"""Seconds between two notes of how far it is."""


def main(words: Sequence[str]) -> int:
    """Fetch, note, end. A failure is noted with its ways out."""
    place, name, revision = Path(words[0]), words[1], words[2] or None
    told: dict[str, Any] = {"id": name, "state": "running", "done": 0, "total": 0, "said": ""}
    last = 0.0

    def note(**values: Any) -> None:
        told.update(values)
        write_text(place, json.dumps(told))

    def progress(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > EVERY or done == total:
            last = now
            note(done=done, total=total)

    try:
        with FileLock(place.with_suffix(".lock"), timeout=0):
            try:
                obtain(
                    ModelChoice(id=name, revision=revision),
                    say=lambda text: note(said=text),
                    progress=progress,
                )
            except LuthierError as error:
                note(state="failed", problem=error.message, fix=error.hint)
                return error.exit_code
            except Exception as error:
                note(state="failed", problem=f"{type(error).__name__}: {error}", fix="try again")
                raise
            note(state="done")
    except Timeout:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The child's end of a talk in JSON lines: what every model in a process of its own has in common."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from luthier.errors import LuthierError

Say = Callable[..., None]
"""Writes one line: an object with the values given."""


def talk(work: Callable[[Say], None]) -> int:
    """Do a child's work and return its exit code; a failure is one line with ``failure``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Libraries print where they please; what is meant goes to a copy of standard output.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(**values: Any) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    try:
        work(say)
    except LuthierError as error:
        say(failure=failure_of(error))
        return error.exit_code
    return 0


def requests() -> Iterator[dict[str, Any]]:
    """Each line of standard input, until it ends."""
    for line in sys.stdin:
        yield json.loads(line)


def failure_of(error: LuthierError) -> dict[str, Any]:
    """A failure as the asking process passes it on."""
    return {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}

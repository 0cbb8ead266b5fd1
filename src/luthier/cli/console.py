"""Where words go: data to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from luthier import words

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.errors import LuthierError
    from luthier.schema.protocols import Progress as Told

JSON_VERSION = 1
"""Version of every ``--json`` object."""


@cache
def out() -> Console:
    """The console for what a command answers."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


@cache
def err() -> Console:
    """The console for progress, notes and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def interactive() -> bool:
    """Whether a person watches: live bars are drawn only then."""
    return sys.stderr.isatty() and not os.environ.get("CI")


def print_json(values: Any) -> None:
    """Print one JSON object with its schema version."""
    document = {"version": JSON_VERSION, **values} if isinstance(values, dict) else values
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()  # a command that goes on (serve) is read through a pipe while it runs


def print_error(error: LuthierError, *, as_json: bool) -> None:
    """Print a failure: where, what and every way out."""
    if as_json:
        print_json(
            {
                "error": {
                    "kind": type(error).__name__,
                    "message": error.message,
                    "where": error.where,
                    "hint": error.hint,
                }
            }
        )
        return
    from rich.text import Text

    line = Text("error: ", style="bold red")
    line.append(str(error), style="default not bold")
    err().print(line, soft_wrap=True)
    if error.hint:
        hint = Text("hint:  ", style="bold cyan")
        hint.append(error.hint, style="default not bold")
        err().print(hint, soft_wrap=True)


size, memory, duration = words.readable, words.memory, words.duration
"""Bytes on disk and on the wire; bytes of memory; seconds: as people read them."""


@contextmanager
def byte_bar(name: str) -> Iterator[Told | None]:
    """A progress bar over bytes on a terminal; nothing elsewhere."""
    if not interactive():
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=err(), transient=True
    ) as bars:
        task = bars.add_task(name, total=None)

        def told(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield told


@contextmanager
def row_bar(name: str) -> Iterator[Told | None]:
    """A progress bar over rows on a terminal; nothing elsewhere."""
    if not interactive():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True) as bars:
        task = bars.add_task(name, total=None)

        def told(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield told

"""A cleaned copy of some data, with the list of what was left out and why."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from luthier.data.check import check
from luthier.data.images import media_type
from luthier.data.read import RawRow
from luthier.data.sources import resolve
from luthier.errors import LuthierError, UsageError
from luthier.schema.data import CheckReport


def fix(
    sources: tuple[str, ...],
    out: Path,
    *,
    base: Path,
    held_out: tuple[str, ...] = (),
    **settings: Any,
) -> CheckReport:
    """Write the rows that can be used, each once and none of the held-out ones, as JSONL to ``out``.

    Beside it, ``NAME.dropped.jsonl`` names each row left out by file, line and reason. Rows stand as they
    were, in their order: rows read = rows written + rows in that list. settings: as for check.
    Raises UsageError where out is one of the sources, and what check raises.
    """
    files = [file.path.resolve() for file in resolve(sources, base=base).files]
    if out.resolve() in files:
        raise UsageError(
            "the cleaned file cannot replace its source",
            file=out,
            hint="name another file; compare, then move it",
        )
    aside = out.with_name(f"{out.stem}.dropped.jsonl")
    unfinished = out.with_name(out.name + ".part")
    with unfinished.open("w", encoding="utf-8") as kept, aside.open("w", encoding="utf-8") as dropped:

        def write(row: RawRow, reason: str | None) -> None:
            if reason is None:
                kept.write(json.dumps(row.value, ensure_ascii=False, default=_plain) + "\n")
            else:
                left = {"file": row.file, "line": row.line, "reason": reason}
                dropped.write(json.dumps(left, ensure_ascii=False) + "\n")

        def left_out(problem: LuthierError) -> None:
            left = {"file": problem.file, "line": problem.line, "reason": problem.message}
            dropped.write(json.dumps(left, ensure_ascii=False) + "\n")

        report = check(sources, base=base, held_out=held_out, on_row=write, on_problem=left_out, **settings)
    unfinished.replace(out)
    return report


def _plain(value: Any) -> str:
    """What JSON has no words for: bytes (images of a table) as a data address, dates and numbers as text."""
    if isinstance(value, bytes):
        return f"data:{media_type(value)};base64,{base64.b64encode(value).decode()}"
    return str(value)

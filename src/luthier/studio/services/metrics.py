"""A run's curves: at most so many points of what is past, and every row behind a byte offset."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "memory", "tokens_per_second", "time")
"""What is sent of each step, in this order."""
MOST_POINTS = 1500
_LOSS = b'"loss":'


def sampled(path: Path, *, since: int = 0, most: int = MOST_POINTS) -> dict[str, Any]:
    """Steps as columns, evaluations, the last whole row and the offset behind it.

    The file is cut into stretches of equal length; of each the steps of lowest and highest loss and the last
    one are kept, so that no spike is lost. Where the file has fewer rows than that all are kept.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    keep: list[bytes] = []
    validations: list[bytes] = []
    last = b""
    offset = since
    if size > since:
        stretches = max(1, most // 3)
        length = max(1, (size - since + stretches - 1) // stretches)
        stretch, low, high = -1, (0.0, b""), (0.0, b"")
        final = b""
        with path.open("rb") as file:
            file.seek(since)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                place = (offset - since) // length
                offset += len(line)
                if b'"kind":"step"' not in line[:60]:
                    if b'"kind":"validation"' in line[:70]:
                        validations.append(line)
                    continue
                last = line
                value = _loss(line)
                if place != stretch:
                    _keep(keep, low[1], high[1], final)
                    stretch, low, high = place, (value, line), (value, line)
                elif value < low[0]:
                    low = (value, line)
                elif value > high[0]:
                    high = (value, line)
                final = line
            _keep(keep, low[1], high[1], final)
    rows = [row for row in map(_row, keep) if row is not None]
    rows.sort(key=lambda row: row["step"])
    checks = [row for row in map(_row, validations) if row is not None]
    if len(checks) > most:
        checks = checks[:: len(checks) // most + 1]
    return {
        "columns": {name: [_short(row.get(name)) for row in rows] for name in COLUMNS},
        "validation": {
            "step": [row["step"] for row in checks],
            "loss": [_short(row.get("loss")) for row in checks],
        },
        "last": _row(last) if last else None,
        "offset": offset,
    }


def tail(path: Path, offset: int, *, most: int = 20) -> dict[str, Any]:
    """What was added behind an offset, as short rows for a live page.

    Where more steps came than ``most``, each so-manieth is sent, and always the last.
    """
    rows: list[list[Any]] = []
    last: dict[str, Any] | None = None
    try:
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.read(4_000_000).splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    whole = [line for line in lines if line.endswith(b"\n")]
    offset += sum(map(len, whole))
    steps = [line for line in whole if b'"kind":"step"' in line[:60]]
    stride = max(1, -(-len(steps) // most))
    for place, line in enumerate(steps):
        if (len(steps) - 1 - place) % stride == 0 and (row := _row(line)) is not None:
            last = row
            rows.append([_short(row.get(name)) for name in COLUMNS[:-1]])
    measured = [_row(line) for line in whole if b'"kind":"validation"' in line[:70]]
    checks = [[row["step"], _short(row.get("loss"))] for row in measured if row is not None]
    return {"rows": rows, "checks": checks[-most:], "last": last, "offset": offset}


def _keep(keep: list[bytes], *lines: bytes) -> None:
    keep += [line for line in dict.fromkeys(lines) if line]


def _loss(line: bytes) -> float:
    start = line.find(_LOSS)
    if start < 0:
        return 0.0
    end = line.find(b",", start)
    try:
        return float(line[start + len(_LOSS) : end])
    except ValueError:
        return 0.0


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _short(value: Any) -> Any:
    """A number at six digits: what a screen can show, in half the bytes. Not-a-number is null."""
    if isinstance(value, float):
        short = float(f"{value:.6g}")
        if not math.isfinite(short):
            return None
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    return value

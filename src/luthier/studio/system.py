"""What the machine has and holds now, looked up at most every two seconds, whatever asks."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

from luthier.planning.audit import audit
from luthier.schema.hardware import Hardware

STALE = 2.0
"""Seconds that a look at the machine is good."""
_lock = threading.Lock()
_seen: dict[Path, tuple[float, Hardware]] = {}


def hardware(runs: Path) -> Hardware:
    """The machine, not older than two seconds."""
    with _lock:
        now = time.monotonic()
        seen = _seen.get(runs)
        if seen is None or now - seen[0] > STALE:
            place = next(p for p in (runs, *runs.parents) if p.exists())
            seen = _seen[runs] = (now, audit(place, versions=False))
        return seen[1]


def gauge(runs: Path) -> dict[str, Any]:
    """The sidebar's meter: the first accelerator's memory, or the machine's."""
    machine = hardware(runs)
    if machine.accelerators:
        card = machine.accelerators[0]
        name, total, free = card.name, card.memory_total, card.memory_free
        more = len(machine.accelerators) - 1
        name = f"{name} + {more} more" if more else name
    else:
        name, total, free = (
            f"{machine.processor.cores} cores, no GPU",
            machine.memory_total,
            machine.memory_free,
        )
    disk = shutil.disk_usage(next(p for p in (runs, *runs.parents) if p.exists()))
    return {
        "name": name,
        "used": total - free,
        "total": total,
        "share": round((total - free) / total, 3),
        "disk_free": disk.free,
        "kind": "gpu" if machine.accelerators else "memory",
    }

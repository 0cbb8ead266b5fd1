"""Sizes and times as people read them: one wording for the terminal, the report and every message."""

from __future__ import annotations


def readable(size: float) -> str:
    """Bytes in powers of ten, as disks and package indexes count: 105.5 MB, 1.2 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # What rounds up to a thousand of one unit is one of the next.
        if size >= scale * 0.99995:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def memory(value: float) -> str:
    """Bytes of memory in GiB (powers of 1,024, as memory is built)."""
    return f"{value / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds as 40 ms, 4.2 s, 48 s, 3 min 05 s, 2 h 10 min."""
    if 0.0005 <= seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"

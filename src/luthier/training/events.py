"""What a training tells whoever listens: one flat dictionary an event."""

from __future__ import annotations

from collections.abc import Callable

Metrics = dict[str, str | int | float | bool | None]
"""``kind`` says what it is of; docs/training.md lists the kinds and their keys."""
Tell = Callable[[Metrics], None]


def note(text: str) -> Metrics:
    """Something said to a person."""
    return {"kind": "note", "text": text}


def nobody(_values: Metrics) -> None:
    """Listens for the processes that do not speak."""

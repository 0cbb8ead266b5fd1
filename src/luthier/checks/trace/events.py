"""What a traced step did to memory: a list of allocations, frees and phase marks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Event(NamedTuple):
    """``a`` allocates size bytes as block id, ``f`` frees it, ``t`` renames it, ``m`` begins phase tag."""

    kind: Literal["a", "f", "t", "m"]
    id: int
    size: int
    tag: str


@dataclass
class Timeline:
    """Events in order. Blocks are numbered from 1."""

    events: list[Event] = field(default_factory=list)
    last: int = 0

    def allocate(self, size: int, tag: str) -> int:
        """A block that lives until it is freed by its number."""
        self.last += 1
        self.events.append(Event("a", self.last, size, tag))
        return self.last

    def free(self, block: int) -> None:
        self.events.append(Event("f", block, 0, ""))

    def rename(self, block: int, tag: str) -> None:
        """Say anew what a block is for."""
        self.events.append(Event("t", block, 0, tag))

    def passing(self, size: int, tag: str) -> None:
        """A block that lives for one moment."""
        if size > 0:
            self.free(self.allocate(size, tag))

    def mark(self, phase: str) -> None:
        self.events.append(Event("m", 0, 0, phase))

"""A model of CUDA's caching allocator in PyTorch: what a list of allocations reserves.

Follows c10/cuda/CUDACachingAllocator.cpp: sizes are rounded to 512 bytes; blocks up to 1 MiB come from
2 MiB segments, up to 10 MiB from 20 MiB segments, larger ones from segments rounded to 2 MiB; the best
fitting free block is taken and split where the rest is worth it; neighbours are joined when freed.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from luthier.checks.trace.events import Event

MIB = 1 << 20
ROUND = 512
SMALL = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE_FROM = 10 * MIB


class OutOfMemory(Exception):
    """The replay ran into the given capacity."""


@dataclass(eq=False, slots=True)
class _Block:
    size: int
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None
    serial: int = 0
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """Peaks of a replay, in bytes."""

    allocated: int
    """Most bytes in blocks at one time: ``torch.cuda.max_memory_allocated``."""
    reserved: int
    """Most bytes in segments at one time: ``torch.cuda.max_memory_reserved``."""
    phases: dict[str, int]
    """Phase -> most bytes in blocks while it lasted."""
    at_peak: dict[str, int]
    """Tag -> bytes at the moment of most."""
    phase_parts: dict[str, dict[str, int]]
    """Phase -> tag -> bytes at the phase's own height."""
    end: int
    """Bytes in blocks when all is over."""


@dataclass
class _Pools:
    """Free blocks by pool, sorted by size and age."""

    free: dict[bool, list[tuple[int, int, _Block]]] = field(default_factory=lambda: {True: [], False: []})
    serial: int = 0

    def put(self, block: _Block) -> None:
        self.serial += 1
        block.serial, block.free = self.serial, True
        bisect.insort(self.free[block.small], (block.size, block.serial, block), key=lambda entry: entry[:2])

    def take(self, block: _Block) -> None:
        """Remove a known block."""
        pool = self.free[block.small]
        place = bisect.bisect_left(pool, (block.size, block.serial), key=lambda entry: entry[:2])
        assert pool[place][2] is block
        pool.pop(place)

    def best(self, size: int, small: bool) -> _Block | None:
        """Remove and return the smallest block that holds size."""
        pool = self.free[small]
        place = bisect.bisect_left(pool, (size, 0), key=lambda entry: entry[:2])
        return pool.pop(place)[2] if place < len(pool) else None


class _Simulation:
    def __init__(self, capacity: int | None, expandable: bool) -> None:
        self.capacity, self.expandable = capacity, expandable
        self.tails: dict[bool, _Block | None] = {True: None, False: None}
        self.pools = _Pools()
        self.live: dict[int, _Block] = {}
        self.allocated = self.reserved = self.most_reserved = 0
        self.parts: Counter[str] = Counter()

    def allocate(self, event: Event) -> None:
        size = max(ROUND, -(-event.size // ROUND) * ROUND)
        small = size <= SMALL
        block = self.pools.best(size, small)
        if block is None:
            block = self._segment(size, small)
        rest = block.size - size
        # A large block whose rest is a megabyte or less is handed out whole, and counts whole.
        if rest >= ROUND if small or self.expandable else rest > SMALL:
            tail = _Block(rest, small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = tail
            block.after, block.size = tail, size
            if self.tails[small] is block:
                self.tails[small] = tail
            self.pools.put(tail)
        block.free, block.tag = False, event.tag
        self.live[event.id] = block
        self.allocated += block.size
        self.parts[event.tag] += block.size

    def _segment(self, size: int, small: bool) -> _Block:
        if self.expandable:
            return self._grow(size, small)
        if small:
            segment = SMALL_SEGMENT
        elif size < LARGE_FROM:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
        if self.capacity is not None and self.reserved + segment > self.capacity:
            self._release_unused()
            if self.reserved + segment > self.capacity:
                raise OutOfMemory
        self._reserve(segment)
        return _Block(segment, small)

    def _reserve(self, size: int) -> None:
        self.reserved += size
        self.most_reserved = max(self.most_reserved, self.reserved)

    def _grow(self, size: int, small: bool) -> _Block:
        """Map more pages at the end of the pool's one segment."""
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        tail = self.tails[small]
        there = tail.size if tail is not None and tail.free else 0
        more = -(-(size - there) // page) * page
        if self.capacity is not None and self.reserved + more > self.capacity:
            raise OutOfMemory
        self._reserve(more)
        if tail is not None and tail.free:
            self.pools.take(tail)
            tail.size += more
            return tail
        block = _Block(more, small, before=tail)
        if tail is not None:
            tail.after = block
        self.tails[small] = block
        return block

    def _release_unused(self) -> None:
        """Give back whole free segments, as CUDA does before it fails."""
        for pool in self.pools.free.values():
            whole = [entry for entry in pool if entry[2].before is None and entry[2].after is None]
            for entry in whole:
                self.reserved -= entry[0]
            pool[:] = [entry for entry in pool if entry not in whole]

    def rename(self, event: Event) -> None:
        block = self.live[event.id]
        self.parts[block.tag] -= block.size
        block.tag = event.tag
        self.parts[block.tag] += block.size

    def release(self, event: Event) -> None:
        block = self.live.pop(event.id)
        self.allocated -= block.size
        self.parts[block.tag] -= block.size
        after = block.after
        if after is not None and after.free:
            self.pools.take(after)
            self._join(block, after)
        before = block.before
        if before is not None and before.free:
            self.pools.take(before)
            self._join(before, block)
            block = before
        self.pools.put(block)

    def _join(self, block: _Block, after: _Block) -> None:
        """Make after a part of block."""
        block.size += after.size
        block.after = after.after
        if after.after is not None:
            after.after.before = block
        if self.tails[block.small] is after:
            self.tails[block.small] = block


def replay(events: Iterable[Event], *, capacity: int | None = None, expandable: bool = False) -> Replay:
    """Run events through the allocator.

    capacity: bytes it may reserve. expandable: as with ``expandable_segments:True``, one growing
    segment a pool. Errors: OutOfMemory beyond the capacity.
    """
    simulation = _Simulation(capacity, expandable)
    most, at_peak = 0, {}
    phases: dict[str, int] = {}
    phase_parts: dict[str, dict[str, int]] = {}
    phase = None
    for event in events:
        if event.kind == "a":
            simulation.allocate(event)
        elif event.kind == "f":
            simulation.release(event)
        elif event.kind == "t":
            simulation.rename(event)
        else:
            phase = event.tag
            phases.setdefault(phase, 0)
        if event.kind in ("f", "t"):
            continue
        if simulation.allocated > most:
            most, at_peak = simulation.allocated, dict(simulation.parts)
        if phase is not None and simulation.allocated > phases[phase]:
            phases[phase] = simulation.allocated
            phase_parts[phase] = dict(simulation.parts)
    return Replay(
        most,
        simulation.most_reserved,
        phases,
        {tag: size for tag, size in at_peak.items() if size},
        {name: {tag: size for tag, size in parts.items() if size} for name, parts in phase_parts.items()},
        simulation.allocated,
    )


def least_capacity(events: list[Event], *, step: int = 8 * MIB) -> int:
    """The smallest reserved memory, in steps, with which the events run through."""
    found = replay(events)
    low, high = found.allocated // step, -(-found.reserved // step)
    while low < high:
        middle = (low + high) // 2
        try:
            replay(events, capacity=middle * step)
        except OutOfMemory:
            low = middle + 1
        else:
            high = middle
    return low * step

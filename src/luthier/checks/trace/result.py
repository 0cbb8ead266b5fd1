"""What a trace found, and how two shallow ones foretell the whole depth."""

from __future__ import annotations

import re
from typing import Literal

from luthier.checks.trace.allocator import Replay, least_capacity, replay
from luthier.checks.trace.events import Event, Timeline
from luthier.schema.base import Record

Parts = dict[str, int]
PHASES = ("forward", "backward", "optimizer")
_LAYER = re.compile(r"layer(\d+)$")


class TraceResult(Record):
    """Memory of one step, the context not counted. Bytes."""

    phases: dict[str, Parts]
    """Phase -> part -> bytes at the phase's height, in the second step, when all states are there."""
    allocated: int
    """Peak of the tensors: ``torch.cuda.max_memory_allocated``."""
    reserved: int | None
    """Peak of the allocator's segments; None for a trace that was extrapolated."""
    needed: int | None
    """The least reserved memory with which the step runs through; None likewise."""
    layers: tuple[int, ...]
    """Depths that were traced."""
    basis: Literal["whole", "extrapolated"]


def whole(timeline: Timeline, layers: int, *, expandable: bool = False) -> TraceResult:
    """Result of a trace of every layer."""
    events = second_step(timeline)
    found = replay(events, expandable=expandable)
    moments = _moments(found)
    return TraceResult(
        phases=_by_phase(moments),
        allocated=found.allocated,
        reserved=found.reserved,
        needed=found.allocated if expandable else least_capacity(events),
        layers=(layers,),
        basis="whole",
    )


def extrapolated(
    shallow: Timeline, deep: Timeline, depths: tuple[int, int], layers: int, *, expandable: bool = False
) -> TraceResult:
    """Result at full depth from two shallow traces.

    At each moment (a layer counted from the nearer end) each part grows by the same amount a layer, and
    between the first and the last layer it changes evenly, so that the height is at one of both ends.
    """
    few = _ends(_moments(replay(second_step(shallow), expandable=expandable)), depths[0])
    more = _ends(_moments(replay(second_step(deep), expandable=expandable)), depths[1])
    steps = (layers - depths[0]) / (depths[1] - depths[0])
    moments = {
        name: {
            part: max(0, round(few[name].get(part, 0) + (size - few[name].get(part, 0)) * steps))
            for part, size in more[name].items()
        }
        for name in more
        if name in few
    }
    phases = _by_phase(moments)
    return TraceResult(
        phases=phases,
        allocated=max(sum(parts.values()) for parts in phases.values()),
        reserved=None,
        needed=None,
        layers=depths,
        basis="extrapolated",
    )


def second_step(timeline: Timeline) -> list[Event]:
    """All events, with the moments of the first step (when there are no states yet) left unnamed."""
    place = next(i for i, event in enumerate(timeline.events) if event == Event("m", 0, 0, "forward2"))
    return [event for i, event in enumerate(timeline.events) if event.kind != "m" or i >= place]


def _moments(found: Replay) -> dict[str, Parts]:
    return {name.removesuffix("2"): parts for name, parts in found.phase_parts.items()}


def _ends(moments: dict[str, Parts], depth: int) -> dict[str, Parts]:
    """Moments with layers named from the nearer end."""
    named: dict[str, Parts] = {}
    for name, parts in moments.items():
        if (layer := _LAYER.match(name)) is None:
            named[name] = parts
            continue
        number = int(layer[1])
        named[f"first{number}" if number < depth - number else f"last{depth - number}"] = parts
    return named


def _by_phase(moments: dict[str, Parts]) -> dict[str, Parts]:
    """The highest moment of each phase; every layer's backward pass is part of the backward phase."""
    found: dict[str, Parts] = {}
    for name, parts in moments.items():
        phase = name if name in PHASES else "backward"
        if phase not in found or sum(parts.values()) > sum(found[phase].values()):
            found[phase] = parts
    return found

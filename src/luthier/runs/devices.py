"""Which device serves a model: by name, or the one with most room."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from luthier.errors import DoesNotFit, UsageError, did_you_mean
from luthier.llamacpp.runtime import ServerSettings
from luthier.schema.deployment import ContextPlan
from luthier.schema.hardware import Hardware
from luthier.serving.context import plan_context
from luthier.sizing.serving import CacheType
from luthier.words import memory

AUTO = "auto"
CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Place:
    """A device that can hold a model."""

    name: str
    """``cpu``, ``gpu:0``..."""
    label: str
    free: int
    """Bytes that nobody holds."""
    total: int

    @property
    def index(self) -> int | None:
        """The GPU's number; None for the CPU."""
        return None if self.name == CPU else int(self.name.removeprefix("gpu:"))


def places(machine: Hardware) -> list[Place]:
    """Every device of a machine, GPUs first."""
    gpus = [
        Place(f"gpu:{one.index}", one.name, one.memory_free, one.memory_total) for one in machine.accelerators
    ]
    return [*gpus, Place(CPU, machine.processor.name, machine.memory_free, machine.memory_total)]


def listed(found: list[Place]) -> str:
    """Devices with their free memory, in a line."""
    return ", ".join(
        f"{one.name} ({one.label}, {memory(one.free)} of {memory(one.total)} free)" for one in found
    )


def pick(machine: Hardware, asked: str = AUTO) -> Place:
    """The device asked for: ``cpu``, ``gpu:1``, ``gpu`` (that with most room) or ``auto`` (or else the CPU).

    Errors: UsageError with the devices that there are.
    """
    found = places(machine)
    gpus = sorted((one for one in found if one.name != CPU), key=lambda one: -one.free)
    if asked == AUTO:
        return gpus[0] if gpus else found[-1]
    if asked == "gpu" and gpus:
        return gpus[0]
    for one in found:
        if one.name == asked:
            return one
    near = did_you_mean(asked, [AUTO, *(one.name for one in found)])
    raise UsageError(
        f"there is no device {asked!r}", hint=f"{near + ' ' if near else ''}there are: {listed(found)}"
    )


def plan_on(
    machine: Hardware,
    place: Place,
    gguf: Path,
    *,
    context: int | None,
    slots: int,
    cache_type: CacheType = "f16",
    trained: int | None,
) -> ContextPlan:
    """The context of a file on a device (`plan_context`).

    Errors: DoesNotFit, with the devices that have room.
    """
    asked = {"context": context, "slots": slots, "cache_type": cache_type, "trained": trained}
    try:
        return plan_context(gguf, free=place.free, where=place.label, **asked)  # type: ignore[arg-type]
    except DoesNotFit as error:
        fits = []
        for other in places(machine):
            if other.free <= place.free or other.name == place.name:
                continue
            try:
                plan_context(gguf, free=other.free, where=other.label, **asked)  # type: ignore[arg-type]
            except DoesNotFit:
                continue
            fits.append(other)
        hint = f"{error.hint}; or --device {fits[0].name}: {listed(fits)}" if fits else error.hint
        raise DoesNotFit(error.message, hint=hint) from None


def on_device(settings: ServerSettings, place: Place) -> ServerSettings:
    """Settings of a server that keeps to a device."""
    if place.index is None:
        return replace(settings, gpu_layers=0)
    return replace(settings, gpu=place.index)

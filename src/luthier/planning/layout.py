"""How several devices share a training: the whole model on each where that fits, else a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from luthier.errors import DoesNotFit
from luthier.planning.solver import GIB, HOST_SHARE, Question, does_not_fit, largest_step, step_speed
from luthier.schema.estimate import Estimate, TrainingShape
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture
from luthier.schema.recipe import Parallel, QLora, Reshard
from luthier.sizing.parameters import count_parameters
from luthier.sizing.resident import BYTES

LET_GO: dict[Reshard, str] = {
    "layer": "a layer's weights are gathered for each pass and let go after it",
    "backward": "a layer's weights stay gathered until its backward pass: one gather a micro-batch for two",
    "step": "weights stay gathered, and gradients are added up whole, until a step's last micro-batch",
}
"""What is done with weights that were gathered, by how long they are kept; slowest and leanest first."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What ``training.parallel`` says, the step that fits it, and why these sizes and this ``reshard``."""

    sizes: dict[str, Any]
    shape: TrainingShape
    why: str
    why_kept: str | None = None


def choose(
    question: Question,
    wanted: TrainingShape,
    *,
    devices: int,
    given: Parallel | None,
    dividable: bool,
    micro_fixed: bool = False,
    checkpointing_fixed: bool = False,
) -> Layout:
    """The fastest layout that fits. wanted: the step of one device, whatever the layout.

    Whole copies need nothing from each other but gradients and are the fastest; the fewer devices hold one
    model, the less is sent. Divided weights are kept gathered as long as there is room for them. Recomputing
    layers costs more than gathering weights, so that a divided model may be the faster one. What the recipe
    gives is kept. dividable: whether weights of this training can be divided at all. Errors: DoesNotFit with
    what would fit.
    """
    apart = given or Parallel()
    along = apart.tensor * apart.context * apart.pipeline * apart.expert
    shares, parts = devices // along, apart.tensor * apart.pipeline * apart.expert
    wanted, dividable = _run(wanted, apart.context), dividable and along == 1
    found: list[tuple[float, int, TrainingShape]] = []
    for shard, reshard in _levels(apart, shares, dividable):
        # Counted as if every weight were divided evenly, by whichever of them.
        divided = wanted.model_copy(update={"shard": shard * parts, "reshard": reshard})
        try:
            step = largest_step(
                question, divided, micro_fixed=micro_fixed, checkpointing_fixed=checkpointing_fixed
            )
        except DoesNotFit:
            continue
        found.append((step_speed(question, step), shard, step))
    if not found:
        most = max(_shards(apart, shares, dividable))
        leanest = {"shard": most * parts, "reshard": apart.reshard or "layer"}
        raise does_not_fit(question, wanted.model_copy(update=leanest))
    short = None
    if question.device == "cuda" and any(step.shard > 1 for _, _, step in found):
        short = host_short(question.arch, question.dtype, question.hardware, question.processes)
    if short is not None:
        found = [one for one in found if one[2].shard == 1]
        if not found:
            raise DoesNotFit(short, hint="fewer devices on this machine, or one with more memory")
    # The first of those that are as fast: of the fewest devices, and keeping weights the shortest.
    _, shard, step = max(found, key=lambda one: (one[0], -one[1]))
    sizes: dict[str, Any] = dict(
        apart.model_copy(update={"shard": shard, "replicate": shares // shard}).sizes(devices)
    )
    if parts > 1:
        return Layout(sizes, step, f"{parts} devices hold one model together, as the recipe says")
    why = _why(question, step, devices // shard, alone=1 in [one[1] for one in found])
    if shard == 1:
        return Layout(sizes, step, why)
    return Layout({**sizes, "reshard": step.reshard}, step, why, _why_kept(question, step))


def host_short(arch: Architecture, dtype: str, hardware: Hardware, processes: int) -> str | None:
    """Why the host cannot read weights that are divided over GPUs; None where it can.

    Each process reads all of them and then keeps a part.
    """
    whole = count_parameters(arch).total * BYTES[dtype]
    room = int(hardware.memory_free * HOST_SHARE)
    if (needed := whole * processes) <= room:
        return None
    return (
        f"{processes} processes that each read {whole / GIB:.1f} GiB of weights before they are "
        f"divided need {needed / GIB:.1f} GiB of the host's memory, and {room / GIB:.1f} GiB are free"
    )


def answers_do_not_fit(question: Question, estimate: Estimate) -> DoesNotFit:
    """The error for a model that several devices can train together and no one can hold to answer."""
    packed = "" if isinstance(question.method, QLora) else "method.name: qlora holds it in a quarter; "
    return DoesNotFit(
        f"several devices hold the model together while it is trained, but one alone answers the held-out "
        f"prompts: that needs {estimate.process.expected / GIB:.1f} GiB (up to "
        f"{estimate.process.high / GIB:.1f}) of {question.budget / GIB:.1f}",
        hint=f"{packed}data.test_share=0 without data.test answers nothing",
    )


def _run(shape: TrainingShape, context: int) -> TrainingShape:
    """The step of a device that has one of so many runs of every sequence's tokens."""
    if context == 1:
        return shape
    mean = shape.mean_length and shape.mean_length / context
    return shape.model_copy(
        update={"sequence_length": -(-shape.sequence_length // context), "mean_length": mean}
    )


def _shards(given: Parallel, shares: int, dividable: bool) -> list[int]:
    """How many devices may hold one model together, fewest first."""
    if given.shard is not None:
        return [given.shard]
    if given.replicate is not None:
        return [shares // given.replicate]
    least = 1 if given.reshard is None else min(2, shares)  # who says how long to keep them divides weights
    return [size for size in group_sizes(shares) if size >= least] if dividable else [1]


def group_sizes(devices: int) -> list[int]:
    """How many of so many devices may hold one model together, so that all take part, fewest first."""
    return [size for size in range(1, devices + 1) if devices % size == 0]


def _levels(given: Parallel, shares: int, dividable: bool) -> Iterator[tuple[int, Reshard]]:
    """How many devices may hold one model together, and how long they may keep it gathered, leanest first."""
    for shard in _shards(given, shares, dividable):
        if shard == 1:
            yield 1, "layer"
        elif given.reshard is not None:
            yield shard, given.reshard
        else:
            yield from ((shard, reshard) for reshard in LET_GO)


def _why_kept(question: Question, step: TrainingShape) -> str:
    """What a device holds more than by gathering each layer for each pass, and how much faster it is."""
    said = LET_GO[step.reshard]
    if step.reshard == "layer":
        return f"{said}: this step does not fit {question.budget / GIB:.1f} GiB with weights kept longer"
    lean = step.model_copy(update={"reshard": "layer"})
    more = question.estimate(step).process.expected - question.estimate(lean).process.expected
    faster = step_speed(question, step) / step_speed(question, lean) - 1
    return f"{said}; {more / GIB:.1f} GiB more than layer by layer, about {faster:.0%} faster"


def _why(question: Question, step: TrainingShape, copies: int, *, alone: bool) -> str:
    needed = question.estimate(step).process.expected
    fits = f"{needed / GIB:.1f} of {question.budget / GIB:.1f} GiB"
    if step.shard == 1:
        return f"each of {copies} devices holds the whole model: {fits}"
    whole = question.estimate(step.model_copy(update={"shard": 1})).process.expected
    over = f", {copies} such groups" if copies > 1 else ""
    slower = ", or recompute more of it" if alone else ""
    return (
        f"{step.shard} devices hold one model together{over}: {fits}; whole it would need "
        f"{whole / GIB:.1f} GiB{slower}"
    )

"""Time that several devices spend on what they send each other: weights that are gathered, gradients.

A step of several devices is one device's step over its share of the rows, longer by what is sent and not
hidden, and by waiting for the slowest. The constants are read off steps of two H200 beside one
(benchmarks/speed/results/h200_gathered.jsonl, h200_divided.jsonl); what is beyond those says so in its words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from luthier.schema.base import Range
from luthier.schema.estimate import Estimate, TrainingShape
from luthier.schema.hardware import Accelerator, Hardware
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Method, Recipe, without_masters
from luthier.sizing.offload import link_of
from luthier.sizing.parameters import count_parameters
from luthier.sizing.resident import BYTES
from luthier.sizing.states import trained_tensors
from luthier.sizing.step_time import step_time

NVLINK = {(7, 0): 100e9, (8, 0): 200e9, (9, 0): 300e9, (10, 0): 600e9}
"""Bytes/s that one GPU receives of the others' weights over NVLink, by compute capability. Two H200 gathered
the 16 GB of an 8B, half of them from the other, in 27 ms of which nothing was hidden: that is 9.0's. The
others as their links are faster or slower (prior)."""
NOT_LINKED = ("PCIe", "NVL", "A30")
"""Words in the names of cards of these generations that are plugged into a board."""
ON_BOARD = 0.5
"""Share of the host's link that cards without NVLink reach, since they exchange through the host (prior)."""
BETWEEN_NODES = 25e9
"""Bytes/s of each device between machines: one 400 Gbit/s adapter for two devices (prior)."""
BETWEEN_PROCESSES = 2e9
"""Bytes/s between processes of a CPU's machine (prior)."""
WAITING = 0.015
"""Share of a step by which two devices wait for each other: two whole copies took 1.2 to 1.7 % longer than
half of one device's rows, with hardly anything to send. So much for each doubling (prior beyond two)."""
IN_BACKWARD = 2 / 3
"""Share of a micro-batch's time that its backward pass takes, which hides sums of whole copies' gradients."""
ALONG = (1.0, 0.8, 0.5)
"""Share of perfect scaling where devices work on the same rows: most, expected, least (prior)."""


@dataclass(frozen=True, slots=True)
class Link:
    """How fast a device receives what the others hold, in bytes/s, and where that is from."""

    speed: float
    said: str
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that share a training."""

    devices: int
    nodes: int = 1
    along: bool = False
    """Whether some of them work on the same rows (tensor, context, pipeline, expert)."""

    @classmethod
    def of(cls, recipe: Recipe) -> Group:
        """Those that a recipe asks for."""
        given = recipe.training.parallel
        along = given is not None and max(given.tensor, given.context, given.pipeline, given.expert) > 1
        return cls(recipe.training.devices, recipe.training.nodes, along)

    @property
    def here(self) -> int:
        """Devices of one machine."""
        return max(1, self.devices // self.nodes)


def link_between(gpu: Accelerator | None, *, across: bool = False) -> Link:
    """The link between devices of a kind. gpu: None for processes on a CPU. across: of several machines."""
    if gpu is None:
        return Link(BETWEEN_PROCESSES, f"{BETWEEN_PROCESSES / 1e9:.0f} GB/s between processes: a prior")
    if across:
        return Link(BETWEEN_NODES, f"{BETWEEN_NODES / 1e9:.0f} GB/s a device between machines: a prior")
    capability = gpu.compute_capability or (0, 0)
    speed = NVLINK.get(capability)
    if speed is None or any(word in gpu.name for word in NOT_LINKED):
        speed = ON_BOARD * link_of(gpu)
        return Link(speed, f"{speed / 1e9:.0f} GB/s between GPUs without NVLink: a prior")
    if capability == (9, 0):
        return Link(speed, f"{speed / 1e9:.0f} GB/s between GPUs, as two H200 reached", measured=True)
    return Link(speed, f"{speed / 1e9:.0f} GB/s between GPUs over NVLink: a prior")


def divided_seconds(
    arch: Architecture, method: Method, shape: TrainingShape, link: Link, *, dtype: str
) -> float:
    """Time of a step in which what ``shape.shard`` devices hold together is sent.

    Gathered are the layers' weights and what is trained outside of them; gradients are added up and divided.
    Weights in four bits count as in 16: two H200 took 1,108 and 1,193 ms with one gather a micro-batch and
    1,086 with one a step, 4, 11 and 5 % more than is foretold (whole copies 1,071, 5 % more).
    """
    count, element = count_parameters(arch), BYTES[dtype]
    others = (shape.shard - 1) / shape.shard
    weights = count.total
    if not isinstance(method, Full):
        weights -= count.embedding + count.per_layer_embeddings + count.head
    gathers = {"layer": 2 * shape.accumulation, "backward": shape.accumulation, "step": 1}[shape.reshard]
    sums = 1 if shape.reshard == "step" else shape.accumulation
    summed = element if isinstance(method, Full) and without_masters(shape.optimizer) else 4
    sent = gathers * weights * element + sums * _trained(arch, method) * summed
    return others * sent / link.speed


def added_seconds(
    arch: Architecture, method: Method, shape: TrainingShape, link: Link, *, copies: int, step: float
) -> float:
    """Time of a step in which the gradients of so many copies are added up and nothing else is done.

    step: seconds of one device's step. What the last micro-batch's backward pass hides is left out.
    """
    if copies == 1:
        return 0.0
    sending = 2 * (copies - 1) / copies * 4 * _trained(arch, method) / shape.shard / link.speed
    alone = shape.shard > 1 or shape.recorded or shape.update_in_backward
    beside = alone or shape.offload_parameters or shape.activation_checkpointing == "offload"
    hidden = 0.0 if beside else IN_BACKWARD * step / shape.accumulation
    return max(0.0, sending - hidden)


def _trained(arch: Architecture, method: Method) -> int:
    return sum(times * size for times, size in trained_tensors(arch, method))


def shared(
    found: Estimate,
    group: Group,
    *,
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    hardware: Hardware,
    tokens: int,
    device: str,
    dtype: str,
) -> Estimate:
    """The estimate of all tokens on one device, with the time that the group takes for them.

    shape: one device's share of a step. Processes on a CPU share the cores of their machine, so that only
    further machines make a training faster there.
    """
    if group.devices == 1 or found.seconds is None:
        return found
    band = found.seconds
    parts = group.devices if device == "cuda" else group.nodes
    if group.along:
        most, expected, least = (1 / (parts * share) for share in ALONG)
        seconds = Range(low=band.low * most, expected=band.expected * expected, high=band.high * least)
        said = f"50 to 100 % of {parts} times one device's speed: a prior, not measured"
        return _with(found, seconds, tokens, f"{group.devices} devices reach {said}")
    gpu = hardware.accelerators[0] if device == "cuda" and hardware.accelerators else None
    links = [link_between(gpu, across=group.nodes > 1)]
    each = (shape.batch_size or shape.micro_batch_size) * (shape.mean_length or shape.sequence_length)
    steps = max(1.0, tokens / each / group.devices)
    step, copies = band.expected / parts / steps, group.devices // shape.shard
    sent = added_seconds(arch, method, shape, links[0], copies=copies, step=step)
    if shape.shard > 1:
        inner = link_between(gpu, across=shape.shard > group.here)
        links = [inner, *links] if copies > 1 and links[0] != inner else [inner]
        alone = step_time(arch, method, shape, gpu) if gpu is not None and dtype == "bfloat16" else None
        # It takes the card's time, some of which is free while that waits for its host.
        idle = 0.0 if alone is None else alone.idle
        sent += max(0.0, divided_seconds(arch, method, shape, inner, dtype=dtype) - idle)
    waiting = WAITING * math.log2(group.devices)
    known = links[0].measured and group.devices == 2
    seconds = Range(
        low=band.low / parts + steps * sent / 2,
        expected=band.expected / parts * (1 + waiting) + steps * sent,
        high=band.high / parts * (1 + 2 * waiting) + steps * sent * (2 if known else 4),
    )
    words = [link.said + f", a prior for {group.devices}" * (link.measured and not known) for link in links]
    if device != "cuda":
        words.append("processes of one machine share its cores")
    reached = f"{group.devices} devices reach {band.expected / seconds.expected:.2f} times one's speed"
    return _with(found, seconds, tokens, "; ".join([reached, *words]))


def _with(found: Estimate, seconds: Range, tokens: int, words: str) -> Estimate:
    """The estimate with that time and the words for it."""
    rate = Range(low=tokens / seconds.high, expected=tokens / seconds.expected, high=tokens / seconds.low)
    return found.model_copy(
        update={"seconds": seconds, "tokens_per_second": rate, "assumptions": (*found.assumptions, words)}
    )

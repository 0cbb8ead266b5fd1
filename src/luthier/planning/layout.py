"""How several devices share a training: the whole model on each where that fits, else a part of it."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.errors import DoesNotFit
from luthier.planning.solver import GIB, HOST_SHARE, Question, does_not_fit, largest_step, step_speed
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate, TrainingShape
from luthier.schema.recipe import Parallel
from luthier.sizing.parameters import count_parameters
from luthier.sizing.training import BYTES

SCALING = (1.0, 0.8, 0.5)
"""Share of perfect scaling over several devices: most, expected, least (prior, not measured)."""
DIVIDED_SPEED = 0.9
"""Speed where weights are gathered for every layer over speed with whole copies: 28,062 against 31,267
tokens/s for LoRA of an 8B on two H200 (benchmarks/speed/results); elsewhere a prior."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of ``training.parallel`` by name, the step that fits them, and why these."""

    sizes: dict[str, int]
    shape: TrainingShape
    why: str


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
    model, the less is sent. Recomputing layers costs more than gathering weights, so that a divided model
    may be the faster one. What the recipe gives of the sizes is kept. dividable: whether weights of this
    training can be divided at all. Errors: DoesNotFit with what would fit.
    """
    apart = given or Parallel()
    along = apart.tensor * apart.context * apart.pipeline * apart.expert
    shares, parts = devices // along, apart.tensor * apart.pipeline * apart.expert
    wanted, dividable = _run(wanted, apart.context), dividable and along == 1
    found: list[tuple[float, int, TrainingShape]] = []
    for shard in _shards(apart, shares, dividable):
        # Counted as if every weight were divided evenly, by whichever of them.
        divided = wanted.model_copy(update={"shard": shard * parts})
        try:
            step = largest_step(
                question, divided, micro_fixed=micro_fixed, checkpointing_fixed=checkpointing_fixed
            )
        except DoesNotFit:
            continue
        found.append((step_speed(question, step) * (DIVIDED_SPEED if shard > 1 else 1.0), shard, step))
    if not found:
        most = max(_shards(apart, shares, dividable))
        raise does_not_fit(question, wanted.model_copy(update={"shard": most * parts}))
    _, shard, step = max(found, key=lambda one: (one[0], -one[1]))
    if step.shard > 1:
        _check_host(question)
    sizes = apart.model_copy(update={"shard": shard, "replicate": shares // shard}).sizes(devices)
    if parts > 1:
        return Layout(sizes, step, f"{parts} devices hold one model together, as the recipe says")
    why = _why(question, step, devices // shard, alone=1 in [one[1] for one in found])
    return Layout(sizes, step, why)


def _check_host(question: Question) -> None:
    """Refuse weights that the host cannot read: each process reads all of them and then keeps a part."""
    if question.device != "cuda":
        return
    whole = count_parameters(question.arch).total * BYTES[question.dtype]
    room = int(question.hardware.memory_free * HOST_SHARE)
    if (needed := whole * question.processes) > room:
        raise DoesNotFit(
            f"{question.processes} processes that each read {whole / GIB:.1f} GiB of weights before they are "
            f"divided need {needed / GIB:.1f} GiB of the host's memory, and {room / GIB:.1f} GiB are free",
            hint="fewer devices on this machine, or one with more memory",
        )


def answers_do_not_fit(question: Question, estimate: Estimate) -> DoesNotFit:
    """The error for a model that several devices can train together and no one can hold to answer."""
    return DoesNotFit(
        f"several devices hold the model together while it is trained, but one alone answers the held-out "
        f"prompts: that needs {estimate.process.expected / GIB:.1f} GiB (up to "
        f"{estimate.process.high / GIB:.1f}) of {question.budget / GIB:.1f}",
        hint="method.name: qlora holds it in a quarter; data.test_share=0 without data.test answers nothing",
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
    return [size for size in range(1, shares + 1) if shares % size == 0] if dividable else [1]


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


def over_devices(found: Estimate, devices: int, *, shared: bool = False) -> Estimate:
    """An estimate with the time of several devices: they wait for each other, which one does not know.

    shared: the estimate is of all tokens on one device; else of one device's tokens.
    """
    share = 1 / devices if shared else 1.0
    most, expected, least = (share / one for one in SCALING)
    band, rate = found.seconds, found.tokens_per_second
    slower = band and Range(low=band.low * most, expected=band.expected * expected, high=band.high * least)
    fewer = rate and Range(low=rate.low / least, expected=rate.expected / expected, high=rate.high / most)
    said = f"{devices} devices reach 50 to 100 % of {devices} times one device's speed: a prior, not measured"
    return found.model_copy(
        update={"seconds": slower, "tokens_per_second": fewer, "assumptions": (*found.assumptions, said)}
    )

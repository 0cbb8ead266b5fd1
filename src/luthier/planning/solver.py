"""The largest step that fits, and what each change would save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from luthier.errors import DoesNotFit
from luthier.planning.correction import Corrections
from luthier.planning.estimate import Device, estimate_training
from luthier.planning.exchange import divided_seconds, link_between
from luthier.schema.estimate import Estimate, TrainingShape
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.sizing.activations import OURS
from luthier.sizing.flops import training_flops
from luthier.sizing.offload import bringing_seconds, host_bytes
from luthier.sizing.parameters import count_parameters
from luthier.sizing.resident import BYTES, resident
from luthier.sizing.speed import rate_of

GPU_SHARE = 0.97
"""Share of a GPU's free memory that a run may take."""
HOST_SHARE = 0.90
"""Share of free memory that a run may take, so that the system does not swap."""
GIB = 1 << 30
SLOWER_WITH_CHECKPOINTING = 0.74
"""Speed with full checkpointing over speed without: 4 against 6 operations a frozen weight, and what our
H100 rows show (36 to 39 % gained by leaving it off)."""
HALF_SPEED_TOKENS = {"cuda": 1500, "cpu": 64}
"""Tokens of a micro-batch at which a device reaches half of its speed: of GPUs an H100."""
HALF_SPEED_FLOPS = 989e12
"""The H100's rate. A slower card gets through fewer tokens while the host launches as many kernels."""
LEAST_HALF_SPEED = 128
"""Fewer tokens than these leave matrix units idle on any card: weights are read for them all the same."""
WORTH_SAYING = 0.01
"""Share of the peak under which a saving is not worth a line."""
UNKNOWN_GATHER = 0.05
"""Time in which divided weights are sent once, over a micro-batch's, where no speed is known (prior)."""
ENOUGH_TOKENS = {"cuda": 16_384, "cpu": 1_024}
"""Beyond this many tokens a micro-batch gains nothing and only takes memory."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be trained where. Sizes in bytes."""

    arch: Architecture
    method: Method
    hardware: Hardware
    device: Device
    dtype: str
    tokens: int = 1
    matrix_rate: float | None = None
    corrections: Corrections | None = None
    """What earlier runs on this machine came to."""
    processes: int = 1
    """Processes of this machine that train together; on a CPU they share its memory."""

    @property
    def budget(self) -> int:
        """Bytes that the process may take."""
        whole = memory_budget(self.hardware, self.device)
        return whole if self.device == "cuda" else whole // self.processes

    def estimate(self, shape: TrainingShape) -> Estimate:
        return estimate_training(
            self.arch,
            self.method,
            shape,
            self.hardware,
            tokens=self.tokens,
            device=self.device,
            dtype=self.dtype,
            matrix_rate=self.matrix_rate,
            corrections=self.corrections,
        )

    def fits(self, shape: TrainingShape) -> bool:
        """Whether even the high end of the band stays within the budget."""
        return self.estimate(shape).process.high <= self.budget


@dataclass(frozen=True, slots=True)
class Change:
    """One way to need less. gives_up: 0 nothing but time, 1 a little, 2 and more what people notice."""

    what: str
    setting: str
    """As a ``key=value`` override."""
    saves: int
    """Bytes off the expected peak of the process."""
    fits: bool
    """Whether the step fits then."""
    gives_up: int
    helps: bool = False
    """Whether it fits then and does not now."""
    slower: float = 0.0
    """Share of a step's time that it takes more, as far as that is known; the step's work is the same."""

    @property
    def told(self) -> str:
        """The change and what it saves."""
        said = f"{self.what} ({self.setting}) saves {self.saves / GIB:.1f} GiB"
        return said + (f" and takes about {self.slower:.0%} longer" if self.slower > WORTH_SAYING else "")

    @property
    def sentence(self) -> str:
        """The same, and whether it is enough."""
        return self.told + (", and then it fits" if self.helps else "")


def memory_budget(hardware: Hardware, device: Device) -> int:
    """Bytes that one process may take on that device, with the reserve taken off."""
    if device == "cuda":
        return int(hardware.accelerators[0].memory_free * GPU_SHARE)
    return int(hardware.memory_free * HOST_SHARE)


def demand_host(question: Question) -> None:
    """Refuse frozen weights that the host's memory has no room for. Errors: DoesNotFit."""
    needed, room = _on_host(question)
    if needed > room:
        raise DoesNotFit(
            f"frozen weights that wait in the host's memory (training.offload_parameters) need "
            f"{needed / GIB:.1f} GiB there, and {room / GIB:.1f} GiB are free",
            hint="method.name: qlora holds them in a quarter; or a machine with more memory",
        )


def _on_host(question: Question) -> tuple[int, int]:
    """Bytes of the host's memory that frozen weights want while they wait there, and that it has for them."""
    count, element = count_parameters(question.arch), BYTES[question.dtype]
    held = resident(question.arch, count, question.method, question.dtype, OURS)
    needed = host_bytes(question.arch, question.method, element, resident=held.weights)
    return needed, int(question.hardware.memory_free * HOST_SHARE)


def _host_holds(question: Question) -> bool:
    needed, room = _on_host(question)
    return needed <= room


def largest_step(question: Question, shape: TrainingShape, *, micro_fixed: bool = False,
                 checkpointing_fixed: bool = False) -> TrainingShape:  # fmt: skip
    """The fastest cut of a step that fits: micro-batch and checkpointing are chosen, the rest is kept.

    A larger micro-batch keeps the device busier, checkpointing makes room at the price of a second
    forward pass. What is fixed is kept as given. Errors: DoesNotFit with what would fit.
    """
    best: tuple[float, TrainingShape] | None = None
    for candidate in _cuts(shape, micro_fixed, checkpointing_fixed):
        speed = step_speed(question, candidate)
        if (best is None or speed > best[0]) and question.fits(candidate):
            best = speed, candidate
    if best is None:
        raise does_not_fit(question, shape)
    return best[1]


def _cuts(shape: TrainingShape, micro_fixed: bool, checkpointing_fixed: bool) -> Iterator[TrainingShape]:
    batch = shape.batch_size or shape.micro_batch_size
    micros = [shape.micro_batch_size] if micro_fixed else [m for m in range(batch, 0, -1) if batch % m == 0]
    derived = ["full", "offload"] if shape.offload_parameters else ["none", "full"]
    modes = [shape.activation_checkpointing] if checkpointing_fixed else derived
    for mode in modes:
        for micro in micros:
            yield shape.model_copy(update={"micro_batch_size": micro, "activation_checkpointing": mode})


def step_speed(question: Question, shape: TrainingShape) -> float:
    """Relative speed of a cut. Beyond enough tokens less memory is preferred to a larger micro-batch."""
    tokens = shape.micro_batch_size * (shape.mean_length or shape.sequence_length)
    half, enough = _half_speed(question), ENOUGH_TOKENS[question.device]
    busy = min(tokens, enough) / (min(tokens, enough) + half) - max(0.0, tokens - enough) * 1e-6 / enough
    recomputes = shape.activation_checkpointing in ("full", "offload")
    share = SLOWER_WITH_CHECKPOINTING if recomputes else 1.0
    if shape.recomputed_layers is not None and recomputes:
        again = min(1.0, shape.recomputed_layers / question.arch.layers)
        share = 1 / (1 + again * (1 / SLOWER_WITH_CHECKPOINTING - 1))
    if shape.offload_parameters:
        share /= max(1.0, copies_to_products(question, shape))
    if shape.shard == 1:
        return busy * share
    return 1 / (1 / (busy * share) + _sent_to_products(question, shape))


def _half_speed(question: Question) -> float:
    """Tokens of a micro-batch at which the device reaches half of its speed."""
    tokens = HALF_SPEED_TOKENS[question.device]
    gpu = question.hardware.accelerators[0] if question.device == "cuda" else None
    if gpu is None or gpu.bf16_flops is None:
        return tokens
    share = gpu.bf16_flops / HALF_SPEED_FLOPS / (8 if question.dtype == "float32" else 1)
    return max(LEAST_HALF_SPEED, tokens * min(1.0, share))


def _sent_to_products(question: Question, shape: TrainingShape) -> float:
    """Time in which divided weights are sent for a step, over that of its products at full speed."""
    batch = shape.micro_batch_size * shape.accumulation
    length = shape.mean_length or shape.sequence_length
    large = shape.model_copy(
        update={
            "shard": 1, "activation_checkpointing": "none", "offload_parameters": False, "batch_size": None,
            "micro_batch_size": -(-ENOUGH_TOKENS[question.device] // int(length)),
        }
    )  # fmt: skip
    rate = question.estimate(large).tokens_per_second
    if rate is None:
        return UNKNOWN_GATHER * {"layer": 2, "backward": 1, "step": 1 / shape.accumulation}[shape.reshard]
    gpu = question.hardware.accelerators[0] if question.device == "cuda" else None
    link = link_between(gpu, across=shape.shard > question.processes)
    sending = divided_seconds(question.arch, question.method, shape, link, dtype=question.dtype)
    return sending * rate.expected / (batch * length)


def copies_to_products(question: Question, shape: TrainingShape) -> float:
    """Time in which a micro-batch's frozen weights are brought from the host, over that of its products."""
    gpu = question.hardware.accelerators[0] if question.hardware.accelerators else None
    rate = rate_of(question.hardware, question.device, measured=question.matrix_rate, dtype=question.dtype)
    if rate is None:
        return 1.0
    length = shape.mean_length or shape.sequence_length
    tokens = round(shape.micro_batch_size * length)
    element = BYTES[question.dtype]
    copying = bringing_seconds(question.arch, question.method, shape, gpu, element=element, tokens=tokens)
    each = training_flops(
        question.arch, question.method, length=length / shape.documents, trained_share=shape.trained_share,
        checkpointing=True,
    )  # fmt: skip
    return copying / rate.seconds(each.total * tokens).expected


def longest_sequence(question: Question, shape: TrainingShape, *, most: int) -> int | None:
    """The longest sequence up to ``most``, in steps of 64 tokens, that fits this cut; None when none does."""
    low, high = 0, most // 64
    while low < high:
        middle = (low + high + 1) // 2
        if question.fits(shape.model_copy(update={"sequence_length": middle * 64})):
            low = middle
        else:
            high = middle - 1
    return low * 64 or None


def changes(question: Question, shape: TrainingShape) -> tuple[Change, ...]:
    """What would need less, ranked by how little it gives up, then by how much it saves."""
    here = question.estimate(shape)
    now, fits_now = here.process.expected, here.process.high <= question.budget
    found: list[Change] = []

    def consider(what: str, setting: str, other: Question, changed: TrainingShape, gives_up: int) -> None:
        estimate = other.estimate(changed)
        saves = round(now - estimate.process.expected)
        fits = estimate.process.high <= other.budget
        # What is told as nothing is told only where it is enough.
        if saves > (WORTH_SAYING * now if fits and not fits_now else max(WORTH_SAYING * now, 0.05 * GIB)):
            slower = 0.0
            if changed.sequence_length == shape.sequence_length:
                slower = step_speed(question, shape) / step_speed(other, changed) - 1
            helps = fits and not fits_now
            found.append(Change(what, setting, saves, fits, gives_up, helps=helps, slower=slower))

    if shape.micro_batch_size > 1:
        smallest = shape.model_copy(update={"micro_batch_size": 1})
        consider("one row at a time", "training.micro_batch_size=1", question, smallest, 0)
    if shape.activation_checkpointing in ("none", "selective") or shape.recomputed_layers is not None:
        again = shape.model_copy(update={"activation_checkpointing": "full", "recomputed_layers": None})
        consider("recomputing activations", "training.activation_checkpointing=full", question, again, 0)
    tight = smallest_step(shape)
    # Where the step fits as it is, each change is told alone; where it does not, on top of the smallest cut.
    base = shape if fits_now else tight
    if question.device == "cuda" and shape.activation_checkpointing == "full":
        away = shape.model_copy(update={"activation_checkpointing": "offload"})
        what = "layers' inputs in the host's memory"
        consider(what, "training.activation_checkpointing=offload", question, away, 0)
    alone = question.device == "cuda" and shape.shard == 1 and question.processes == 1
    others = shape.offload_parameters or shape.padded or shape.log_probs or shape.patches
    if alone and not others and not isinstance(question.method, Full) and _host_holds(question):
        waits = base.model_copy(
            update={"offload_parameters": True, "activation_checkpointing": "full", "recomputed_layers": None}
        )
        what = "frozen weights in the host's memory, two layers on the GPU at a time"
        noticed = 2 if copies_to_products(question, waits) > 1 else 0
        consider(what, "training.offload_parameters=true", question, waits, noticed)
    if shape.optimizer == "adamw" and question.device == "cuda" and shape.shard == 1:
        eight = shape.model_copy(update={"optimizer": "adamw-8bit"})
        consider("moments in eight bits", "training.optimizer=adamw-8bit", question, eight, 1)
    if shape.optimizer != "adamw-bf16" and isinstance(question.method, Full) and question.dtype == "bfloat16":
        narrow = shape.model_copy(update={"optimizer": "adamw-bf16"})
        consider("no fp32 masters or moments", "training.optimizer=adamw-bf16", question, narrow, 1)
    if isinstance(question.method, Full) and shape.accumulation == 1 and not shape.update_in_backward:
        at_once = shape.model_copy(update={"update_in_backward": True})
        what = "gradients dropped as soon as they are used, without clipping"
        setting = "training.update_in_backward=true training.max_grad_norm=0"
        consider(what, setting, question, at_once, 1)
    if isinstance(question.method, Full):
        lora = replace(question, method=Lora())
        consider("adapters instead of all weights", "method.name=lora", lora, base, 1)
    else:
        if question.method.name == "lora" and question.method.base is None and question.device == "cuda":
            kept = question.method.model_dump(exclude={"name", "base"})
            four_bit = replace(question, method=QLora(**kept))
            consider("a base in four bits", "method.name=qlora", four_bit, shape, 1)
        if question.method.rank > 8:
            lower = question.method.model_copy(update={"rank": 8})
            consider("smaller adapters", "method.rank=8", replace(question, method=lower), shape, 1)
    if shape.shard > 1 and shape.reshard != "layer":
        layer = shape.model_copy(update={"reshard": "layer"})
        what = "divided weights let go after each pass of their layer"
        consider(what, "training.parallel.reshard=layer", question, layer, 0)
    if shape.shard > 1 and question.device == "cuda":
        more = shape.model_copy(update={"shard": 2 * shape.shard})
        what, setting = "twice as many devices for one model", f"training.parallel.shard={more.shard}"
        if more.shard > question.processes:
            setting = f"training.devices={more.shard} {setting}"
        consider(what, setting, question, more, 0)
    longest = longest_sequence(question, tight, most=shape.sequence_length)
    shorter = longest if longest and longest < shape.sequence_length else shape.sequence_length // 2
    if shorter >= 64:
        cut = base.model_copy(update={"sequence_length": shorter})
        consider(f"sequences of {shorter:,} tokens", f"training.sequence_length={shorter}", question, cut, 2)
    return tuple(sorted(found, key=lambda change: (change.gives_up, -change.saves)))


def smallest_step(shape: TrainingShape) -> TrainingShape:
    """The cut that needs least: one row at a time, the activations of every layer recomputed."""
    mode = "offload" if shape.activation_checkpointing == "offload" else "full"
    return shape.model_copy(
        update={"micro_batch_size": 1, "activation_checkpointing": mode, "recomputed_layers": None}
    )


def does_not_fit(question: Question, shape: TrainingShape) -> DoesNotFit:
    """The error that says what is needed, what is there and what would fit."""
    smallest = smallest_step(shape)
    estimate = question.estimate(smallest)
    weights = estimate.phases[0].parts.get("weights", 0)
    where = _where(question)
    message = (
        f"{question.method.name} training with sequences of {shape.sequence_length:,} tokens needs "
        f"{estimate.process.expected / GIB:.1f} GiB (up to {estimate.process.high / GIB:.1f}) even one row "
        f"at a time with activation checkpointing, and {where} leaves {question.budget / GIB:.1f} GiB"
    )
    return DoesNotFit(message, hint=ways_out(question, smallest, weights=weights))


def ways_out(question: Question, shape: TrainingShape, *, weights: int) -> str:
    """What would fit, ranked by how little it gives up; where no one change does, what comes nearest."""
    found = changes(question, shape)
    if helping := [change.sentence for change in found if change.helps]:
        return "; ".join(helping)
    smaller = "a smaller model: `luthier recommend` lists those that fit"
    if weights > question.budget:
        return f"the weights alone are {weights / GIB:.1f} GiB: {smaller}"
    if not found:
        return smaller
    most = max(found, key=lambda change: change.saves)
    return f"{most.sentence}, which is not enough; {smaller}"


def _where(question: Question) -> str:
    if question.device == "cuda":
        gpu = question.hardware.accelerators[0]
        free, total = gpu.memory_free, gpu.memory_total
        return f"{gpu.name} ({free / GIB:.1f} of {total / GIB:.1f} GiB free, 3 % kept back)"
    free, total = question.hardware.memory_free, question.hardware.memory_total
    return f"this machine ({free / GIB:.1f} of {total / GIB:.1f} GiB free, 10 % kept back)"

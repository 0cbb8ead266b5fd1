"""What a training will need: memory by part and phase, time and cost, each with a band."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from luthier.errors import Unsupported
from luthier.planning.correction import Corrections
from luthier.planning.exchange import Group, shared
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate, EvaluationShape, Part, Phase, TrainingShape
from luthier.schema.hardware import Accelerator, Hardware
from luthier.schema.model import Architecture, ModelCard
from luthier.schema.plan import BatchShape
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.sizing.activations import OURS, OURS_ONE_BY_ONE, PADDED, PADDED_ON_HOST, Kernels
from luthier.sizing.calibration import CONTEXT_HOPPER, RESERVED
from luthier.sizing.flops import generation_flops, training_flops
from luthier.sizing.host import on_host
from luthier.sizing.offload import bringing_seconds, link_of, on_device, waiting
from luthier.sizing.parameters import count_parameters, packed_matrices
from luthier.sizing.resident import BYTES, resident
from luthier.sizing.speed import rate_of
from luthier.sizing.states import paged_bytes, update_flops
from luthier.sizing.step_time import STEP_SOURCE, WIDENING, step_time
from luthier.sizing.training import MIB, TrainingMemory, evaluation_phase, training_memory
from luthier.sizing.vision import tower_flops

Device = Literal["cpu", "cuda"]

CONTEXT = {(7, 5): 141 * MIB, (9, 0): CONTEXT_HOPPER}
"""Bytes outside torch's allocator by compute capability where they were measured (T4: 79 published runs, all
alike; H100: our own)."""
CONTEXT_ELSEWHERE = 500 * MIB
COMMUNICATION = 840 * MIB
"""Bytes that NCCL takes beside torch where devices exchange weights: what two H200 held beyond the context of
one (benchmarks/memory/grid.jsonl: 838 to 842 MiB more than an H100's context, whole weights or divided)."""
FORMULA_BAND = 0.05
"""Half-width of the formula's band on a GPU, as a share."""
HOST_BAND = 0.10
FASTER, SLOWER = 0.8, 1.3
"""Band of a time that is counted part by part: hosts that launch kernels differ by as much."""
STEPS_TO_COMPILE = 50
"""Fewer optimiser steps than these do not win back the time that compiling takes."""


def device_of(hardware: Hardware) -> Device:
    """Where a run would train: the first CUDA (or ROCm) GPU, else the CPU."""
    return "cuda" if any(gpu.kind in ("cuda", "rocm") for gpu in hardware.accelerators) else "cpu"


def compiles(device: Device, dtype: str, steps: int) -> bool:
    """Whether layers are compiled where nobody says: worth half a minute, once, on a GPU with bf16."""
    return device == "cuda" and dtype == "bfloat16" and steps >= STEPS_TO_COMPILE


def kernels_for(device: Device, dtype: str, *, compiled: bool = False, padded: bool = False) -> Kernels:
    """The kernels that the trainer uses there. compiled: whether its layers are; padded: whether rows are."""
    if padded:
        found = PADDED if device == "cuda" else PADDED_ON_HOST
    else:
        found = OURS if device == "cuda" and dtype != "float32" else OURS_ONE_BY_ONE
    return replace(found, layers="compiled", runs_again_in_graph=True) if compiled else found


def estimate_training(
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    hardware: Hardware,
    *,
    tokens: int,
    device: Device,
    dtype: str,
    matrix_rate: float | None = None,
    evaluation: EvaluationShape | None = None,
    kernels: Kernels | None = None,
    dollars_per_hour: float | None = None,
    corrections: Corrections | None = None,
) -> Estimate:
    """Predict one training in closed form, in well under a millisecond.

    tokens: all that go through the model, every epoch counted. matrix_rate: measured FLOP/s of the
    device in that dtype. kernels: what to take instead of the trainer's own. corrections: what earlier
    runs on this machine came to. Errors: UsageError for a shape that cannot be, Unsupported for vision
    towers.
    """
    if not arch.causal and not shape.padded:
        shape = shape.model_copy(update={"padded": True})
    used = kernels or kernels_for(device, dtype, compiled=shape.compiled, padded=shape.padded)
    gpu = hardware.accelerators[0] if device == "cuda" and hardware.accelerators else None
    memory, phases, tensors, process = _memory(
        arch, method, shape, gpu, used, tokens=tokens, device=device, dtype=dtype, evaluation=evaluation
    )
    time = _time(
        arch,
        method,
        shape,
        hardware,
        used,
        tokens=tokens,
        device=device,
        dtype=dtype,
        matrix_rate=matrix_rate,
    )
    found = Estimate(
        phases=phases,
        tensors=tensors,
        process=process,
        seconds=time.seconds,
        tokens_per_second=_inverse(time.seconds, tokens),
        cost=_cost(time.seconds, dollars_per_hour),
        trainable_parameters=memory.trainable,
        total_parameters=memory.total,
        flops=time.work,
        basis="formula",
        assumptions=(
            *_frozen_towers(arch, method),
            *_assumptions(shape, device, gpu, dtype),
            *_kept_wide(arch, method, dtype),
            *_paged(arch, method, shape),
            *_waiting(arch, method, shape, dtype),
            *((time.source,) if time.source else ()),
        ),
    )
    if corrections is None or shape.shard > 1:  # measured were models that one device holds
        return found
    return corrections.correct(found, arch, method, shape, dtype)


def _memory(
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    gpu: Accelerator | None,
    kernels: Kernels,
    *,
    tokens: int,
    device: Device,
    dtype: str,
    evaluation: EvaluationShape | None,
) -> tuple[TrainingMemory, tuple[Phase, ...], Range, Range]:
    """What is counted, and from it the phases, the tensors and the process on that device."""
    cuda = device == "cuda"
    hopper = gpu is not None and (gpu.compute_capability or (0, 0)) >= (9, 0)
    memory = training_memory(arch, method, shape, dtype=dtype, kernels=kernels, hopper=hopper, cuda=cuda)
    if evaluation is not None:
        held = resident(arch, count_parameters(arch), method, dtype, kernels, shape.optimizer)
        if shape.offload_parameters:
            held = on_device(held, arch, method, BYTES[dtype])
        judged = evaluation_phase(arch, evaluation, held, dtype=dtype, cuda=cuda)
        memory = TrainingMemory((*memory.phases, judged), memory.trainable, memory.total)
    if cuda:
        return memory, *_gpu_memory(memory, gpu, shape)
    micro_batches = _micro_batches(shape, tokens)
    phases = on_host(memory, arch, method, shape, element=BYTES[dtype], micro_batches=micro_batches)
    return memory, *_host_memory(memory, phases)


@dataclass(frozen=True, slots=True)
class _Time:
    """Operations of a training, how long they take where that is known, and where that is from."""

    work: float
    seconds: Range | None
    source: str | None


def _time(
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    hardware: Hardware,
    kernels: Kernels,
    *,
    tokens: int,
    device: Device,
    dtype: str,
    matrix_rate: float | None,
) -> _Time:
    """The time of so many tokens: step by step where the card is known part by part, else by operations."""
    gpu = hardware.accelerators[0] if device == "cuda" and hardware.accelerators else None
    length = (shape.mean_length or shape.sequence_length) / shape.documents
    flops = training_flops(
        arch,
        method,
        length=length * shape.padding,
        trained_share=shape.trained_share,
        checkpointing=shape.activation_checkpointing in ("full", "offload"),
        head_everywhere=kernels.loss == "logits",
        extra_forwards=shape.extra_forwards + _passes_in_chunks(shape),
        log_probs=shape.log_probs,
    )
    steps = tokens / max(1.0, (shape.batch_size or shape.micro_batch_size) * length * shape.documents)
    each = flops.total + tower_flops(arch, shape)
    work = each * tokens * shape.padding + update_flops(arch, shape.optimizer) * steps
    rate = rate_of(hardware, device, measured=matrix_rate, dtype=dtype, experts=arch.experts is not None)
    seconds = rate.seconds(work) if rate is not None else None
    source = rate.source if rate is not None else None
    if gpu is not None and dtype == "bfloat16":
        step = step_time(arch, method, shape, gpu, measured=matrix_rate)
        if step is not None:
            middle = step.total * steps
            seconds, source = Range(low=middle * FASTER, expected=middle, high=middle * SLOWER), STEP_SOURCE
            if isinstance(method, Full) and method.products is not None:
                source += "; products in eight bits as with a frozen base"
    if seconds is not None and shape.offload_parameters:
        seconds = _beside_copies(
            seconds, bringing_seconds(arch, method, shape, gpu, element=BYTES[dtype], tokens=tokens)
        )
    return _Time(work, seconds, source)


def evaluation_seconds(
    arch: Architecture,
    method: Method,
    shape: EvaluationShape,
    hardware: Hardware,
    *,
    device: Device,
    dtype: str,
    matrix_rate: float | None = None,
    away: int = 0,
) -> Range | None:
    """Time to answer all prompts once: the operations, and reading the weights for each token.

    away: bytes of weights that wait in the host's memory and are brought for each token.
    """
    rate = rate_of(hardware, device, measured=matrix_rate, dtype=dtype)
    if rate is None:
        return None
    work = rate.seconds(
        generation_flops(arch, prompt_tokens=shape.prompt_tokens, new_tokens=shape.new_tokens) * shape.rows
    )
    if rate.bandwidth is None:
        return work
    steps = -(-shape.rows // shape.batch_size) * shape.new_tokens
    reading = _read_for_a_token(arch, method, BYTES[dtype]) * steps / rate.bandwidth
    if away:
        reading = max(reading, away * steps / link_of(hardware.accelerators[0]))
    return Range(
        low=work.low + 0.5 * reading, expected=work.expected + reading, high=work.high + 1.6 * reading
    )


def _read_for_a_token(arch: Architecture, method: Method, element: int) -> float:
    """Bytes that go through the device's memory for each token that is answered alone.

    Weights in four bits are widened for every product: read, written wide and read again.
    """
    active = count_parameters(arch).active
    each: float = element
    if isinstance(method, QLora):
        each = WIDENING * element / 2
    elif isinstance(method, Lora) and method.base == "float8":
        each = 1
    packed = sum(times * matrix.weights for times, matrix in packed_matrices(arch)) if each != element else 0
    return (active - packed) * element + packed * each


def estimate_candidate(card: ModelCard, method: Method, shape: BatchShape, hardware: Hardware) -> Estimate:
    """Estimate for the recommender. Errors: Unsupported where the model's shape is not verified."""
    if card.architecture is None:
        raise Unsupported(f"{card.id}: its shape is not verified, so its memory cannot be predicted")
    tokens = round(shape.rows * shape.epochs * shape.tokens_per_row * shape.texts)
    device = device_of(hardware)
    training = TrainingShape(
        micro_batch_size=shape.micro_batch_size * shape.texts,
        sequence_length=shape.sequence_length,
        batch_size=max(1, shape.batch_size // shape.devices) * shape.texts,
        mean_length=shape.tokens_per_row,
        shard=shape.shard,
        compared=shape.batch_size**2 if shape.texts > 1 else 0,
        added_up=shape.devices > 1,
        activation_checkpointing="full" if shape.checkpointing else "none",
        compiled=compiles(device, shape.dtype, shape.steps),
    )
    found = estimate_training(
        card.architecture, method, training, hardware, tokens=tokens, device=device, dtype=shape.dtype
    )
    return shared(
        found, Group(shape.devices), arch=card.architecture, method=method, shape=training,
        hardware=hardware, tokens=tokens, device=device, dtype=shape.dtype,
    )  # fmt: skip


def _beside_copies(seconds: Range, copying: float) -> Range:
    """Time of computing and copying beside each other: that of the slower, whose link may be half as fast."""
    return Range(
        low=max(seconds.low, copying),
        expected=max(seconds.expected, copying),
        high=max(seconds.high, 2 * copying),
    )


def _waiting(arch: Architecture, method: Method, shape: TrainingShape, dtype: str) -> tuple[str, ...]:
    """Words for frozen weights that are not on the device."""
    if not shape.offload_parameters:
        return ()
    found = waiting(arch, method, BYTES[dtype])
    return (
        f"{found.total / 2**30:.1f} GiB of frozen weights wait in the host's memory, "
        f"{2 * found.largest / 2**30:.2f} GiB of them on the device at a time",
    )


def _passes_in_chunks(shape: TrainingShape) -> int:
    """One where a contrastive batch is cut into chunks: all vectors are needed before a gradient is."""
    return 1 if shape.compared and shape.accumulation > 1 else 0


def _micro_batches(shape: TrainingShape, tokens: int) -> int:
    """Micro-batches in so many tokens."""
    return max(1, round(tokens / (shape.micro_batch_size * (shape.mean_length or shape.sequence_length))))


def _gpu_memory(
    memory: TrainingMemory, gpu: Accelerator | None, shape: TrainingShape
) -> tuple[tuple[Phase, ...], Range, Range]:
    """Phases with the context, tensors and process with their bands."""
    capability = gpu.compute_capability if gpu is not None else None
    context = CONTEXT.get(capability or (0, 0), CONTEXT_ELSEWHERE) + COMMUNICATION * (
        shape.shard > 1 or shape.added_up
    )
    peak = memory.peak.total
    reserved = _apart(memory) if shape.shard > 1 else peak
    phases = tuple(
        Phase(name=phase.name, parts={**phase.parts, "runtime": context}) for phase in memory.phases
    )
    tensors = Range(low=peak * (1 - FORMULA_BAND), expected=peak, high=peak * (1 + FORMULA_BAND))
    process = Range(
        low=tensors.low * RESERVED[0] + context,
        expected=reserved * RESERVED[1] + context,
        high=reserved * (1 + FORMULA_BAND) * RESERVED[2] + context,
    )
    return phases, tensors, process


def _apart(memory: TrainingMemory) -> int:
    """Bytes that the allocator takes where weights are divided: no stream gets what another one has freed.

    FSDP gathers weights in one stream and leaves gradients in another, so that each of these, and all else,
    is counted at its own height, whichever phase that is in. Answering divides nothing: what its buffers hold
    is a cache of keys and values, beside no gradients.
    """
    phases = [phase.parts for phase in memory.phases if phase.name != "evaluate"]
    elsewhere: tuple[Part, ...] = ("buffers", "gradients")
    here = max(sum(size for part, size in parts.items() if part not in elsewhere) for parts in phases)
    divided = here + sum(max(parts.get(part, 0) for parts in phases) for part in elsewhere)
    return max(divided, memory.peak.total)


def _host_memory(memory: TrainingMemory, phases: tuple[Phase, ...]) -> tuple[tuple[Phase, ...], Range, Range]:
    live, resident_set = memory.peak.total, max(phase.total for phase in phases)
    return (
        phases,
        Range(low=live * (1 - FORMULA_BAND), expected=live, high=live * (1 + FORMULA_BAND)),
        Range(low=resident_set * (1 - HOST_BAND), expected=resident_set, high=resident_set * (1 + HOST_BAND)),
    )


def _inverse(seconds: Range | None, tokens: int) -> Range | None:
    if seconds is None or seconds.low <= 0:
        return None
    return Range(low=tokens / seconds.high, expected=tokens / seconds.expected, high=tokens / seconds.low)


def _cost(seconds: Range | None, dollars_per_hour: float | None) -> Range | None:
    if seconds is None or dollars_per_hour is None:
        return None
    price = dollars_per_hour / 3600
    return Range(low=seconds.low * price, expected=seconds.expected * price, high=seconds.high * price)


def _frozen_towers(arch: Architecture, method: Method) -> tuple[str, ...]:
    """That what sees is not trained."""
    if not arch.extra_parameters or not isinstance(method, Full):
        return ()
    return ("towers stay frozen: only the text backbone is trained",)


def _kept_wide(arch: Architecture, method: Method, dtype: str) -> tuple[str, ...]:
    """That experts, one tensor for all of a layer, have no adapters unless asked for, nor fewer bits."""
    if arch.experts is None or isinstance(method, Full):
        return ()
    packed = isinstance(method, QLora) or method.base is not None
    bits = f", and stay in {dtype}: only plain linear layers are held in fewer bits" if packed else ""
    if method.experts == "none":
        return (f"experts get no adapters{bits}",)
    return (f"experts have adapters{bits}",) if packed else ()


def _paged(arch: Architecture, method: Method, shape: TrainingShape) -> tuple[str, ...]:
    """What a paged optimiser leaves in the host's memory, where there is one."""
    if shape.optimizer != "paged-adamw-8bit":
        return ()
    size = paged_bytes(arch, method)
    return (f"{size / 2**30:.1f} GiB of paged moments move to the host's memory where the GPU's is short",)


def _assumptions(
    shape: TrainingShape, device: Device, gpu: Accelerator | None, dtype: str
) -> tuple[str, ...]:
    kept = "" if shape.reshard == "layer" else f", kept gathered (reshard: {shape.reshard})"
    said = (
        []
        if shape.shard == 1
        else [f"states sharded over {shape.shard} devices (FSDP2){kept}; rows of two H200 were within 6 %"]
    )
    said += [
        f"micro-batches of {shape.micro_batch_size} x {shape.sequence_length:,} tokens, "
        f"the longest row as long as the sequence"
    ]
    if device == "cuda" and (gpu is None or gpu.compute_capability not in CONTEXT):
        said.append("CUDA context taken as 500 MiB: not measured on this GPU")
    if dtype == "float16":
        said.append("half precision without bf16: loss scaling is not counted")
    return tuple(said)

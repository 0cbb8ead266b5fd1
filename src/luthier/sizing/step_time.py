"""Time of one training step on a GPU: products, attention, what lies between them, the update, the host.

Each part is bound by something of the card's: its matrix units or its memory. A micro-batch takes as long as
all of them, or as the host takes to launch their kernels one by one, whichever is longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.schema.estimate import TrainingShape
from luthier.schema.hardware import Accelerator
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Method, QLora, without_masters
from luthier.sizing.flops import attention_forward, training_flops
from luthier.sizing.parameters import packed_matrices, target_matrices
from luthier.sizing.states import trained_tensors, update_flops
from luthier.sizing.vision import tower_flops

# Source: kernels of profiled steps on an H100 (benchmarks/speed/results/h100.jsonl, 2026-11-22), held against
# steps of other shapes on an H100 and an H200 there and in benchmarks/memory/gpu.json.
PRODUCTS = 0.64
"""Share of the datasheet's rate that large bf16 products reach: 627 to 694 of 989 TFLOP/s."""
OF_MEASURED = 0.92
"""The same of a rate that was measured on the card."""
EIGHT_BITS = 0.63
"""Time of products in eight bits, casts with them, over that of bf16."""
ATTENTION, PADDED_ATTENTION = 0.37, 0.22
"""Shares that attention reaches: documents in one kernel; rows side by side under a mask."""
BANDWIDTH, MOST_BANDWIDTH = 0.80, 2.9e12
"""Share of the datasheet's memory rate that kernels between the products reach, and the most that 132
multiprocessors do: on an H200, whose memory is faster, they take as long as on an H100."""
BETWEEN_HIDDEN, BETWEEN_INNER = 30.0, 9.5
"""16-bit numbers that these read and write for each token of a layer, forward and backward, where layers are
compiled: so many times the hidden size, and so many times the MLP's."""
PLAIN = 6.5
"""Traffic of layers that are not compiled over that: norms in fp32, each operation on its own."""
AGAIN = 0.4
"""Share of that traffic that a second forward pass repeats."""
WIDENING = 4.8
"""Bytes moved to widen one four-bit weight for a product."""
LOGIT_BYTES = 6.0
"""Bytes moved for each logit of a trained token beside the head's products."""
UPDATE_BYTES = {True: 30.0, False: 18.0}
"""Bytes that an update moves for each trained number: with an fp32 master and moments, and all in bf16."""
UPDATE_SHARE = 0.76
"""Share of the memory rate that it reaches."""
LAUNCHING = {"compiled": 2.8e-3, "plain": 8.0e-3}
"""Seconds of the host to launch one layer's kernels, forward and backward, beside an H100: 67 ms for the 24
compiled layers of Qwen2.5-0.5B, all weights trained. Hosts differ: the same step took 601 and 791 ms."""
LAUNCHING_ENCODER = 2.1e-3
"""The same of an encoder's compiled layer, whose attention is torch's own, beside an H200: between BERT's 1.7
ms and MiniLM's 2.5, all weights trained for labels (seen rows of benchmarks/memory/grid.jsonl)."""
LAUNCHING_ADAPTER = {"compiled": 0.12 * 2.8e-3, "plain": 0.04e-3}
"""The same for each adapter beside a linear layer. Compiled: its share of such a layer's time on a processor,
with matrices of 64 x 64 (benchmarks/speed/launches.py): 0.08 to 0.12 in three runs on a busy machine."""
LAUNCHING_UNPACKED = 0.14 * 2.8e-3
"""The same for each four-bit matrix: scales and weights are widened in both passes. From there too:
0.12 to 0.14."""
LAUNCHING_CASTS = 1.5
"""Launching a layer whose products are in eight bits, over one in 16: casts are kernels of their own. 102.7
and 67.8 ms of a 0.5B that waits for launches, an H200 (benchmarks/speed/results/h200_float8.jsonl)."""
LAUNCHING_AGAIN = 0.45
"""Share of it that a second forward pass takes once more; a processor takes 0.36 to 0.44 of a
compiled layer."""
DIVIDING = {"layer": 1.8 * 2.8e-3, "backward": 1.3 * 2.8e-3, "step": 0.4 * 2.8e-3}
"""The same for each layer whose weights devices divide, to gather them and to add up its gradients, by how
long they stay gathered. From launches.py too: 1.7 to 1.9, 1.2 to 1.4 and 0.4 of a layer in three runs."""
DIVIDING_STEP = 0.8 * 2.8e-3
"""The same once a step where they stay gathered for it: 1.2 of a layer where a micro-batch does it all."""
NODES, NODES_ADAPTER = 70, 12
"""Kernels of a layer, forward and backward, and of an adapter: 2,727 in a step of Qwen2.5-3B with all weights
trained and 5,109 in one of LoRA on Llama-3.1-8B, an H200 (benchmarks/speed)."""
NODES_CASTS = 1.7
"""The first of them where products are in eight bits, over 16: 4,707 kernels in the same step of the 3B."""
NODE = 4.4e-6
"""Seconds that each kernel of a recorded micro-batch takes before the first of them runs. LoRA of an 8B took
19 ms longer a step recorded than kernel by kernel at 8,192 tokens and 27 at 4,096, on an H200."""
STEP = 4e-3
"""Seconds of a step outside its micro-batches: batches, norm, update's launch, metrics."""
STEP_SOURCE = "time counted by products, memory traffic and launches, as profiled on an H100"
KNOWN = ((9, 0),)
"""Compute capabilities that the constants were read off."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimiser step, part by part."""

    products: float
    attention: float
    between: float
    widening: float
    tower: float
    update: float
    host: float
    """To launch the micro-batches' kernels; hidden where the card takes longer."""
    replay: float = 0.0
    """Until the first kernel runs of a step whose launches are recorded; later micro-batches' are hidden."""

    @property
    def card(self) -> float:
        """What the GPU works on the micro-batches."""
        return self.products + self.attention + self.between + self.widening + self.tower

    @property
    def idle(self) -> float:
        """What the GPU waits for the host."""
        return max(0.0, self.host - self.card)

    @property
    def total(self) -> float:
        return self.card + self.idle + self.replay + self.update + STEP


def step_time(
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    gpu: Accelerator,
    *,
    measured: float | None = None,
) -> StepTime | None:
    """Time of one step of that shape in bf16 on one GPU; None for a card or a model that is not known here.

    measured: the card's rate of large bf16 products, where it was measured.
    """
    if gpu.compute_capability not in KNOWN or arch.experts is not None or arch.linear_mixer is not None:
        return None
    if gpu.bf16_flops is None or gpu.bandwidth is None:
        return None
    length = (shape.mean_length or shape.sequence_length) * shape.padding / shape.documents
    tokens = shape.accumulation * shape.micro_batch_size * length * shape.documents
    again = shape.activation_checkpointing in ("full", "offload")
    share = 1.0
    if shape.recomputed_layers is not None:
        share = min(1.0, shape.recomputed_layers / arch.layers)
    repeats = (share if again else 0.0) + shape.extra_forwards
    repeats += 1.0 if shape.compared and shape.accumulation > 1 else 0.0
    work = training_flops(
        arch, method, length=length, trained_share=shape.trained_share, extra_forwards=repeats,
        log_probs=shape.log_probs,
    )  # fmt: skip
    rate = measured * OF_MEASURED if measured else gpu.bf16_flops * PRODUCTS
    # With trained weights as with frozen ones: of a 3B and an 8B 15 % too fast and 12 % too slow.
    narrow = method.products if isinstance(method, Full) else method.base
    eight = narrow == "float8"
    products = (work.linear * (EIGHT_BITS if eight else 1.0) + work.head) * tokens / rate
    attending = attention_forward(arch, length) * (3.5 + repeats) * tokens
    attention = attending / (gpu.bf16_flops * (PADDED_ATTENTION if shape.padded else ATTENTION))
    speed = min(gpu.bandwidth * BANDWIDTH, MOST_BANDWIDTH)
    numbers = BETWEEN_HIDDEN * arch.hidden_size + BETWEEN_INNER * arch.intermediate_size
    traffic = 2 * numbers * arch.layers * (1 + AGAIN * repeats) * (1.0 if shape.compiled else PLAIN)
    if shape.activation_checkpointing == "selective":
        traffic *= 1 + AGAIN
    logits = LOGIT_BYTES * arch.vocab_size * shape.trained_share if arch.head else 0.0
    widening = 0.0
    if isinstance(method, QLora):
        packed = sum(times * matrix.weights for times, matrix in packed_matrices(arch))
        widening = WIDENING * packed * (2 + repeats) * shape.accumulation / gpu.bandwidth
    return StepTime(
        products=products,
        attention=attention,
        between=(traffic + logits) * tokens / speed,
        widening=widening,
        tower=tower_flops(arch, shape) * tokens / (gpu.bf16_flops * PADDED_ATTENTION),
        update=_update(arch, method, shape, gpu.bandwidth, rate),
        host=_host(arch, method, shape, repeats),
        replay=replaying(arch, method) * (1 + LAUNCHING_AGAIN * repeats) if shape.recorded else 0.0,
    )


def _update(arch: Architecture, method: Method, shape: TrainingShape, bandwidth: float, rate: float) -> float:
    trained = sum(times * size for times, size in trained_tensors(arch, method)) / shape.shard
    each = UPDATE_BYTES[not without_masters(shape.optimizer)]
    return each * trained / (bandwidth * UPDATE_SHARE) + update_flops(arch, shape.optimizer) / rate


def launching(arch: Architecture, method: Method, *, compiled: bool) -> float:
    """Seconds of the host to launch one micro-batch's kernels one by one, forward and backward."""
    kind = "compiled" if compiled else "plain"
    found = (LAUNCHING[kind] if arch.causal or not compiled else LAUNCHING_ENCODER) * arch.layers
    if isinstance(method, Full):
        found *= LAUNCHING_CASTS if method.products else 1
    else:
        found += LAUNCHING_ADAPTER[kind] * sum(times for times, _ in target_matrices(arch, method.targets))
    if isinstance(method, QLora):
        found += LAUNCHING_UNPACKED * sum(times for times, _ in packed_matrices(arch))
    return found


def replaying(arch: Architecture, method: Method) -> float:
    """Seconds that a recorded micro-batch takes until its first kernel runs, no pass repeated."""
    kernels: float = NODES * arch.layers
    if isinstance(method, Full):
        kernels *= NODES_CASTS if method.products else 1
    else:
        kernels += NODES_ADAPTER * sum(times for times, _ in target_matrices(arch, method.targets))
    return NODE * kernels


def _host(arch: Architecture, method: Method, shape: TrainingShape, repeats: float) -> float:
    """Seconds of the host to launch all micro-batches' kernels."""
    if shape.recorded:
        return 0.0
    each = launching(arch, method, compiled=shape.compiled) * (1 + LAUNCHING_AGAIN * repeats)
    if shape.shard == 1:
        return each * shape.accumulation
    each += DIVIDING[shape.reshard] * arch.layers
    return each * shape.accumulation + DIVIDING_STEP * arch.layers * (shape.reshard == "step")

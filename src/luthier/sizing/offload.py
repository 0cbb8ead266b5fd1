"""Frozen weights that wait in the host's memory: bytes on either side, and the time that copies take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from luthier.schema.estimate import TrainingShape
from luthier.schema.hardware import Accelerator
from luthier.schema.model import Architecture
from luthier.schema.recipe import Lora, Method, QLora
from luthier.sizing.layers import Matrix, distinct_layers, layer_matrices
from luthier.sizing.resident import Resident, nf4_bytes

PLACES = 2
"""Layers on the device at a time: the one that computes and the next (`models.streamed`)."""
LEAST = 64 << 10
"""Bytes of a frozen tensor from which on it waits on the host; smaller ones stay on the device."""
LINKS = {7: 12e9, 8: 24e9, 9: 57e9, 10: 57e9, 12: 57e9}
"""Bytes/s from locked memory of the host by major compute capability, over sixteen lanes of PCIe 3, 4 and 5.
Of PCIe 5 what two H200 came to (57.4 to 58.1 alone, 56.2 beside a step: benchmarks/levers/streamed.jsonl); of
the others four fifths of the link (prior, not measured)."""
SLOWEST = 12e9


@dataclass(frozen=True, slots=True)
class Waiting:
    """Frozen weights of all layers, and of the largest one. Bytes."""

    total: int
    largest: int

    @property
    def spared(self) -> int:
        """What the device holds less."""
        return max(0, self.total - PLACES * self.largest)


def waiting(arch: Architecture, method: Method, element: int) -> Waiting:
    """What waits on the host of a training with adapters. element: bytes of a weight in products."""
    layers = [
        (times, sum(_bytes_of(matrix, method, element) for matrix in layer_matrices(arch, index)))
        for index, times in distinct_layers(arch)
    ]
    return Waiting(sum(times * size for times, size in layers), max(size for _, size in layers))


def _bytes_of(matrix: Matrix, method: Method, element: int) -> int:
    """One linear layer, or all experts of a layer, in the form that the method holds it in."""
    assert isinstance(method, Lora)
    if matrix.group == "router" and method.router:
        return 0  # trained
    size = matrix.weights * element
    if matrix.copies == 1 and matrix.group != "router":
        if isinstance(method, QLora):
            size = nf4_bytes(matrix.weights, method.double_quantisation)
        elif method.base == "float8":
            size = 2 * matrix.weights
    return size if size >= LEAST else 0


def on_device(held: Resident, arch: Architecture, method: Method, element: int) -> Resident:
    """What stays on the device where the layers' frozen weights wait on the host."""
    return replace(held, weights=held.weights - waiting(arch, method, element).spared)


def host_bytes(arch: Architecture, method: Method, element: int, *, resident: int) -> int:
    """Memory of the host while such a model is read: all weights as they are held, and a layer once more.

    resident: bytes of all weights as they are held.
    """
    return resident + waiting(arch, method, element).largest


def bringing_seconds(
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    gpu: Accelerator | None,
    *,
    element: int,
    tokens: int,
) -> float:
    """Time of all copies of a training: each micro-batch reads every layer forwards and again backwards."""
    length = shape.mean_length or shape.sequence_length
    passes = tokens / max(1.0, shape.micro_batch_size * length)
    return 2 * passes * waiting(arch, method, element).total / link_of(gpu)


def link_of(gpu: Accelerator | None) -> float:
    """Bytes/s from the host's memory to a GPU, by its generation."""
    major = (gpu.compute_capability or (0, 0))[0] if gpu is not None else 0
    return LINKS.get(major, SLOWEST)

"""Resident memory of a training process on a CPU."""

from __future__ import annotations

from luthier.schema.estimate import Part, Phase
from luthier.sizing.training import MIB, TrainingMemory

# Resident set of the worker with torch and transformers imported and their code touched by a first
# step, model not counted. Measured on Linux x86-64 with torch 2.13 and transformers 5.23 (benchmarks/memory).
RUNTIME = 420 * MIB
# Live tensors against what the C library's heap holds for them. Blocks under its mmap threshold (32 MiB
# once larger ones have been freed) come from a heap that cannot reuse every hole for aligned blocks.
HEAP_OVERHEAD = 1.35


def on_host(memory: TrainingMemory, *, runtime: int = RUNTIME) -> tuple[Phase, ...]:
    """Phases of a CPU run: the tensors, the heap's overhead as workspace, and interpreter with libraries."""
    found = []
    for phase in memory.phases:
        parts: dict[Part, int] = dict(phase.parts)
        passing = sum(parts.get(part, 0) for part in ("activations", "gradients"))
        parts["workspace"] = round(passing * (HEAP_OVERHEAD - 1))
        parts["runtime"] = runtime
        found.append(Phase(name=phase.name, parts=parts))
    return tuple(found)

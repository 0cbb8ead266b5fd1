"""Fit the constants of the memory and time model to the measured rows, a part of them never looked at.

``python benchmarks/memory/fit.py`` reads cpu.json and gpu.json beside it, leaves out a quarter of the rows by
the digest of their settings, fits, and writes ``src/luthier/sizing/calibration.py`` and ``calibration.md``
with the errors of seen and held-out rows. ``--check`` writes nothing and fails where what is shipped differs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from luthier.planning.estimate import kernels_for
from luthier.schema.estimate import TrainingShape
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, Method
from luthier.sizing.activations import OURS
from luthier.sizing.flops import training_flops
from luthier.sizing.host import case_of, passing_bytes
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.speed import CPU_BETWEEN, CPU_PRODUCTS
from luthier.sizing.training import TrainingMemory, training_memory

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "src" / "luthier" / "sizing" / "calibration.py"
MIB = 1 << 20
THEN = replace(OURS, fused_loss=False, fused_update=False)
"""The trainer that gpu.json was measured with: its loss took 16.8 million fp32 logits at a time."""
HELD_OUT = 4
"""One row in so many is held out."""


def held_out(*settings: object) -> bool:
    """Whether a row is never fitted, by the digest of its settings alone."""
    text = "luthier calibration|" + "|".join(map(str, settings))
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELD_OUT == 0


GRID = (
    "## The measured grid",
    "",
    "`grid_rows.py` (79 rows) and `grid_more.py` (43 more: texts that are read as a whole, images, rows",
    "that end at different places, 131,072 tokens, two GPUs) were both written before anything was measured.",
    "One rule, in `grid_rows.py`, keeps rows blind: every third by the digest of its settings, the whole of",
    "Llama-3.1-8B, and the whole of qlora. Nothing is fitted or mended on a blind row; bounds are given for",
    "both apart.",
    "",
    "73 rows were measured on an H200 (grid.jsonl; 36 seen, 37 blind; torch 2.11, transformers 5.17).",
    "Before any mend, of the blind ones: trace 28 of 30 within 2 %, formula 37 of 37 within 8 %, process",
    "36 of 37 within 5 %. What seen rows showed, and what was mended for it; no mend has a fitted number:",
    "",
    "- Full, 1.5B and 3B, 16,384 tokens, compiled, computed again: trace -3.5 and -2.2 %, formula -2.0",
    "  and -1.1 %; LoRA alike -4.2 % (formula). In the graph that runs a layer again Inductor makes the",
    "  MLP's product in the kernel that makes its factors' gradients, so that one more state of the MLP",
    "  is there at the height (read off Inductor's code for that layer). Trace and formula count it. What",
    "  is left of the trace's error, about four hidden states a token, are results that Inductor holds",
    "  until a later kernel writes over them: not traced.",
    "- MiniLM, full, plain layers: trace -4.8 %, formula -4.0 %. The gradient of a bias is a sum over",
    "  rows, for which torch takes room for every block's parts: 126 MB of 1,320 here (torch's",
    "  Reduce.cuh). Both count it.",
    "- ModernBERT: formula +10 % (full, plain layers) and -12 % (LoRA, compiled). Its norms are torch's",
    "  LayerNorm and keep no fp32 copy, and the values that attention keeps are a part of one product",
    "  with queries and keys, all of which stays. The trace had both; it now follows compiled layers of",
    "  padded rows too.",
    "- LoRA of an 8B with 22 of 36 layers computed again: formula +2.0 %. Layers that keep everything",
    "  were counted beside one that runs again, when they are gone already.",
    "- Vectors compared in one piece: gradients stay in 16 bits, which was counted in fp32 (not at the",
    "  peak).",
    "- MiniLM, 128 texts compared, compiled: formula +12 %, not mended. The texts of a step are cut into",
    "  pieces of like length, which the row's shape does not say: all count as the longest, on the safe",
    "  side.",
)


@dataclass(frozen=True)
class HostRow:
    """One measured CPU step. Bytes and processor seconds."""

    name: str
    memory: TrainingMemory
    case: str
    passing: int
    measured: int
    ready: int
    """Once model, adapters and optimiser are there, before the first step."""
    flops: float
    seconds: float
    unseen: bool

    @property
    def loaded(self) -> int:
        """Weights and adapters, by the formula."""
        parts = self.memory.phases[0].parts
        return parts.get("weights", 0) + parts.get("adapters", 0)

    def predicted(self, runtime: int, waste: dict[str, float]) -> float:
        return max(
            phase.total + runtime + (0 if phase.name == "load" else waste[self.case] * self.passing)
            for phase in self.memory.phases
        )


def host_rows() -> tuple[list[HostRow], float]:
    """The CPU rows and the matrix rate that they were measured at."""
    data = json.loads((HERE / "cpu.json").read_text())
    found = []
    for row in data["rows"]:
        arch = architecture_from_config(data["models"][row["model"]])
        method: Method = Lora(rank=row["rank"]) if row["method"] == "lora" else Full()
        task = row.get("task", "chat")
        texts = 2 if task == "similarity" else row["documents"]
        if task != "chat":
            arch = arch.model_copy(update={"head": False, "tied_embeddings": False})
        shape = TrainingShape(
            micro_batch_size=row["micro_batch"],
            batch_size=row.get("batch"),
            sequence_length=row["sequence"] * (texts if task == "similarity" else 1),
            documents=texts,
            trained_share=row["trained_share"],
            activation_checkpointing=row["checkpointing"],
            padded=task != "chat",
        )
        found.append(_host_row(row, arch, method, shape))
    return found, float(data["matrix_rate"])


def _host_row(row: dict[str, Any], arch: Architecture, method: Method, shape: TrainingShape) -> HostRow:
    settings = [row[key] for key in ("model", "method", "rank", "micro_batch", "sequence", "checkpointing")]
    if "task" in row:
        settings += [row["task"], row["batch"]]
    flops = training_flops(
        arch,
        method,
        length=shape.sequence_length / shape.documents,
        trained_share=shape.trained_share,
        checkpointing=shape.activation_checkpointing == "full",
    )
    kernels = kernels_for("cpu", "float32", padded=shape.padded)
    return HostRow(
        name=f"{row['model']} {row['method']} {row['micro_batch']} x {row['sequence']}",
        memory=training_memory(arch, method, shape, dtype="float32", kernels=kernels, cuda=False),
        case=case_of(method, shape),
        passing=passing_bytes(arch, shape, 4),
        measured=max(row["forward"] + row["backward"] + row["optimizer"]) * MIB,
        ready=row["ready"] * MIB,
        flops=flops.total * shape.tokens,
        seconds=median(row["cpu_seconds"]) if row.get("timed", True) else 0.0,
        unseen=held_out(*settings),
    )


def fit_host(rows: list[HostRow]) -> tuple[int, dict[str, float]]:
    """Runtime: what a process holds once the model is loaded, that taken off. The heap's waste by case.

    The wastes are those with the least squares of relative errors.
    """
    runtime = round(median(row.ready - row.loaded for row in rows) / (5 * MIB)) * 5 * MIB
    sums: dict[str, tuple[float, float]] = {}
    for row in rows:
        height = max(phase.total for phase in row.memory.phases if phase.name != "load")
        off, share = (row.measured - height - runtime) / row.measured, row.passing / row.measured
        above, below = sums.get(row.case, (0.0, 0.0))
        sums[row.case] = (above + off * share, below + share * share)
    return runtime, {case: max(0.0, round(a / b, 2)) for case, (a, b) in sorted(sums.items())}


@dataclass(frozen=True)
class DeviceRow:
    """One measured GPU step of our trainer. Bytes."""

    name: str
    formula: float
    allocated: float
    reserved: float
    outside: float
    unseen: bool


def device_rows() -> list[DeviceRow]:
    data = json.loads((HERE / "gpu.json").read_text())
    found = []
    for row in data["rows"]:
        arch = architecture_from_config(data["configs"][row["model"]])
        method: Method = Full() if row["method"]["name"] == "full" else Lora.model_validate(row["method"])
        shape = TrainingShape.model_validate(row["shape"])
        again = shape.activation_checkpointing == "full"
        formula = training_memory(arch, method, shape, dtype="bfloat16", kernels=THEN, hopper=True)
        settings = (row["model"], method.name, shape.micro_batch_size, shape.sequence_length, again)
        found.append(
            DeviceRow(
                name=f"{row['model']} {method.name} {shape.micro_batch_size} x {shape.sequence_length}",
                formula=formula.peak.total,
                allocated=row["allocated"],
                reserved=row["reserved"],
                outside=row["outside_torch"],
                unseen=held_out(*settings),
            )
        )
    return found


def errors(pairs: list[tuple[float, float]]) -> tuple[int, float, float]:
    """Rows, mean and largest relative error of (predicted, measured) pairs."""
    off = [said / had - 1 for said, had in pairs]
    return len(off), fmean(map(abs, off)) if off else 0.0, max(off, key=abs, default=0.0)


def main(words: list[str]) -> int:
    host, rate = host_rows()
    device = device_rows()
    seen = [row for row in host if not row.unseen]
    runtime, waste = fit_host(seen)
    trained = [row for row in device if not row.unseen]
    ratios = sorted(row.reserved / row.allocated for row in trained)
    reserved = (1.0, round(median(ratios), 3), round(max(ratios) * 1.02, 3))
    context = round(median(row.outside for row in trained) / MIB) * MIB
    text = source(runtime, waste, reserved, context)
    if "--check" in words:
        if TARGET.read_text() != text:
            print("sizing/calibration.py is not what this script fits: run it without --check")
            return 1
        return 0
    share = 1 / (1 / CPU_PRODUCTS + rate / CPU_BETWEEN)
    parts: dict[str, dict[bool, list[tuple[float, float]]]] = {
        "CPU, resident set": {
            u: [(row.predicted(runtime, waste), row.measured) for row in host if row.unseen == u]
            for u in (False, True)
        },
        "CPU, processor time (nothing fitted here)": {
            u: [(r.flops / rate / share, r.seconds) for r in host if r.unseen == u and r.seconds]
            for u in (False, True)
        },
        "H100, tensors (nothing fitted)": {
            u: [(r.formula, r.allocated) for r in device if r.unseen == u] for u in (False, True)
        },
        "H100, process": {
            u: [(r.formula * reserved[1] + context, r.reserved + r.outside) for r in device if r.unseen == u]
            for u in (False, True)
        },
    }
    TARGET.write_text(text)
    (HERE / "calibration.md").write_text(report(parts))
    print(report(parts))
    return 0


def source(runtime: int, waste: dict[str, float], reserved: tuple[float, float, float], context: int) -> str:
    """The module that is shipped."""
    shares = "".join(f'\n    "{case}": {value},' for case, value in waste.items())
    return f'''"""Constants fitted to measured rows, written by benchmarks/memory/fit.py: do not edit."""

RUNTIME = {runtime // MIB} << 20
"""Bytes of interpreter, torch and transformers, model not counted."""
HEAP_WASTE = {{{shares}
}}
"""Holes that the C library's heap leaves, as a share of a layer's passing tensors, summed over the layers."""
RESERVED = {reserved}
"""Reserved over allocated memory with expandable segments: lowest, expected, highest."""
CONTEXT_HOPPER = {context // MIB} << 20
"""Bytes outside torch's allocator on an H100: context, cuBLAS, kernels."""
'''


def report(parts: dict[str, dict[bool, list[tuple[float, float]]]]) -> str:
    """Errors of seen and held-out rows, as Markdown."""
    lines = [
        "# Fitted constants: how right they are",
        "",
        "A quarter of the rows is held out by the digest of their settings and never fitted.",
        "",
        "| what | rows | seen or held out | mean error | largest |",
        "|---|---|---|---|---|",
    ]
    for what, both in parts.items():
        for unseen, pairs in both.items():
            count, mean, largest = errors(pairs)
            said = "held out" if unseen else "seen"
            lines.append(f"| {what} | {count} | {said} | {mean:.1%} | {largest:+.1%} |")
    return "\n".join([*lines, "", *GRID]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Published memory figures that state their setting, beside the formula's.

``python benchmarks/memory/published.py`` prints the table.
"""

from __future__ import annotations

from dataclasses import replace

from luthier.catalog.index import model_card
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Method, QLora
from luthier.sizing.activations import TRANSFORMERS, Kernels
from luthier.sizing.training import training_memory

GIB = 2**30
EIGHT, THREE, SEVENTY = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
)
PLAIN = replace(TRANSFORMERS, keeps_logits=False, adapter_bytes=2)
PREPARED = replace(TRANSFORMERS, wide_residual=True)
TUNE = "torchtune's table of optimisations (Llama-3.2-3B, all weights, A100)"
CONTEXTS = "Unsloth's table of longest contexts, column HF + FA2 (QLoRA r=32)"
POINTS: tuple[tuple[str, str, str, Method, int, int, str, Kernels, float], ...] = (
    (TUNE, "packed", THREE, Full(), 2, 4096, "none", PLAIN, 60.0),
    (TUNE, "and compiled", THREE, Full(), 2, 4096, "none", replace(PLAIN, layers="compiled"), 51.0),
    (TUNE, "and the loss in chunks", THREE, Full(), 2, 4096, "none",
     replace(PLAIN, layers="compiled", loss="fused"), 42.9),
    (TUNE, "and checkpointing", THREE, Full(), 2, 4096, "full",
     replace(PLAIN, layers="compiled", loss="fused"), 24.9),
    (CONTEXTS, "8B, 16 GB", EIGHT, QLora(rank=32), 1, 2551, "full", PREPARED, 16.0),
    (CONTEXTS, "8B, 24 GB", EIGHT, QLora(rank=32), 1, 5789, "full", PREPARED, 24.0),
    (CONTEXTS, "8B, 80 GB", EIGHT, QLora(rank=32), 1, 28454, "full", PREPARED, 80.0),
    (CONTEXTS, "70B, 80 GB", SEVENTY, QLora(rank=32), 1, 6916, "full", PREPARED, 80.0),
)  # fmt: skip


def main() -> None:
    print("| source | setting | published | formula, GiB |\n|---|---|---|---|")
    for source, setting, model, method, rows, length, mode, kernels, published in POINTS:
        arch = model_card(model).architecture
        assert arch is not None, model
        shape = TrainingShape(
            micro_batch_size=rows,
            sequence_length=length,
            activation_checkpointing=mode,  # type: ignore[arg-type]
        )
        found = training_memory(arch, method, shape, dtype="bfloat16", kernels=kernels)
        print(f"| {source} | {setting} | {published:g} | {found.peak.total / GIB:.1f} |")


if __name__ == "__main__":
    main()

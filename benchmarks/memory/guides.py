"""Compute the rows of the guides' memory tables under stated settings."""

from __future__ import annotations

from dataclasses import replace

from luthier.catalog.index import model_card
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.sizing.activations import OURS, TRANSFORMERS
from luthier.sizing.training import training_memory

CONTEXT = 0.5e9
PLAIN = replace(TRANSFORMERS, adapter_bytes=2)
FUSED = replace(PLAIN, loss="fused", keeps_logits=False)
KERNELS = {"plain loss": PLAIN, "fused loss": FUSED, "our trainer": OURS}
ROWS: tuple[tuple[str, Method, tuple[int, ...]], ...] = (
    ("Qwen/Qwen2.5-0.5B-Instruct", Lora(), (2048,)),
    ("meta-llama/Llama-3.2-1B-Instruct", Full(), (512, 2048)),
    ("meta-llama/Llama-3.2-1B-Instruct", Lora(), (512, 2048)),
    ("meta-llama/Llama-3.2-3B-Instruct", Lora(), (512, 2048)),
    ("meta-llama/Llama-3.2-3B-Instruct", Full(), (2048,)),
    ("Qwen/Qwen2.5-7B-Instruct", QLora(), (512, 2048)),
    ("meta-llama/Llama-3.1-8B-Instruct", QLora(), (512, 2048)),
    ("meta-llama/Llama-3.1-8B-Instruct", Lora(), (512, 2048)),
    ("Qwen/Qwen2.5-14B-Instruct", QLora(), (512,)),
    ("Qwen/Qwen2.5-14B-Instruct", Lora(), (512, 2048)),
    ("Qwen/Qwen2.5-32B-Instruct", QLora(), (512, 2048)),
    ("Qwen/Qwen2.5-32B-Instruct", Lora(), (512, 2048)),
    ("meta-llama/Llama-3.3-70B-Instruct", QLora(), (512, 2048)),
)


def main() -> None:
    print("| model | method | tokens | weights | " + " | ".join(KERNELS) + " |")
    print("|---|---|---|---|" + "---|" * len(KERNELS))
    for name, method, lengths in ROWS:
        arch = model_card(name).architecture
        assert arch is not None, name
        for length in lengths:
            shape = TrainingShape(micro_batch_size=1, sequence_length=length, activation_checkpointing="full")
            found = [
                training_memory(arch, method, shape, dtype="bfloat16", kernels=k) for k in KERNELS.values()
            ]
            weights = found[0].phases[0].total / 1e9
            totals = [f"{(memory.peak.total + CONTEXT) / 1e9:.1f}" for memory in found]
            figures = " | ".join(totals)
            print(f"| {name.split('/')[1]} | {method.name} | {length:,} | {weights:.1f} | {figures} |")


if __name__ == "__main__":
    main()

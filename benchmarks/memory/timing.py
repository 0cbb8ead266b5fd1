"""How long a prediction takes: the formula in microseconds, the trace in seconds of wall and processor.

``python benchmarks/memory/timing.py`` writes timing.json. Each trace runs in a process of its own, from the
start of the interpreter, with one and with two threads left to it; nothing is remembered.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from luthier.checks.trace.run import trace_training
from luthier.planning.estimate import estimate_training
from luthier.planning.hypothetical import parse_hardware
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Lora
from luthier.sizing.model_config import architecture_from_config

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
SHAPE = TrainingShape(
    micro_batch_size=1, sequence_length=2048, trained_share=0.5, activation_checkpointing="full"
)


def formula_seconds(rounds: int = 2000) -> float:
    """Median time of one candidate's whole estimate."""
    arch, machine = architecture_from_config(CONFIG), parse_hardware("h100")
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        estimate_training(arch, Lora(), SHAPE, machine, tokens=1_000_000, device="cuda", dtype="bfloat16")
        times.append(time.perf_counter() - began)
    return median(times)


def trace_seconds(shape: TrainingShape, *, whole: bool) -> dict[str, float]:
    """Wall and processor seconds of one trace in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trace_training(CONFIG, Lora(), shape, hopper=True, whole=whole, cache=Path(folder))
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(wall, 2), "processor": round(processor, 2)}


def main() -> None:
    compiled = SHAPE.model_copy(update={"compiled": True})
    load = os.getloadavg()[0]
    found = {
        "what": "one candidate by the formula; traces of a LoRA step of the Llama-3.1-8B shape",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "load_when_begun": round(load, 1),
        "formula_seconds": formula_seconds(),
        "trace_two_depths": trace_seconds(SHAPE, whole=False),
        "trace_whole": trace_seconds(SHAPE, whole=True),
        "trace_two_depths_compiled": trace_seconds(compiled, whole=False),
    }
    path = Path(__file__).with_name("timing.json")
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""The time of a step that is foretold beside every step that was timed.

    python benchmarks/speed/step_time_check.py [RESULTS.jsonl ...]

Rows of ``step.py`` on one GPU (all of results/ where none is named). Printed as Markdown: what was asked, the
measured and the foretold milliseconds, the error, the parts of the foretold time, and the card's work where
the step was profiled. Rows of full fine-tuning but for h200_one_pass and h200_gathered had other kernels for
losses and updates, so that they took longer than is foretold now. No GPU and no torch are needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.catalog.index import model_card
from luthier.planning.hypothetical import parse_hardware
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.sizing.step_time import StepTime, step_time

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
}
"""Models of the catalogue that have the shapes of shapes.py."""
DEFAULTS = {
    "model": "llama-3.1-8b", "method": "lora", "base": "", "tokens": "8192", "micro": "1", "keep": "none",
    "layers": "", "length": "2048", "optimizer": "adamw", "graphs": "0", "compile": "1", "docs": "fixed",
    "steps": "6", "shard": "1", "warm": "",
}  # fmt: skip
"""As step.py has them."""


@dataclass(frozen=True)
class Timed:
    """One timed step and what is foretold of it."""

    file: str
    asked: str
    row: dict[str, str]
    card: str
    seconds: float
    kernels: dict[str, float] | None
    """Milliseconds of the card's work by kind, where the step was profiled."""
    found: StepTime

    @property
    def error(self) -> float:
        return self.found.total / self.seconds - 1


def foretold(row: dict[str, str], card: str) -> StepTime | None:
    """What is foretold of a row of step.py on that card."""
    method: Method = {"lora": Lora(), "qlora": QLora(), "full": Full()}[row["method"]]
    if row.get("float8") == "1":
        method = Full(products="float8")
    if row["base"]:
        method = Lora(base="float8")
    arch = model_card(MODELS[row["model"]]).architecture
    assert arch is not None
    shape = TrainingShape.model_validate(
        {
            "micro_batch_size": 1, "sequence_length": int(row["tokens"]), "batch_size": int(row["micro"]),
            "documents": max(1, int(row["tokens"]) // int(row["length"])),
            "activation_checkpointing": row["keep"], "compiled": row["compile"] == "1",
            "recomputed_layers": int(row["layers"]) if row["layers"] else None,
            "optimizer": row["optimizer"], "recorded": row["graphs"] == "1",
        }
    )  # fmt: skip
    return step_time(arch, method, shape, parse_hardware(card).accelerators[0])


def timed(files: list[Path]) -> Iterator[Timed]:
    """Rows of one GPU and one of the catalogue's shapes, warm."""
    for path in files:
        card = path.name.split("_")[0].split(".")[0]
        for line in path.read_text(encoding="utf-8").splitlines():
            said: dict[str, Any] = json.loads(line)
            if "step_ms" not in said or "asked" not in said or said.get("devices", 1) != 1:
                continue
            row = DEFAULTS | dict(part.split("=", 1) for part in said["asked"].split(","))
            if row["model"] not in MODELS or row["warm"] == "0" or row["docs"] == "packed":
                continue
            found = foretold(row, card)
            if found is not None:
                yield Timed(
                    path.name, said["asked"], row, card, said["step_ms"] / 1e3, said.get("kernels_ms"), found
                )


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.jsonl"))
    parts = ("products", "attention", "between", "widening", "update", "host")
    print(f"| file | asked | measured, ms | foretold | error | {' | '.join(parts)} | kernels, ms |")
    print("|---|---|---|---|---|" + "---|" * len(parts) + "---|")
    for one in timed(files):
        cells = [one.file, one.asked, f"{one.seconds * 1e3:.1f}", f"{one.found.total * 1e3:.1f}"]
        cells += [f"{one.error:+.1%}", *(f"{getattr(one.found, part) * 1e3:.1f}" for part in parts)]
        cells.append("" if one.kernels is None else f"{sum(one.kernels.values()):.1f}")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

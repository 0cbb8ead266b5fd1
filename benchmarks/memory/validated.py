"""What the measured grid has rows of, and what is counted alike but was not measured. No torch.

``python benchmarks/memory/validated.py`` prints the tables that stand in docs/memory.md, from
grid_results.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from luthier.catalog.trains import SEEING
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import OptimizerName
from luthier.sizing.model_config import FAMILIES

RESULTS = Path(__file__).with_name("grid_results.json")
READING = ("bert", "roberta", "xlm-roberta", "camembert", "modernbert")
METHODS = {
    "full": "all weights", "lora": "LoRA", "lora-attention": "LoRA", "qlora": "QLoRA",
    "float8": "LoRA over an eight-bit base",
}  # fmt: skip
OTHER_METHODS = ("DoRA", "adapters on experts", "layers frozen")
PURPOSES = {
    "chat": "chat and text", "vision": "chat with images", "classification": "one label",
    "multi-label": "several labels", "similarity": "similarity", "reranking": "reranking with a head",
    "yes-no": "reranking by yes and no",
}  # fmt: skip
OTHER_PURPOSES = ("pairs of answers",)
KEEPING = {
    "none": "nothing recomputed", "selective": "selective", "full": "full", "offload": "offload",
}  # fmt: skip
DEVICES = ("one GPU", "weights divided over two (FSDP2)", "whole on each of two")
OTHER_DEVICES = ("more GPUs", "tensor, pipeline, context and expert parallel")


def rows() -> list[dict[str, Any]]:
    """The results, or none where nothing was measured."""
    if not RESULTS.exists():
        return []
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    return found


def table() -> str:
    """Validated and not, by what a training can differ in; then the families with their errors."""
    found = rows()
    if not found:
        return "Nothing has been measured for this table yet: all of it is supported, not measured.\n"
    writing = [name for name in FAMILIES if name not in READING]
    families = {row["family"] for row in found}
    optimizers = {row["optimizer"] for row in found}
    kept = {row["keep"] for row in found}
    modes = get_args(TrainingShape.model_fields["activation_checkpointing"].annotation)
    parts = [
        ("families that write", *_parted(writing, families)),
        ("families that read", *_parted(READING, families)),
        ("families that see", *_parted(SEEING, families)),
        ("shapes", list(dict.fromkeys(row["model"] for row in found)), ["all others"]),
        ("purposes", *_named(PURPOSES, {row["purpose"] for row in found}, OTHER_PURPOSES)),
        ("methods", *_named(METHODS, {row["method"] for row in found}, OTHER_METHODS)),
        ("optimisers", *_parted(get_args(OptimizerName), optimizers)),
        ("activations", *_named({name: KEEPING[name] for name in modes}, kept, ())),
        ("devices", *_devices(found)),
    ]
    lines = ["| | validated: has rows | supported, not measured |", "|---|---|---|"]
    lines += [f"| {name} | {', '.join(has)} | {', '.join(rest)} |" for name, has, rest in parts]
    heads = ("family", "purpose", "methods", "rows", "of them blind", "formula, mean error", "largest")
    lines += ["", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    groups = sorted({(row["family"], row["purpose"]) for row in found})
    for family, purpose in groups:
        own = [row for row in found if (row["family"], row["purpose"]) == (family, purpose)]
        errors = [row["error"]["formula"] for row in own]
        methods = sorted({METHODS[row["method"]] for row in own})
        cells = (
            family, PURPOSES[purpose], ", ".join(methods), str(len(own)),
            str(sum(row["blind"] for row in own)), f"{mean(map(abs, errors)):.1%}",
            f"{max(errors, key=abs):+.1%}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _parted(known: Iterable[str], have: set[str]) -> tuple[list[str], list[str]]:
    names = list(known)
    return [name for name in names if name in have], [name for name in names if name not in have]


def _named(names: dict[str, str], have: set[str], others: Iterable[str]) -> tuple[list[str], list[str]]:
    """Under their names in words, each once; others: what has no rows at all."""
    with_rows = dict.fromkeys(words for name, words in names.items() if name in have)
    without = dict.fromkeys(words for name, words in names.items() if words not in with_rows)
    return list(with_rows), [*without, *others]


def _devices(found: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    sharded = {json.loads(row["key"]).get("shard", 1) for row in found if row["devices"] > 1}
    have = [row for row in DEVICES[:1] if any(one["devices"] == 1 for one in found)]
    have += [DEVICES[1]] * (2 in sharded) + [DEVICES[2]] * (1 in sharded)
    return have, [*(name for name in DEVICES if name not in have), *OTHER_DEVICES]


if __name__ == "__main__":
    print(table(), end="")

"""The rows of h100_stacks.json as steps to trace and as questions to the formula."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.sizing.activations import TRANSFORMERS, Kernels

if TYPE_CHECKING:
    from luthier.checks.trace.plain import PlainStep

HERE = Path(__file__).parent
GB = 1e9
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
UNTRACED = ("nemo", "torchtune", "unsloth")
"""Stacks with layers of their own."""


@dataclass(frozen=True)
class StackRow:
    """One measured step of a named setting. Sizes in bytes."""

    setting: str
    model: str
    method: str
    micro_batch: int
    sequence: int
    checkpointing: str
    measured: float
    began_with: float
    config: dict[str, Any]
    values: dict[str, Any]

    @property
    def held_out(self) -> bool:
        """Not looked at while trace and formula were built: one model, one method, and a call of its own."""
        return self.model == "Llama-3.2-1B" or self.method == "qlora" or "call" in self.values


def stack_rows() -> Iterator[StackRow]:
    """Every row."""
    data = json.loads((HERE / "h100_stacks.json").read_text())
    for row in data["rows"]:
        yield StackRow(
            row["setting"],
            row["model"],
            row["method"],
            row["micro_batch"],
            row["sequence"],
            row["checkpointing"],
            row["allocated"] * GB,
            row["began_with"] * GB,
            data["models"][row["model"]],
            row,
        )


def is_as_labelled(row: StackRow) -> bool:
    """Whether the row ran as its label says.

    Left out: rows padded to an unknown length, and one whose checkpointing was asked to stop and did not
    (7.59 GB, less than the activations of its layers alone).
    """
    gc_stayed = row.setting == "unsloth" and row.method == "qlora" and row.checkpointing == "none"
    return "padded" not in row.values and not gc_stayed


def step_of(row: StackRow) -> PlainStep | None:
    """The step as the trace follows it; None for a stack whose own kernels it does not know."""
    from luthier.checks.trace.plain import PlainStep

    if row.checkpointing not in ("none", "full") or row.setting.split()[0] in (
        "nemo",
        "torchtune",
        "unsloth",
    ):
        return None
    kind = row.setting
    trains_all, quantised = row.method == "full", row.method == "qlora"
    # TRL narrows the adapters of a four-bit base.
    wide = kind in ("plain autocast", "trl fp32") or (kind.startswith("trl") and row.method == "lora")
    bare = kind.startswith("bare")
    return PlainStep(
        row.config,
        row.micro_batch,
        row.sequence,
        None if trains_all else 16,
        ALL_LINEAR,
        dtype="float32" if wide and trains_all else "bfloat16",
        adapter_dtype="float32" if wide else "bfloat16",
        adapters="bare" if bare else "peft",
        quantisation="nf4" if quantised else None,
        double_quantisation=True,
        prepared=False,
        checkpointing=row.checkpointing == "full",
        fused=True,
        hopper=True,
        keeps_logits=False,
        loss="tiles" if kind.startswith("trl") else "liger" if bare or "liger" in kind else "logits",
        liger="liger" in kind,
        autocast=wide,
        compiled="compiled" in kind,
        clips=kind.startswith("trl"),
    )


def question_of(row: StackRow) -> tuple[Method, TrainingShape, str, Kernels] | None:
    """Method, shape, type of the weights and kernels as the formula takes them; None where it has no form."""
    kind = row.setting
    first = kind.split()[0]
    methods: dict[str, Method] = {"lora": Lora(), "qlora": QLora(), "full": Full()}
    if row.checkpointing == "budget":
        return None
    wide = kind in ("plain autocast", "trl fp32") or (first == "trl" and row.method == "lora")
    layers: Any = (
        "compiled" if "compiled" in kind.split()[1:2] and first in ("bare", "torchtune") else "plain"
    )
    if "liger" in kind or first in ("unsloth", "nemo"):
        layers = "fused"
    loss: Any = {"trl": "tiles", "bare": "fused", "unsloth": "fused", "torchtune": "parts"}.get(
        first, "logits"
    )
    if "liger" in kind and first == "plain":
        loss = "fused"
    if first == "nemo":
        loss = {"logits": "logits", "cce": "fused"}.get(kind.split()[1], "compiled")
    kernels = replace(
        TRANSFORMERS,
        attention="efficient" if first == "torchtune" and layers == "plain" else "flash",
        layers=layers,
        loss=loss,
        adapters="bare"
        if first in ("bare", "torchtune")
        else "own"
        if first in ("unsloth", "nemo")
        else "peft",
        adapter_bytes=4 if wide or first == "unsloth" else 2,
        recomputes_product=first == "unsloth" or (first == "nemo" and "per layer" not in kind),
        autocast=wide,
        keeps_logits=False,
    )
    shape = TrainingShape(
        micro_batch_size=row.micro_batch,
        sequence_length=row.sequence,
        activation_checkpointing="offload" if row.checkpointing == "offloaded" else row.checkpointing,  # type: ignore[arg-type]
    )
    return methods[row.method], shape, "float32" if wide and row.method == "full" else "bfloat16", kernels

"""Predicted against measured memory on the same rows: our trace, our formula, other estimators.

``python benchmarks/memory/compare.py`` reads the measured rows beside it (t4.json, h100.json), predicts
each one, and writes results.json, results.md and results.svg. No GPU and no weights are needed; with
bitsandbytes installed the four-bit rows are traced too. Takes a few minutes on one core.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.sizing.activations import TRANSFORMERS, Kernels
from luthier.sizing.parameters import architecture_from_config, count_parameters
from luthier.sizing.training import training_memory

HERE = Path(__file__).parent
GIB, GB, MIB = 2**30, 1e9, 2**20
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
GUIDE_C = {"full": 3.0, "lora": 2.0, "qlora": 0.7}
"""Guide C's rules of thumb: multiples of the 16-bit weights, whatever the batch."""
ESTIMATORS = ("trace", "formula", "accelerate", "guide C")


@dataclass(frozen=True)
class Row:
    """One measured step. Sizes in bytes."""

    where: str
    name: str
    config: dict[str, Any]
    method: Method
    shape: TrainingShape
    kernels: Kernels
    dtype: str
    hopper: bool
    measured: float
    held_out: bool
    left_over: float
    attention: str
    targets: tuple[str, ...]


def rows() -> Iterator[Row]:
    """Every measured row."""
    t4 = json.loads((HERE / "t4.json").read_text())
    for row in t4["rows"]:
        quantised = row["quantisation"] == "nf4"
        kind = QLora if quantised else Lora
        extra = {"double_quantisation": False} if quantised else {}
        yield Row(
            where="T4",
            name=f"{row['model']} {'qlora' if quantised else 'lora'} {row['attention']}",
            config=t4["models"][row["model"]],
            method=kind(rank=row["rank"], targets=ATTENTION, **extra),
            shape=_shape(row, "full"),
            kernels=replace(TRANSFORMERS, attention=row["attention"], wide_residual=quantised, foreach=True),
            dtype="float16",
            hopper=False,
            measured=row["allocated"] * MIB,
            held_out=row["held_out"],
            left_over=0.0,
            attention=row["attention"],
            targets=ATTENTION,
        )
    h100 = json.loads((HERE / "h100.json").read_text())
    methods: dict[str, Method] = {"lora": Lora(), "qlora": QLora(), "full": Full()}
    for row in h100["rows"]:
        yield Row(
            where="H100",
            name=f"{row['model']} {row['method']}",
            config=h100["models"][row["model"]],
            method=methods[row["method"]],
            shape=_shape(row, row["checkpointing"]),
            kernels=replace(TRANSFORMERS, adapter_bytes=2, keeps_logits=False),
            dtype="bfloat16",
            hopper=True,
            measured=row["allocated"] * GB,
            held_out=False,
            left_over=row.get("left_over", 0.0) * GB,
            attention="flash",
            targets=ALL_LINEAR,
        )


def _shape(row: dict[str, Any], checkpointing: str) -> TrainingShape:
    return TrainingShape(
        micro_batch_size=row["micro_batch"],
        sequence_length=row["sequence"],
        activation_checkpointing=checkpointing,
    )


def traced(row: Row) -> float | None:
    """Bytes by the trace, foretold from two depths; None where bitsandbytes is absent."""
    from luthier.checks.trace.plain import PlainStep, trace_plain
    from luthier.checks.trace.result import extrapolated

    quantised = isinstance(row.method, QLora)
    if quantised:
        try:
            version("bitsandbytes")
        except ImportError:
            return None
    full = isinstance(row.method, Full)
    step = PlainStep(
        row.config,
        row.shape.micro_batch_size,
        row.shape.sequence_length,
        None if full else row.method.rank,  # type: ignore[union-attr]
        row.targets,
        dtype=row.dtype,  # type: ignore[arg-type]
        adapter_dtype="bfloat16" if row.hopper else "float32",
        quantisation="nf4" if quantised else None,
        double_quantisation=row.hopper,
        prepared=not row.hopper,
        attention=row.attention,  # type: ignore[arg-type]
        checkpointing=row.shape.activation_checkpointing == "full",
        foreach=not row.hopper,
        fused=row.hopper,
        hopper=row.hopper,
        keeps_logits=not row.hopper,
    )
    few, more = (trace_plain(replace(step, layers=depth)) for depth in (2, 4))
    layers = row.config["num_hidden_layers"]
    return extrapolated(few, more, (2, 4), layers, expandable=row.hopper).allocated


def accelerate_says(row: Row) -> float:
    """`accelerate estimate-memory`: "Training using Adam", four times the weights in their type."""
    import torch
    from accelerate.utils import calculate_maximum_sizes
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[row.config["model_type"]](**row.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total, _ = calculate_maximum_sizes(model)
    return 4 * total / (8 if isinstance(row.method, QLora) else 2)


def predictions() -> list[dict[str, Any]]:
    found = []
    for row in rows():
        arch = architecture_from_config(row.config)
        formula = training_memory(
            arch, row.method, row.shape, dtype=row.dtype, kernels=row.kernels, hopper=row.hopper
        ).peak.total
        trace = traced(row)
        said = {
            "trace": None if trace is None else trace + row.left_over,
            "formula": formula + row.left_over,
            "accelerate": accelerate_says(row),
            "guide C": GUIDE_C[row.method.name] * 2 * count_parameters(arch).total,
        }
        found.append(
            {
                "where": row.where,
                "row": row.name,
                "micro_batch": row.shape.micro_batch_size,
                "sequence": row.shape.sequence_length,
                "checkpointing": row.shape.activation_checkpointing,
                "held_out": row.held_out,
                "measured": row.measured,
                "predicted": said,
                "error": {k: None if v is None else v / row.measured - 1 for k, v in said.items()},
            }
        )
        print(
            found[-1]["where"],
            found[-1]["row"],
            {k: v and round(100 * v, 2) for k, v in found[-1]["error"].items()},
        )
    return found


def summary(found: list[dict[str, Any]]) -> list[str]:
    groups = {
        "T4, 26 rows seen while building": [r for r in found if r["where"] == "T4" and not r["held_out"]],
        "T4, 8 rows first looked at afterwards": [r for r in found if r["held_out"]],
        "H100, 36 rows": [r for r in found if r["where"] == "H100"],
    }
    lines = ["| rows | estimator | mean error | largest | worst below |", "|---|---|---|---|---|"]
    for name, group in groups.items():
        for estimator in ESTIMATORS:
            errors = [r["error"][estimator] for r in group if r["error"][estimator] is not None]
            if errors:
                lines.append(
                    f"| {name} | {estimator} | {mean(map(abs, errors)):.2%} | "
                    f"{max(errors, key=abs):+.2%} | {min(0.0, *errors):+.2%} |"
                )
    return lines


def table(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| GPU | run | micro-batch x sequence | checkpointing | measured GiB | "
        + " | ".join(ESTIMATORS)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(ESTIMATORS),
    ]
    for row in found:
        errors = " | ".join("" if (e := row["error"][k]) is None else f"{e:+.2%}" for k in ESTIMATORS)
        lines.append(
            f"| {row['where']} | {row['row']} | {row['micro_batch']} x {row['sequence']} | "
            f"{row['checkpointing']} | {row['measured'] / GIB:.2f} | {errors} |"
        )
    return lines


def plot(found: list[dict[str, Any]]) -> str:
    """Measured against predicted, both in GiB on a logarithmic scale."""
    size, edge, low, high = 520, 50, 0.3, 300.0
    colours = {"trace": "#0b6e4f", "formula": "#1f5fa8", "accelerate": "#c0392b", "guide C": "#b9770e"}

    def place(value: float) -> float:
        share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return edge + share * (size - 2 * edge)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{size}" height="{size}" fill="white"/>',
        f'<line x1="{edge}" y1="{size - edge}" x2="{size - edge}" y2="{edge}" stroke="#999"/>',
    ]
    for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200):
        at = place(tick)
        parts.append(f'<text x="{at:.0f}" y="{size - edge + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{edge - 6}" y="{size - at + 4:.0f}" text-anchor="end">{tick:g}</text>')
    for estimator in reversed(ESTIMATORS):
        for row in found:
            value = row["predicted"][estimator]
            if value is not None:
                x, y = place(row["measured"] / GIB), size - place(value / GIB)
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[estimator]}" opacity="0.7"/>'
                )
    for number, (estimator, colour) in enumerate(colours.items()):
        y = edge + 18 * number
        parts.append(f'<circle cx="{edge + 16}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{edge + 26}" y="{y + 4}">{estimator}</text>')
    parts.append(f'<text x="{size / 2}" y="{size - 10}" text-anchor="middle">measured, GiB</text>')
    parts.append(f'<text x="14" y="{size / 2}" transform="rotate(-90 14 {size / 2})" text-anchor="middle">'
                 "predicted, GiB</text></svg>")  # fmt: skip
    return "\n".join(parts) + "\n"


def main() -> None:
    warnings.filterwarnings("ignore")
    found = predictions()
    packages = ("torch", "transformers", "peft", "accelerate")
    versions = {package: version(package) for package in packages}
    (HERE / "results.json").write_text(json.dumps({"versions": versions, "rows": found}, indent=1) + "\n")
    text = [
        "# Peak memory of tensors: predicted against measured",
        "",
        *summary(found),
        "",
        *table(found),
        "",
    ]
    (HERE / "results.md").write_text("\n".join(text))
    (HERE / "results.svg").write_text(plot(found))
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()

"""Predicted against measured memory on the same rows: our trace, our formula, other estimators.

``python benchmarks/memory/compare.py`` reads the measured rows beside it (t4.json, h100.json,
h100_stacks.json), predicts each one, and writes results.json, results.md and results.svg. No GPU and no
weights are needed. Takes some ten minutes on one core; ``--formula`` leaves what the trace and the other
estimators said before as it is.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import stacks

from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.sizing.activations import TRANSFORMERS, Kernels
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.parameters import count_parameters, lora_parameters
from luthier.sizing.training import training_memory

HERE = Path(__file__).parent
GIB, GB, MIB = 2**30, 1e9, 2**20
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
GUIDE_C = {"full": 3.0, "lora": 2.0, "qlora": 0.7}
"""Guide C's rules of thumb: multiples of the 16-bit weights, whatever the batch."""
ESTIMATORS = ("trace", "formula", "accelerate", "Transformer Math", "guide C")


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


def traced(row: Row) -> float:
    """Bytes by the trace, foretold from two depths."""
    from luthier.checks.trace.plain import PlainStep, trace_plain
    from luthier.checks.trace.result import extrapolated

    quantised = isinstance(row.method, QLora)
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


def accelerate_says(settings: dict[str, Any], method: Method, *, writes: bool = True) -> float:
    """`accelerate estimate-memory`: "Training using Adam", four times the weights in their type.

    writes: whether the model is one that writes text; else it has no head.
    """
    import torch
    from accelerate.utils import calculate_maximum_sizes
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM if writes else AutoModel
    config = CONFIG_MAPPING[settings["model_type"]](**settings)
    with torch.device("meta"):
        model = kind.from_config(config)
    total, _ = calculate_maximum_sizes(model)
    return 4 * total / (8 if isinstance(method, QLora) else 2)


def transformer_math(config: dict[str, Any], method: Method, shape: TrainingShape) -> float:
    """EleutherAI's calculator (Transformer Math 101, blog.eleuther.ai/transformer-math, and its
    calc_transformer_mem.py): 16-bit weights and gradients, 12 bytes of AdamW for each trained weight,
    activations of sbhL x 34 with attention computed again, or sbhL x 2 with full recomputation.

    It knows no adapters and no four-bit base; both are counted as kindly as its terms allow.
    """
    arch = architecture_from_config(config)
    total = count_parameters(arch).total
    full = isinstance(method, Full)
    trained = total if full else lora_parameters(arch, method.rank, method.targets)  # type: ignore[union-attr]
    weights = total * (0.5 if isinstance(method, QLora) else 2.0)
    each = 2.0 if shape.activation_checkpointing != "none" else 34.0
    activations = shape.tokens * arch.hidden_size * arch.layers * each
    return weights + (0 if full else 2 * trained) + trained * (2 + 12) + activations


def others(config: dict[str, Any], method: Method, shape: TrainingShape) -> dict[str, float]:
    """What other estimators say."""
    total = count_parameters(architecture_from_config(config)).total
    return {
        "accelerate": accelerate_says(config, method),
        "Transformer Math": transformer_math(config, method, shape),
        "guide C": GUIDE_C[method.name] * 2 * total,
    }


def found_of(  # noqa: PLR0917 (one call each)
    where: str,
    name: str,
    shape: TrainingShape,
    held_out: bool,
    measured: float,
    said: dict[str, float | None],
) -> dict[str, Any]:
    """One line of the results."""
    found = {
        "where": where,
        "row": name,
        "micro_batch": shape.micro_batch_size,
        "sequence": shape.sequence_length,
        "checkpointing": shape.activation_checkpointing,
        "held_out": held_out,
        "measured": measured,
        "predicted": said,
        "error": {k: None if v is None else v / measured - 1 for k, v in said.items()},
    }
    print(where, name, {k: v and round(100 * v, 2) for k, v in found["error"].items()}, flush=True)  # type: ignore[union-attr]
    return found


Said = dict[str, float | None]


def _said(before: dict[str, Said] | None, key: str, formula: float, rest: Callable[[], Said]) -> Said:
    """What every estimator says of a row. before: what was said of all rows, to take the rest from."""
    others_say = rest() if before is None else before[key]
    return {name: formula if name == "formula" else others_say[name] for name in ESTIMATORS}


def _key(where: str, name: str, shape: TrainingShape, measured: float) -> str:
    cut = (shape.micro_batch_size, shape.sequence_length, shape.activation_checkpointing)
    return json.dumps([where, name, *cut, round(measured)])


def predictions(before: dict[str, Said] | None = None) -> list[dict[str, Any]]:
    """Every row with what each estimator says of it."""
    found = []
    for row in rows():
        arch = architecture_from_config(row.config)
        formula = training_memory(
            arch, row.method, row.shape, dtype=row.dtype, kernels=row.kernels, hopper=row.hopper
        ).peak.total
        key = _key(row.where, row.name, row.shape, row.measured)

        def rest(row: Row = row) -> Said:
            return {"trace": traced(row) + row.left_over, **others(row.config, row.method, row.shape)}

        said = _said(before, key, formula + row.left_over, rest)
        found.append(found_of(row.where, row.name, row.shape, row.held_out, row.measured, said))
    for other in stacks.stack_rows():
        question = stacks.question_of(other)
        if question is None or not stacks.is_as_labelled(other):
            continue
        method, shape, dtype, kernels = question
        arch = architecture_from_config(other.config)
        formula = training_memory(arch, method, shape, dtype=dtype, kernels=kernels, hopper=True).peak.total
        name = f"{other.setting}: {other.model} {other.method}"

        def rest_of_stack(other: stacks.StackRow = other, asked: Any = (method, shape)) -> Said:
            return {"trace": traced_stack(other), **others(other.config, *asked)}

        key = _key("H100 stacks", name, shape, other.measured)
        said = _said(before, key, formula, rest_of_stack)
        found.append(found_of("H100 stacks", name, shape, other.held_out, other.measured, said))
    return found


def traced_stack(row: stacks.StackRow) -> float | None:
    """Bytes by the trace of a row of another stack; None where the trace does not follow it."""
    from luthier.checks.trace.plain import trace_plain
    from luthier.checks.trace.result import extrapolated, whole

    step = stacks.step_of(row)
    if step is None:
        return None
    layers = row.config["num_hidden_layers"]
    if layers <= 4:
        return whole(trace_plain(step), layers, expandable=True).allocated
    few, more = (trace_plain(replace(step, layers=depth)) for depth in (2, 4))
    return extrapolated(few, more, (2, 4), layers, expandable=True).allocated


def summary(found: list[dict[str, Any]]) -> list[str]:
    groups = {
        "T4, 26 rows seen while building": [r for r in found if r["where"] == "T4" and not r["held_out"]],
        "T4, 8 rows first looked at afterwards": [r for r in found if r["where"] == "T4" and r["held_out"]],
        "H100, plain loop, 36 rows": [r for r in found if r["where"] == "H100"],
        "H100, other stacks, seen while building": [
            r for r in found if r["where"] == "H100 stacks" and not r["held_out"]
        ],
        "H100, other stacks, held out": [r for r in found if r["where"] == "H100 stacks" and r["held_out"]],
    }
    lines = [
        "| rows | estimator | rows predicted | mean error | within 3 % | within 8 % | largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, group in groups.items():
        for estimator in ESTIMATORS:
            errors = [r["error"][estimator] for r in group if r["error"][estimator] is not None]
            if errors:
                lines.append(
                    f"| {name} | {estimator} | {len(errors)} | {mean(map(abs, errors)):.2%} | "
                    f"{within(errors, 0.03)} | {within(errors, 0.08)} | {max(errors, key=abs):+.2%} |"
                )
    return lines


def within(errors: list[float], bound: float) -> str:
    """Share of errors within a bound."""
    return f"{sum(abs(error) <= bound for error in errors) / len(errors):.0%}"


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
    colours = {
        "trace": "#0b6e4f",
        "formula": "#1f5fa8",
        "accelerate": "#c0392b",
        "Transformer Math": "#7d3c98",
        "guide C": "#b9770e",
    }

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
    before = None
    if "--formula" in sys.argv[1:]:
        kept = json.loads((HERE / "results.json").read_text())["rows"]
        before = {
            json.dumps([r["where"], r["row"], r["micro_batch"], r["sequence"], r["checkpointing"],
                        round(r["measured"])]): r["predicted"]
            for r in kept
        }  # fmt: skip
    found = predictions(before)
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

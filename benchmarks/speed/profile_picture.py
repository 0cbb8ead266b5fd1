"""Draw where the time of a step goes, from every row of `results/` that was profiled.

    python benchmarks/speed/profile_picture.py            rewrites docs/pictures/step-time.svg
    python benchmarks/speed/profile_picture.py --check    says whether it is out of date

A bar is the median step of the row (100 %). Its parts are the kernels of one profiled step by kind; what is
left is the time in which no kernel runs: between one and the next, and where the GPU waits for the host.
Beside it stand tokens a second and the utilisation of the matrix units (recomputation not counted): against
the rate of products measured on that kind of card, and against the datasheet's.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "docs" / "pictures" / "step-time.svg"
DATASHEET = 989.4
"""Teraflops of bf16 products without sparsity: NVIDIA's datasheets of H100 SXM and H200."""
PARTS = {
    "products": ("matrix products", "#3566a8"),
    "attention": ("attention", "#6aa3d8"),
    "loss": ("loss, without its products", "#d08a2e"),
    "fused elementwise": ("fused elementwise", "#8db580"),
    "four-bit": ("unpacking four bits", "#9a7bb5"),
    "optimiser": ("optimiser", "#c05a5a"),
    "copies": ("copies", "#b8a888"),
    "other": ("other kernels", "#9a9a9a"),
    "idle": ("no kernel runs", "#e4e4e4"),
}
SHAPES = {
    "llama-3.1-8b": "Llama-3.1-8B", "llama-3.1-70b": "Llama-3.1-70B", "qwen2.5-0.5b": "Qwen2.5-0.5B",
    "qwen2.5-3b": "Qwen2.5-3B",
}  # fmt: skip
METHODS = {"lora": "LoRA", "qlora": "QLoRA", "full": "full"}
LOSS = ("logsumexp", "cross_entropy")
LEFT, WIDE, ROW, TOP = 330, 470, 34, 76


@dataclass(frozen=True)
class Step:
    """One profiled row. Times in milliseconds, shares of the peak between 0 and 1."""

    label: str
    file: str
    milliseconds: float
    parts: dict[str, float]
    tokens: float
    of_measured: float
    of_datasheet: float


def steps(folder: Path = HERE / "results") -> list[Step]:
    """The profiled rows, by what they train, then by file."""
    rows = [
        (path.name, json.loads(line))
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    peaks = peaks_of(rows)
    found = [step_of(row, name, peaks[name]) for name, row in rows if "kernels_ms" in row]
    return sorted(found, key=lambda step: (step.label, step.file))


def peaks_of(rows: list[tuple[str, dict[str, Any]]]) -> dict[str, float]:
    """File -> teraflops of products measured in it, else on that kind of card, else on any.

    H100 and H200 have the same matrix units.
    """
    measured = {name: row["peak"]["tflops"] for name, row in rows if "peak" in row}
    cards: dict[str, float] = {}
    for name, rate in measured.items():
        cards.setdefault(card_of(name), rate)
    usual = next(iter(measured.values()), DATASHEET)
    return {name: measured.get(name, cards.get(card_of(name), usual)) for name, _ in rows}


def card_of(file: str) -> str:
    """The kind of card that a file of rows is named after."""
    return re.split(r"[._]", file, maxsplit=1)[0]


def step_of(row: dict[str, Any], file: str, peak: float) -> Step:
    """A row as parts of its step."""
    parts = dict(row["kernels_ms"])
    # Rows from before they were told apart: the loss's own kernels among the fused ones, and a span
    # over the optimiser's kernels beside these.
    for name, spent in row["largest_ms"].items():
        if "loss" not in row["kernels_ms"] and any(word in name for word in LOSS):
            parts["loss"] = parts.get("loss", 0.0) + spent
            parts["fused elementwise"] -= spent
        if name.startswith("Optimizer.step#"):
            parts["optimiser"] -= spent
    parts["idle"] = max(0.0, row["step_ms"] - sum(parts.values()))
    return Step(
        label=label_of(row["asked"]),
        file=file,
        milliseconds=row["step_ms"],
        parts={kind: parts[kind] for kind in PARTS if parts.get(kind, 0.0) > 0},
        tokens=row["tokens_per_second"],
        of_measured=row["tflops"] / peak,
        of_datasheet=row["tflops"] / DATASHEET,
    )


def label_of(asked: str) -> str:
    """A row's settings in words."""
    said = dict(part.split("=", 1) for part in asked.split(","))
    model = said.get("model", "llama-3.1-8b")
    words = [
        SHAPES.get(model, model),
        METHODS[said.get("method", "lora")] + (", float8 base" if said.get("base") == "float8" else ""),
        f"{int(said.get('tokens', 8192)):,} tokens",
    ]
    words += ["float8 products"] if said.get("float8") == "1" else []
    words += [said["optimizer"]] if said.get("optimizer", "adamw") != "adamw" else []
    words += [f"{said['micro']} micro-batches"] if said.get("micro", "1") != "1" else []
    words += [f"{said['keep']} checkpointing"] if said.get("keep", "none") != "none" else []
    words += ["recorded"] if said.get("graphs") == "1" else []
    words += [f"{said['shard']} GPUs"] if said.get("shard", "1") != "1" else []
    return ", ".join(words)


def rows_table(file: str, folder: Path = HERE / "results") -> str:
    """Every row of a file of one GPU as Markdown: tokens a second, memory, use of the matrix units."""
    rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    peak = peaks_of([(file, row) for row in rows])[file]
    lines = ["| | tokens/s | GB | MFU, measured / datasheet |", "|---|---|---|---|"]
    for row in sorted((row for row in rows if "tflops" in row), key=lambda row: label_of(row["asked"])):
        use = f"{100 * row['tflops'] / peak:.0f} % / {100 * row['tflops'] / DATASHEET:.0f} %"
        label = label_of(row["asked"])
        lines.append(f"| {label} | {row['tokens_per_second']:,.0f} | {row['allocated_gb']:.1f} | {use} |")
    return "\n".join(lines) + "\n"


def table(found: list[Step]) -> str:
    """The same as Markdown: milliseconds a part."""
    kinds = [kind for kind in PARTS if any(kind in step.parts for step in found)]
    heads = [
        "step", "ms", *(PARTS[kind][0] for kind in kinds), "tokens/s", "MFU, measured / datasheet", "rows of",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join('---' for _ in heads)}|"]
    for step in found:
        cells = [f"{step.parts[kind]:.1f}" if kind in step.parts else "" for kind in kinds]
        use = f"{100 * step.of_measured:.0f} % / {100 * step.of_datasheet:.0f} %"
        row = [step.label, f"{step.milliseconds:.1f}", *cells, f"{step.tokens:,.0f}", use, f"`{step.file}`"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, fill: str = "#222") -> str:
    """Words at a place of the picture."""
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def picture(found: list[Step]) -> str:
    """Stacked bars, one a step, each as long as its step."""
    kinds = [kind for kind in PARTS if any(kind in step.parts for step in found)]
    wide, tall = LEFT + WIDE + 200, TOP + ROW * len(found) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" font-family="sans-serif" '
        'role="img" aria-label="Share of a training step by kind of work on the GPU">',
        f'<rect width="{wide}" height="{tall}" fill="white"/>',
    ]
    for place, kind in enumerate(kinds):
        x, y = 16 + 200 * (place % 5), 14 + 20 * (place // 5)
        words, colour = PARTS[kind]
        lines.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        lines.append(text(x + 18, y + 10, words))
    lines.append(text(LEFT + WIDE + 12, TOP - 8, "MFU, measured / datasheet", size=11, fill="#666"))
    for place, step in enumerate(found):
        y = TOP + ROW * place
        lines.append(text(LEFT - 10, y + 11, step.label, anchor="end"))
        card = card_of(step.file).upper()
        told = f"{card}, {step.milliseconds:.0f} ms, {step.tokens:,.0f} tokens/s"
        lines.append(text(LEFT - 10, y + 24, told, anchor="end", size=10, fill="#666"))
        x, whole = float(LEFT), max(step.milliseconds, sum(step.parts.values()))
        for kind, spent in step.parts.items():
            length = WIDE * spent / whole
            said = f"{PARTS[kind][0]}: {spent:.1f} ms, {100 * spent / whole:.0f} %"
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="24" fill="{PARTS[kind][1]}">'
                f"<title>{escape(said)}</title></rect>"
            )
            if length > 34:
                dark = kind in ("products", "optimiser", "four-bit")
                share = f"{100 * spent / whole:.0f} %"
                lines.append(text(x + length / 2, y + 16, share, anchor="middle", size=11,
                                  fill="white" if dark else "#222"))  # fmt: skip
            x += length
        use = f"{100 * step.of_measured:.0f} % / {100 * step.of_datasheet:.0f} %"
        lines.append(text(LEFT + WIDE + 12, y + 16, use))
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> int:
    found = steps()
    drawn = picture(found)
    if "--check" in sys.argv[1:]:
        same = OUT.exists() and OUT.read_text() == drawn
        print("up to date" if same else f"out of date: {OUT.name}")
        return int(not same)
    OUT.write_text(drawn)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The measured grid beside what is foretold of it: by the trace, by the formula, by other estimators.

``python benchmarks/memory/grid_compare.py [MEASURED.jsonl] [--minutes 4] [--only TEXT...] [--to FOLDER]``
reads what ``grid.py`` wrote (grid.jsonl beside this file), and writes grid_results.json, .md and .svg, and
grid_errors.svg. No GPU and no weights are needed. Traces are remembered, so that a call that is cut short by
``--minutes`` goes on where it stopped; rows without a trace yet are compared by the formula alone. With
``--only TEXT`` rows whose words hold one of these texts are traced, and all others keep the trace that
grid_results.json has of them: for a mend that can touch no other row.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from compare import ESTIMATORS, GUIDE_C, accelerate_says, plot, transformer_math
from grid_more import ALL, Further, Gathered, every_row, kind_of, tiny_rows
from grid_predict import architecture, estimate, formula
from grid_rows import METHODS, Row

from luthier.errors import LuthierError
from luthier.runs.recorder import Pace
from luthier.sizing.parameters import count_parameters

HERE = Path(__file__).parent
GATHERED = 10
"""Steps after which the time that is left is foretold."""
BOUNDS = (
    # what, rows that must be within, share of the rows, how far
    ("trace", "trace", 0.95, 0.02),
    ("trace, every row", "trace", 1.0, 0.05),
    ("formula", "formula", 0.95, 0.08),
    ("process", "process", 0.95, 0.05),
    ("time before the run", "time before", 1.0, 0.20),
    (f"time after {GATHERED} steps", "time after", 1.0, 0.05),
)
MEDIAN = (-0.005, 0.015)
"""Bounds of the formula's median signed error."""
CARD_80 = 80e9 * 0.97
"""Bytes of an 80 GB card that a plan may take."""
PHASES = ("load", "forward", "backward", "optimizer")

Found = dict[str, Any]


def measured_rows(path: Path) -> list[tuple[Row, Found]]:
    """The rows with what was measured of each, the last where there are several."""
    known = {row.key: row for row in (*every_row(), *tiny_rows())}
    found: dict[str, tuple[Row, Found]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        if "error" not in said:
            found[said["key"]] = known[said["key"]], said
    return list(found.values())


def traced(row: Row, *, wait: bool) -> Found | None:
    """What `luthier plan --exact` takes for the tensors; None where the trace does not follow such a row."""
    from luthier.checks.trace.run import trace_training

    if isinstance(row, Further) and (row.image or row.shard > 1):
        return None
    if not wait:
        return None
    try:
        said = trace_training(ALL[row.model], METHODS[row.method], row.shape, hopper=True, whole=False)
    except LuthierError as error:
        return {"error": str(error)}
    return {"allocated": said.allocated, "phases": {k: sum(v.values()) for k, v in said.phases.items()}}


def kept_traces(path: Path) -> dict[str, Found | None]:
    """The traces that results of another call hold, by the row's key."""
    found: dict[str, Found | None] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        if row["not_traced"]:
            found[row["key"]] = {"error": row["not_traced"]}
        elif (size := row["predicted"]["trace"]) is not None:
            found[row["key"]] = {"allocated": size, "phases": row["phases"]["trace"]}
        else:
            found[row["key"]] = None
    return found


def others(row: Row) -> dict[str, float | None]:
    """What other estimators say, each where it knows such a model."""
    arch, method = architecture(row), METHODS[row.method]
    found: dict[str, float | None] = {"guide C": GUIDE_C[method.name] * 2 * count_parameters(arch).total}
    if isinstance(row, Further) and row.image:
        return found | {"accelerate": None, "Transformer Math": None}
    config = ALL[row.model]
    return found | {
        "accelerate": accelerate_says(config, method, writes=arch.causal),
        "Transformer Math": transformer_math(config, method, row.shape),
    }


def predicted(row: Row, said: Found, trace: Found | None, card: str) -> dict[str, float | None]:
    """Bytes and seconds that are foretold of a row. said: what was measured, of which the time after ten
    steps takes the first ten.
    """
    plan = estimate(row, card=card)
    traced_bytes = None if trace is None else trace.get("allocated")
    return {
        "trace": traced_bytes,
        "formula": formula(row).peak.total,
        **others(row),
        "process": plan.process.expected,
        "process, high": plan.process.high,
        "time before": plan.seconds.expected if plan.seconds is not None else None,
        "time after": left_after(said.get("seconds") or []),
    }


def left_after(seconds: list[float]) -> float | None:
    """Seconds that a run says are left after its first steps."""
    if len(seconds) <= GATHERED:
        return None
    pace = Pace(None, lambda *_: 0)
    for one in seconds[:GATHERED]:
        pace.step({"seconds": one})
    return pace.left({"step": GATHERED, "total_steps": len(seconds)}).expected


def measured(row: Row, said: Found) -> dict[str, float | None]:
    """The figures that predictions are held against. Time of rows that ran alone and were timed."""
    seconds = said.get("seconds") or []
    timed = row.steps > GATHERED and said.get("alone", True)
    context = said.get("context")
    process = None if context is None or said.get("reserved") is None else said["reserved"] + context
    return {
        "tensors": said["allocated"],
        "process": process,
        "step": median(seconds[2:]) if timed else None,
        "left": sum(seconds[GATHERED:]) if timed else None,
    }


AGAINST = {
    **dict.fromkeys(ESTIMATORS, "tensors"), "process": "process", "time before": "step", "time after": "left",
}  # fmt: skip


def result(row: Row, said: Found, trace: Found | None, card: str) -> Found:
    """One row of the results."""
    told, had = predicted(row, said, trace, card), measured(row, said)
    errors = {
        name: told[name] / had[against] - 1  # type: ignore[operator]
        for name, against in AGAINST.items()
        if told.get(name) is not None and had[against]
    }
    step = formula(row)
    return {
        "key": row.key,
        "row": brief(row),
        "model": row.model,
        "family": ALL[row.model]["model_type"],
        "method": row.method,
        "purpose": row.purpose if isinstance(row, Further) else "chat",
        "kind": kind_of(row),
        "keep": row.keep,
        "optimizer": row.optimizer,
        "compiled": row.compiled,
        "devices": row.devices if isinstance(row, Further) else 1,
        "blind": row.blind,
        "measured": had,
        "predicted": told,
        "error": errors,
        "not_traced": (trace or {}).get("error"),
        "phases": {
            "measured": said["phases"],
            "formula": {phase.name: phase.total for phase in step.phases},
            "trace": (trace or {}).get("phases"),
        },
        "parts": {phase.name: phase.parts for phase in step.phases},
        "reserved": said.get("reserved"),
        "context": said.get("context"),
        "alone": said.get("alone", True),
        "out_of_memory": bool(said.get("out_of_memory") or said.get("retries")),
    }


def brief(row: Row) -> str:
    """The row in a few words."""
    words = [row.model, row.method, f"{row.micro} x {row.length:,}"]
    words += [row.keep] * (row.keep != "none") + ["compiled"] * row.compiled
    words += [f"{row.recomputed} layers"] * (row.recomputed is not None)
    words += [f"{row.accumulation} parts"] * (row.accumulation > 1)
    words += [f"{row.documents} documents"] * (row.documents > 1)
    words += [row.optimizer] * (row.optimizer != "adamw")
    if isinstance(row, Further):
        words += [row.purpose] * (row.purpose not in ("chat", "vision"))
        words += [f"{row.texts} texts"] * (row.texts > 1) + ["uneven"] * row.ragged
        words += [f"{row.image} pixels, tower {row.tower}"] * bool(row.image)
        words += [f"2 GPUs, shard {row.shard}"] * (row.devices > 1)
    if isinstance(row, Gathered):
        words.append(f"gathered for a {row.reshard}")
    return " ".join(words)


def bounds(found: list[Found]) -> list[str]:
    """Whether the bounds hold, for seen and blind rows apart."""
    lines = [
        "| what | bound | rows | n | within | mean error | largest | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for what, name, share, far in BOUNDS:
        for blind in (False, True):
            errors = [r["error"][name] for r in found if r["blind"] == blind and name in r["error"]]
            if errors:
                inside = sum(abs(error) <= far for error in errors) / len(errors)
                verdict = "met" if inside >= share else "missed"
                lines.append(
                    f"| {what} | {share:.0%} within {far:.0%} | {_said(blind)} | {len(errors)} | "
                    f"{inside:.0%} | {mean(map(abs, errors)):.2%} | {max(errors, key=abs):+.2%} | {verdict} |"
                )
    for blind in (False, True):
        errors = [r["error"]["formula"] for r in found if r["blind"] == blind]
        if errors:
            middle = median(errors)
            verdict = "met" if MEDIAN[0] <= middle <= MEDIAN[1] else "missed"
            said = f"median signed error {MEDIAN[0]:+.1%} to {MEDIAN[1]:+.1%}"
            lines.append(
                f"| formula | {said} | {_said(blind)} | {len(errors)} | | {middle:+.2%} | | {verdict} |"
            )
    lines.append(_fits(found))
    return lines


def _fits(found: list[Found]) -> str:
    """Rows that a plan for an 80 GB card would let begin: whether they stay within it, and none ran out."""
    planned = [r for r in found if r["predicted"]["process, high"] <= CARD_80]
    over = [
        r for r in planned if r["out_of_memory"] or (r["measured"]["process"] or r["reserved"] or 0) > 80e9
    ]
    verdict = "met" if not over else "missed"
    cells = ("fits 80 GB as planned", "no row beyond", "all", str(len(planned)), f"{len(over)} beyond")
    return f"| {' | '.join(cells)} | | | {verdict} |"


def _said(blind: bool) -> str:
    return "blind" if blind else "seen"


def compared(found: list[Found]) -> list[str]:
    """Every estimator on the same rows."""
    lines = ["| rows | estimator | n | mean error | within 8 % | largest |", "|---|---|---|---|---|---|"]
    for blind in (False, True):
        for name in ESTIMATORS:
            errors = [r["error"][name] for r in found if r["blind"] == blind and name in r["error"]]
            if errors:
                inside = sum(abs(error) <= 0.08 for error in errors) / len(errors)
                far = f"{mean(map(abs, errors)):.1%} | {inside:.0%} | {max(errors, key=abs):+.1%}"
                lines.append(f"| {_said(blind)} | {name} | {len(errors)} | {far} |")
    return lines


def misses(found: list[Found]) -> list[str]:
    """Rows beyond a bound, and the phase and part where they are."""
    limits = {name: far for _, name, _, far in reversed(BOUNDS)}
    lines = ["| rows | row | what | error | where |", "|---|---|---|---|---|"]
    for row in sorted(found, key=lambda r: -max(map(abs, r["error"].values()))):
        for name, far in limits.items():
            error = row["error"].get(name)
            if error is not None and abs(error) > far:
                cells = (_said(row["blind"]), row["row"], name, f"{error:+.1%}", where(row, name))
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def where(row: Found, name: str) -> str:
    """Measured against foretold, phase by phase, with the parts of the phase that is furthest off."""
    if name.startswith("time"):
        return f"{row['measured']['step'] or 0:.3f} s a step"
    if name == "process":
        held = f"reserved {(row['reserved'] or 0) / row['measured']['tensors']:.3f} of the tensors"
        return f"{held}, context {(row['context'] or 0) / 1e6:,.0f} MB"
    had, told = row["phases"]["measured"], row["phases"].get(name) or {}
    off = {phase: told[phase] - had[phase] for phase in PHASES[1:] if phase in told and phase in had}
    if not off:
        return ""
    said = ", ".join(f"{phase} {size / 1e6:+,.0f} MB" for phase, size in off.items())
    worst = max(off, key=lambda phase: abs(off[phase]))
    parts = row["parts"].get(worst, {})
    largest = sorted(parts.items(), key=lambda pair: -pair[1])[:4]
    return f"{said}; {worst} counts " + ", ".join(f"{part} {size / 1e6:,.0f}" for part, size in largest)


def table(found: list[Found]) -> list[str]:
    """Every row."""
    names = ("trace", "formula", "process", "time before", "time after")
    lines = [
        f"| rows | row | tensors, GB | process, GB | s a step | {' | '.join(names)} |",
        "|---|---|---|---|---|" + "---|" * len(names),
    ]
    for row in found:
        had = row["measured"]
        figures = [_gb(had["tensors"]), _gb(had["process"]), "" if not had["step"] else f"{had['step']:.3f}"]
        errors = [f"{row['error'][name]:+.1%}" if name in row["error"] else "" for name in names]
        lines.append(f"| {' | '.join([_said(row['blind']), row['row'], *figures, *errors])} |")
    return lines


def _gb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f}"


def histogram(found: list[Found]) -> str:
    """Errors of formula and trace in steps of one per cent, seen and blind rows apart, as an SVG."""
    wide, tall, least, most = 560, 170, -10, 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {2 * tall + 30}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{2 * tall + 30}" fill="white"/>',
    ]
    for place, name in enumerate(("trace", "formula")):
        floor = (place + 1) * tall
        counts: dict[bool, dict[int, int]] = {}
        for blind in (False, True):
            errors = [r["error"][name] for r in found if r["blind"] == blind and name in r["error"]]
            bins = [max(least, min(most, round(100 * error))) for error in errors]
            counts[blind] = {step: bins.count(step) for step in set(bins)}
        highest = max((n for one in counts.values() for n in one.values()), default=1)
        parts.append(f'<text x="16" y="{floor - tall + 28}">{name}: predicted less measured, %</text>')
        for step in range(least, most + 1):
            x = 30 + (step - least) * 24
            for blind, colour in ((False, "#1f5fa8"), (True, "#c0392b")):
                height = counts[blind].get(step, 0) / highest * (tall - 70)
                left = x + 10 * blind
                parts.append(
                    f'<rect x="{left}" y="{floor - 20 - height:.1f}" width="9" height="{height:.1f}" '
                    f'fill="{colour}"/>'
                )
            edge = {least: f"≤{least}", most: f"≥{most}"}.get(step, str(step))
            parts.append(f'<text x="{x + 9}" y="{floor - 6}" text-anchor="middle">{edge}</text>')
    for place, (said, colour) in enumerate((("seen", "#1f5fa8"), ("blind", "#c0392b"))):
        x = 30 + 80 * place
        parts.append(f'<rect x="{x}" y="{2 * tall + 10}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="{2 * tall + 19}">{said}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


LEAST_DRAWN = 0.32 * 2**30
"""What is foretold below this is drawn here, at the plot's lower edge."""


def plotted(found: list[Found]) -> str:
    """Predicted against measured, as compare.py draws it."""

    def drawn(size: float | None) -> float | None:
        return None if size is None else max(size, LEAST_DRAWN)

    return plot(
        [
            {
                "measured": row["measured"]["tensors"],
                "predicted": {name: drawn(row["predicted"].get(name)) for name in ESTIMATORS},
            }
            for row in found
        ]
    )


def report(found: list[Found], about: Found) -> str:
    """The results as Markdown."""
    blind = sum(row["blind"] for row in found)
    head = f"{len(found)} rows on {about['card']}, {blind} of them blind; torch {about['versions']['torch']}."
    parts = {
        "Bounds": bounds(found),
        "Other estimators": compared(found),
        "Beyond a bound": misses(found),
        "Every row": table(found),
    }
    text = ["# The measured grid", "", head, ""]
    for title, lines in parts.items():
        text += [f"## {title}", "", *lines, ""]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path, nargs="?", default=HERE / "grid.jsonl")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no trace after so many")
    parser.add_argument(
        "--only", nargs="+", default=None, metavar="TEXT",
        help="trace rows whose words hold one of these, and keep what grid_results.json has of the others",
    )  # fmt: skip
    parser.add_argument("--to", type=Path, default=HERE, help="folder of the results")
    parser.add_argument(
        "--card", default="h200", help="what the rows were measured on, as `--hardware` names it"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    began = time.monotonic()
    rows = measured_rows(arguments.measured)
    first = json.loads(arguments.measured.read_text(encoding="utf-8").splitlines()[0])
    about = {name: first[name] for name in ("card", "versions")}
    kept = kept_traces(HERE / "grid_results.json") if arguments.only else {}
    found = []
    for row, said in rows:
        if row.key in kept and not any(text in brief(row) for text in arguments.only):
            trace = kept[row.key]
        else:
            trace = traced(row, wait=time.monotonic() - began < 60 * arguments.minutes)
        found.append(result(row, said, trace, arguments.card))
    here = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    document = {**about, "compared_with": here, "rows": found}
    write = {
        "grid_results.json": json.dumps(document, indent=1) + "\n",
        "grid_results.md": report(found, about),
        "grid_results.svg": plotted(found),
        "grid_errors.svg": histogram(found),
    }
    for name, text in write.items():
        (arguments.to / name).write_text(text, encoding="utf-8")
    print("\n".join([*bounds(found), "", *compared(found), "", *misses(found)]))


if __name__ == "__main__":
    main()

"""What was predicted beside what was measured, and the curves of the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from luthier.runs.report import words
from luthier.runs.report.charts import Chart, Series, chart, smooth
from luthier.runs.report.context import ReportContext
from luthier.schema.base import Range
from luthier.schema.estimate import peak_on

PART_NAMES = {
    "weights": "Weights",
    "adapters": "Adapters",
    "gradients": "Gradients",
    "optimizer": "Optimiser",
    "activations": "Activations",
    "logits": "Logits",
    "buffers": "Buffers",
    "workspace": "Workspace",
    "runtime": "Runtime",
}


STAGE_NAMES = {
    "prepare": "Prepare",
    "baseline": "Baseline",
    "train": "Train",
    "prove": "Prove",
    "ship": "Ship",
    "report": "Report",
}
FAR = 1000
"""Per cent beside a band from which the figure says nothing more, as of times of a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Band:
    """A prediction with its band, and what was measured."""

    label: str
    predicted: str
    band: str
    measured: str
    verdict: str
    kind: str
    low: float
    expected: float
    high: float
    dot: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the predicted memory; share in per cent."""

    label: str
    value: str
    share: float


def bands(context: ReportContext) -> list[Band]:
    """Memory, time and speed: what was predicted, with its band, and what was measured."""
    estimate, train = context.estimate, context.train
    if estimate is None:
        return []
    device = "cpu" if train is None else train.device
    found = [
        _band(
            "Peak memory of tensors" if device.startswith("cuda") else "Peak memory",
            peak_on(estimate, device),
            None if train is None else train.peak_memory,
            words.memory,
        )
    ]
    if estimate.seconds is not None:
        seconds = None if train is None else train.seconds
        found.append(_band("Training time", estimate.seconds, seconds, words.duration))
    if estimate.tokens_per_second is not None:
        found.append(
            _band(
                "Tokens a second",
                estimate.tokens_per_second,
                None if train is None else train.tokens_per_second,
                words.count,
            )
        )
    return found


def _band(label: str, predicted: Range, measured: float | None, show: Callable[[float], str]) -> Band:
    top = max(predicted.high, measured or 0) * 1.12 or 1.0
    verdict, kind = "", "none"
    if measured is not None:
        if predicted.low <= measured <= predicted.high:
            verdict, kind = "within the band", "better"
        else:
            edge = predicted.high if measured > predicted.high else predicted.low
            off = abs(measured / edge - 1) * 100 if edge else 0.0
            side = "above" if measured > predicted.high else "below"
            far = f"{off:.0f} %" if off < FAR else "far"
            verdict, kind = f"{far} {side} the band", "inconclusive"
    return Band(
        label=label,
        predicted=show(predicted.expected),
        band=f"{show(predicted.low)} to {show(predicted.high)}",
        measured="" if measured is None else show(measured),
        verdict=verdict,
        kind=kind,
        low=predicted.low / top * 100,
        expected=predicted.expected / top * 100,
        high=predicted.high / top * 100,
        dot=None if measured is None else measured / top * 100,
    )


def memory_parts(context: ReportContext) -> list[Part]:
    """The parts of the predicted peak, largest first."""
    if context.estimate is None or not context.estimate.phases:
        return []
    peak = context.estimate.peak
    total = peak.total or 1
    parts = sorted(peak.parts.items(), key=lambda item: -item[1])
    return [Part(PART_NAMES[name], words.memory(n), n / total * 100) for name, n in parts if n > 0]


def phase_rows(context: ReportContext) -> list[tuple[str, str, str, str]]:
    """Phase, memory that was predicted and measured, and the difference. Empty on a GPU."""
    found = context.measurement
    if found is None or found.machine.device == "cuda":
        return []  # there the parts are predicted with the context, and measured without it
    rows = []
    for phase, said in found.predicted.phases.items():
        had = found.phases.get(phase)
        if had is not None and said:
            off = (had / said - 1) * 100
            sign = "+" if off >= 0 else words.MINUS
            rows.append((phase, words.memory(said), words.memory(had), f"{sign}{abs(off):.0f} %"))
    return rows


def shortage_rows(context: ReportContext) -> list[str]:
    """Steps that ran out of memory: predictions that failed."""
    if context.measurement is None:
        return []
    return [
        f"Step {s.step} ran out of memory with {s.rows} {s.unit} at once although it was predicted to fit; "
        f"the run went on with {s.now}, at the same batch and loss."
        for s in context.measurement.shortages
    ]


def stage_rows(context: ReportContext) -> list[tuple[str, str, str]]:
    """Stage, wall time, and peak memory of its largest process."""
    status = context.status
    if status is None:
        return []
    return [
        (
            STAGE_NAMES.get(stage, stage),
            words.duration(seconds),
            words.memory(status.peak_memory[stage]) if stage in status.peak_memory else "",
        )
        for stage, seconds in status.seconds.items()
    ]


def curves(context: ReportContext) -> list[Chart]:
    """Loss first, then what else was measured at each step."""
    points = context.points

    def line(name: str) -> list[tuple[float, float]]:
        return [(p.step, value) for p in points if (value := getattr(p, name)) is not None]

    loss, memory = line("loss"), [(x, y / 2**30) for x, y in line("memory")]
    many = len(loss) > 30
    losses = [
        Series("train, each step" if many else "train", loss, "base" if many else "tuned", faint=many),
        *([Series("train, smoothed", smooth(loss), "tuned")] if many else []),
        Series("validation", line("validation_loss"), "eval", dots=True),
    ]
    charts = [
        chart("Loss", losses, unit="nats a token"),
        chart("Learning rate", [Series("learning rate", line("learning_rate"), "third")], from_zero=True),
        chart("Gradient norm", [Series("gradient norm", line("grad_norm"), "third")], from_zero=True),
        chart("Tokens a second", [Series("tokens/s", line("tokens_per_second"), "third")], from_zero=True),
        chart("Memory, GiB", [Series("memory", memory, "third")], unit="GiB", from_zero=True),
    ]
    return [c for c in charts if c is not None]

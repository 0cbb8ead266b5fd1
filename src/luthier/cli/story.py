"""The stages of a run as a person reads them. Each function prints one stage from its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Group
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from luthier.cli.console import duration, memory, out, size
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate, peak_on
from luthier.schema.hardware import Hardware
from luthier.schema.measurement import Measurement
from luthier.schema.recipe import Recipe
from luthier.schema.results import (
    Artifact,
    Comparison,
    Difference,
    EvalResult,
    Floor,
    Metric,
    ParityCheck,
    Quality,
    TrainResult,
)
from luthier.schema.run import Changed, Correction, Origin, Status

VERDICTS = {
    "better": ("better", "green"),
    "worse": ("worse", "red"),
    "inconclusive": ("no clear difference", "yellow"),
}
LEAST = 1.0
"""Seconds of a prediction from which the distance to it says something."""


def heading(number: int | None, title: str, sentence: str = "") -> None:
    """Open a stage: a rule with its number and what it is for."""
    text = Text()
    if number is not None:
        text.append(f"{number} ", style="bold cyan")
    text.append(title, style="bold")
    if sentence:
        text.append(f"  {sentence}", style="dim")
    out().print()
    out().print(Rule(text, align="left", style="cyan"))


def grid(rows: Sequence[tuple[str, str | Text]]) -> Padding:
    """Facts as two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return Padding(table, (0, 0, 0, 2))


def columns(*heads: str, numbers: Sequence[int] = (), gap: int = 2) -> Table:
    """A plain table; columns in ``numbers`` are right-aligned. gap: half the space between two columns."""
    table = Table(box=None, pad_edge=False, padding=(0, gap), header_style="dim")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index in numbers else "left")
    return table


def show_hardware(hardware: Hardware, allows: str) -> None:
    """What the machine has, and what that allows."""
    cpu = hardware.processor
    rows: list[tuple[str, str | Text]] = [
        ("CPU", f"{cpu.name}, {cpu.cores} cores, {'native' if cpu.bf16 else 'no native'} bf16"),
        ("RAM", f"{memory(hardware.memory_free)} free of {memory(hardware.memory_total)}"),
    ]
    for gpu in hardware.accelerators:
        held = f", held by {', '.join(h.name for h in gpu.holders)}" if gpu.holders else ""
        rows.append(
            (
                f"GPU {gpu.index}",
                f"{gpu.name}: {memory(gpu.memory_free)} free of {memory(gpu.memory_total)}{held}",
            )
        )
    if not hardware.accelerators:
        rows.append(("GPU", "none found"))
    if hardware.disk_free is not None:
        rows.append(("Disk", f"{size(hardware.disk_free)} free"))
    shown = ("python", "torch", "transformers", "peft", "luthier")
    versions = "  ".join(f"{k} {hardware.versions[k]}" for k in shown if k in hardware.versions)
    rows.append(("Versions", versions))
    rows.append(("Allows", Text(allows, style="bold")))
    out().print(grid(rows))


def show_plan(recipe: Recipe, estimate: Estimate) -> None:
    """Every derived value with its source, then memory by part and time."""
    table = columns("setting", "value", "because")
    values = recipe.model_dump(mode="json")
    for key, source in recipe.sources.items():
        value: object = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, dict):
            value = ", ".join(f"{name} {one}" for name, one in value.items() if one not in {None, 1})
        table.add_row(key, Text(str(value), style="bold"), Text(source, style="dim"))
    out().print(Padding(table, (0, 0, 0, 2)))
    show_estimate(estimate)


def show_estimate(estimate: Estimate) -> None:
    """Predicted memory by part and time, each with its band."""
    peak = estimate.peak
    parts = "  ".join(
        f"{name} {memory(n)}" for name, n in sorted(peak.parts.items(), key=lambda p: -p[1]) if n > 2**20
    )
    rows: list[tuple[str, str | Text]] = [
        (
            "Predicted peak",
            Text(f"{memory(estimate.process.expected)}", style="bold").append(
                f"  ({memory(estimate.process.low)} to {memory(estimate.process.high)})"
                f", in {peak.name}: {parts}",
                style="not bold",
            ),
        )
    ]
    if estimate.seconds is not None:
        rows.append(
            (
                "Predicted time",
                Text(duration(estimate.seconds.expected), style="bold").append(
                    f"  ({duration(estimate.seconds.low)} to {duration(estimate.seconds.high)}) for training",
                    style="not bold",
                ),
            )
        )
    share = estimate.trainable_parameters / max(1, estimate.total_parameters)
    rows.append(
        (
            "Trains",
            f"{estimate.trainable_parameters:,} of {estimate.total_parameters:,} parameters ({share:.2%})",
        )
    )
    out().print()
    out().print(grid(rows))


def score(metric: Metric) -> str:
    """A score with its interval: shares as percentages, other scores as they are."""
    if 0 <= metric.low <= metric.high <= 1:
        return f"{metric.value:.1%}  [{metric.low:.1%}, {metric.high:.1%}]"
    return f"{metric.value:.3f}  [{metric.low:.3f}, {metric.high:.3f}]"


def show_scores(results: Mapping[str, EvalResult]) -> None:
    """One model on every split."""
    table = columns("split", "metric", "score  [95 % interval]", "rows", numbers=(3,))
    for split, result in results.items():
        for name, metric in result.metrics.items():
            style = "bold" if name == result.primary else ""
            table.add_row(split, Text(name, style=style), Text(score(metric), style=style), str(metric.n))
    out().print(Padding(table, (0, 0, 0, 2)))


def show_training(result: TrainResult, estimate: Estimate | None) -> None:
    """What the training did, predicted against measured."""
    seconds = memory_range = None
    if estimate is not None:
        seconds, memory_range = estimate.seconds, peak_on(estimate, result.device)
    rows: list[tuple[str, str | Text]] = [
        ("Loss", f"{result.first_loss:.3f} → {result.last_loss:.3f}"),
    ]
    if result.best_validation_loss is not None:
        rows.append(("Validation", f"best {result.best_validation_loss:.4f} at step {result.best_step}"))
    epochs = "epoch" if result.epochs == 1 else "epochs"
    rows += [
        ("Steps", f"{result.steps} ({result.epochs:g} {epochs}), {result.tokens:,} tokens"),
        ("Speed", f"{result.tokens_per_second:,.0f} tokens/s on {result.device} in {result.dtype}"),
        ("Time", f"{duration(result.seconds)}{_against(result.seconds, seconds, duration)}"),
        ("Peak memory", f"{memory(result.peak_memory)}{_against(result.peak_memory, memory_range, memory)}"),
    ]
    out().print(grid(rows))


def show_origin(origin: Origin) -> None:
    """Where a run comes from and what was changed."""
    words = {
        "clone": "a new run with the recipe of",
        "extend": "goes on from",
        "branch": "branches from",
        "warm-start": "starts from the adapter of",
        "sweep": "a trial of the sweep",
    }
    at = "" if origin.step is None else f" at step {origin.step}"
    out().print(Text(f"  {words[origin.kind]} {origin.parent}{at}"), soft_wrap=True)
    if origin.rule:
        out().print(Text(f"  {origin.rule}", style="dim"), soft_wrap=True)
    show_changes(origin.changed)


def show_changes(changed: Mapping[str, Changed], one: str = "before", other: str = "now") -> None:
    """Settings that differ, each with both values."""
    if not changed:
        return
    table = columns("setting", one, other)
    for key, change in changed.items():
        table.add_row(Text(key, style="bold"), Text(change.before or "–"), Text(change.after or "–"))
    out().print(Padding(table, (0, 0, 0, 2)))


def show_measurement(found: Measurement) -> None:
    """Memory by phase and time, predicted beside measured."""
    table = columns("", "predicted", "measured", "difference", numbers=(1, 2, 3))
    on_gpu = found.machine.device == "cuda"
    for phase, said in found.predicted.phases.items():
        if (had := found.phases.get(phase)) is not None and not on_gpu:
            table.add_row(f"memory, {phase}", memory(said), memory(had), f"{had / said - 1:+.0%}")
    peak = peak_on(found.predicted, found.machine.device).expected
    name = "peak of tensors" if on_gpu else "peak of training"
    table.add_row(name, memory(peak), memory(found.peak), f"{found.peak / peak - 1:+.0%}")
    spent = found.seconds + found.validation_seconds
    if (seconds := found.predicted.seconds) is not None:
        words = duration(seconds.expected), duration(spent), _off(spent, seconds.expected)
        table.add_row("training and validation", *words)
    out().print(Padding(table, (0, 0, 0, 2)))
    for shortage in found.shortages:
        out().print(
            f"  [yellow]step {shortage.step} ran out of memory with {shortage.rows} {shortage.unit} at once: "
            f"a prediction that failed; it went on with {shortage.now}[/]"
        )


def correction_words(found: Correction) -> str:
    """What the first steps make of the prediction, in one line."""

    def beside(now: Range, said: Range | None, words: Callable[[float], str]) -> str:
        was = "" if said is None else f", predicted {words(said.expected)}"
        return f"{words(now.expected)} ({words(now.low)} to {words(now.high)}{was})"

    return (
        f"after {found.step} steps: {beside(found.seconds, found.predicted_seconds, duration)} in all, "
        f"peak memory {beside(found.memory, found.predicted_memory, memory)}"
    )


def _against(measured: float, predicted: Range | None, words: Callable[[float], str]) -> str:
    if predicted is None:
        return ""
    off = _off(measured, predicted.expected)
    return f"  (predicted {words(predicted.expected)}{off and f', {off}'})"


def _off(measured: float, predicted: float) -> str:
    """How far a measured figure is from its prediction; nothing where that is nearly nothing."""
    return f"{measured / predicted - 1:+.0%}" if predicted >= LEAST else ""


def show_result(result: EvalResult) -> None:
    """One model's scores on one split, each with its interval."""
    out().print(
        f"{result.model} on {result.split}: {len(result.rows)} rows in {duration(result.seconds)}",
        highlight=False,
    )
    table = columns("metric", "score", "95 % interval", numbers=(1,))
    for name, metric in result.metrics.items():
        share = 0 <= metric.low <= metric.high <= 1
        ends = f"{metric.low:.1%} to {metric.high:.1%}" if share else f"{metric.low:.3f} to {metric.high:.3f}"
        table.add_row(Text(name, style="bold" if name == result.primary else ""), score_words(metric), ends)
    out().print(Padding(table, (0, 0, 0, 2)))
    if result.cut_off:
        out().print(f"  {result.cut_off} answers ended at the longest length allowed", style="dim")


def show_comparisons(comparisons: Sequence[Comparison], floors: Sequence[Floor] = ()) -> None:
    """Baseline against tuned on every split, with the verdict, and against what costs no training."""
    from luthier.runs.report.words import doubt

    for comparison in comparisons:
        out().print(Text(f"  {comparison.split}, {comparison.main.delta.n} rows", style="dim"))
        table = columns("metric", "baseline", "tuned", "difference  [interval]", "verdict", gap=1)
        for difference in comparison.differences:
            words, colour = VERDICTS[difference.verdict]
            primary = difference.metric == comparison.primary
            table.add_row(
                Text(difference.metric, style="bold" if primary else ""),
                score_words(difference.baseline),
                Text(score_words(difference.tuned), style="bold" if primary else ""),
                delta_words(difference, unit=""),
                Text(words, style=colour),
            )
        out().print(Padding(table, (0, 0, 0, 2)))
    for comparison in comparisons:
        words, colour = VERDICTS[comparison.verdict]
        main = comparison.main
        shown = words if comparison.verdict == "inconclusive" else f"the tuned model is {words}"
        out().print(
            Text(f"  {comparison.split}: ")
            .append(shown, style=f"bold {colour}")
            .append(f" ({main.metric}; {main.improved} rows improved, {main.regressed} got worse)")
        )
        if (why := doubt(main)) is not None:
            out().print(Padding(Text(why, style="dim"), (0, 0, 0, 4)))
    for floor in floors:
        words, colour = VERDICTS[floor.comparison.verdict]
        main = floor.comparison.main
        out().print(
            Text(f"  against {floor.label.removeprefix('floor: ')}: ")
            .append(words, style=colour)
            .append(f" ({score_words(main.baseline)} -> {score_words(main.tuned)} on {main.delta.n} rows)")
        )


def show_abilities(comparisons: Sequence[Comparison]) -> None:
    """General ability before and after in a line, and what was lost of it as a warning."""
    if not comparisons:
        return
    from luthier.evaluation.probe import broken

    parts = [f"{c.split} {score_words(c.main.baseline)} -> {score_words(c.main.tuned)}" for c in comparisons]
    lost = broken(comparisons)
    said = "" if lost else " (no loss beyond doubt)"
    out().print(f"  general ability: {', '.join(parts)}{said}", style="dim", highlight=False)
    for split, difference in lost:
        out().print(
            Text("  warning: ", style="bold yellow").append(
                f"the tuning cost general ability: {difference.metric} on {split} "
                f"{score_words(difference.baseline)} -> {score_words(difference.tuned)}, "
                f"{delta_words(difference)}",
                style="yellow",
            )
        )


def score_words(metric: Metric) -> str:
    """A score alone: a share as a percentage, another as it is."""
    return f"{metric.value:.1%}" if 0 <= metric.low <= metric.high <= 1 else f"{metric.value:.3f}"


def delta_words(difference: Difference, *, unit: str = " points") -> str:
    """A difference with its interval: of shares in points of 100."""
    d = difference.delta
    if difference.tuned.high <= 1 and difference.baseline.low >= 0:
        return f"{d.value * 100:+.1f}{unit}  [{d.low * 100:+.1f}, {d.high * 100:+.1f}]"
    return f"{d.value:+.3f}  [{d.low:+.3f}, {d.high:+.3f}]"


def show_samples(baseline: EvalResult, tuned: EvalResult, count: int) -> None:
    """A few prompts with the expected answer and both models' answers."""
    after = {row.id: row for row in tuned.rows}
    for row in baseline.rows[:count]:
        answer = after.get(row.id)
        if answer is None:
            continue
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("expected", Text(row.expected))
        table.add_row("before", Text(_clip(row.answer), style="yellow"))
        table.add_row(
            "after", Text(_clip(answer.answer), style="green" if answer.answer == row.expected else "")
        )
        out().print(Padding(Panel(Group(Text(row.prompt), Text(), table), border_style="dim"), (0, 0, 0, 2)))


def _clip(text: str, most: int = 400) -> str:
    text = text.strip() or "(nothing)"
    return text if len(text) <= most else f"{text[:most]} …"


def show_artifacts(artifacts: Sequence[Artifact], root: Path) -> None:
    """What was written, how large, whether it answers like the trained model, and what it costs."""
    from luthier.evaluation.exported import recommended

    checked = any(artifact.parity for artifact in artifacts)
    heads = ["artifact", "size", *(("same prompts", "same tokens", "KL", "check") if checked else ())]
    table = columns(*heads, numbers=range(1, 5), gap=1)
    for artifact in artifacts:
        table.add_row(artifact.kind, size(artifact.bytes), *(_parity(artifact.parity) if checked else ()))
    out().print(Padding(table, (0, 0, 0, 2)))
    for artifact in artifacts:
        for problem in artifact.parity.problems if artifact.parity else ():
            out().print(Text(f"  {artifact.kind}: {problem}", style="red"), soft_wrap=True)
    judged = [(artifact.kind, artifact.quality) for artifact in artifacts if artifact.quality]
    if judged:
        first = judged[0][1]
        heads = ["", "score", "to the trained model", "gain kept", "perplexity", "tokens/s"]
        table = columns(*heads, numbers=range(1, 6), gap=1)
        for kind, quality in judged:
            table.add_row(kind, *_quality(quality))
        out().print()
        out().print(Text(f"  {first.metric} on {first.score.n} rows of {first.split}", style="dim"))
        out().print(Padding(table, (0, 0, 0, 2)))
    if (best := recommended(artifacts)) is not None:
        out().print(f"  to use: [bold]{best[0].kind}[/], {best[1]}", highlight=False)
    out().print(f"  [dim]in[/] {root}", soft_wrap=True)


def _parity(parity: ParityCheck | None) -> list[str]:
    """Prompts with equal token ids, equal greedy tokens, divergence in nats, the check's outcome."""
    if parity is None:
        return [""] * 4
    return [
        f"{parity.equal_token_ids}/{parity.prompts}",
        f"{parity.equal_tokens}/{parity.compared_tokens}",
        "" if parity.mean_kl is None else f"{parity.mean_kl:.4f}",
        "[green]passed[/]" if parity.passed else "[red]failed[/]",
    ]


def _quality(quality: Quality) -> list[str]:
    """Score on held-out rows, its distance to the trained model, gain kept, perplexity, speed."""
    d, share = quality.difference, 0 <= quality.score.low <= quality.score.high <= 1
    scale, places = (100, 1) if share else (1, 3)
    ends = f"[{d.low * scale:+.{places}f}, {d.high * scale:+.{places}f}]"
    return [
        score_words(quality.score),
        f"{d.value * scale:+.{places}f} {ends}",
        "" if quality.kept is None else f"{quality.kept:.0%}",
        "" if quality.perplexity is None else f"{quality.perplexity:.3f}",
        "" if quality.tokens_per_second is None else f"{quality.tokens_per_second:.0f}",
    ]


def show_times(status: Status) -> None:
    """Where time and memory went."""
    table = columns("stage", "time", "largest process", numbers=(1, 2))
    for stage, seconds in status.seconds.items():
        table.add_row(stage, duration(seconds), memory(status.peak_memory.get(stage, 0)))
    if status.seconds:
        table.add_row(
            Text("all", style="bold"),
            Text(duration(sum(status.seconds.values())), style="bold"),
            Text(memory(max(status.peak_memory.values(), default=0)), style="bold"),
        )
    out().print(Padding(table, (0, 0, 0, 2)))


def show_next(commands: Sequence[tuple[str, str]]) -> None:
    """What to try now: a command is on one line and whole, so that it can be copied."""
    widest = max((len(command) for command, _ in commands), default=0)
    beside = all(2 + widest + 2 + len(why) <= out().width for _, why in commands)
    for command, why in commands:
        line = Text("  ").append(command.ljust(widest) if beside else command, style="bold cyan")
        line.append("  " if beside else "\n      ").append(why, style="dim")
        out().print(line, soft_wrap=True)

"""The head of the report: what the run is, what it came to, and its first figures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from luthier.evaluation.probe import broken
from luthier.runs.report import words
from luthier.runs.report.context import ReportContext
from luthier.schema.recipe import Full, QLora


@dataclass(frozen=True, slots=True)
class Banner:
    """What the run came to, in a few words."""

    kind: str
    """better, worse, inconclusive, mixed or none."""
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """One measured figure at the head of the page."""

    label: str
    value: str
    note: str = ""


def when(context: ReportContext) -> str:
    """The day and time of the run's start, in UTC."""
    if context.created is None:
        return ""
    return datetime.fromtimestamp(context.created, UTC).strftime("%Y-%m-%d %H:%M UTC")


def name_of(context: ReportContext) -> str:
    """What the run is called."""
    return context.recipe.name or context.run_id


def method_name(context: ReportContext) -> str:
    """The method with what sets it apart: LoRA rank 16."""
    method = context.recipe.method
    if isinstance(method, Full):
        return "full fine-tuning"
    label = "QLoRA" if isinstance(method, QLora) else "LoRA"
    return f"{label} rank {method.rank}{', DoRA' if method.dora else ''}{', rsLoRA' if method.rslora else ''}"


def banner(context: ReportContext) -> Banner:
    """The verdict over all splits, or why there is none."""
    found = context.comparisons
    status = context.status
    if not found:
        if status is not None and status.failure is not None:
            failure = status.failure
            why = (words.clean(failure.message, 600), words.clean(failure.hint or "", 600))
            return Banner("worse", "The run failed", tuple(s for s in why if s))
        if status is not None and status.state in ("stopped", "lost", "stopping"):
            return Banner("none", "The run stopped early", ("Nothing was proved yet.",))
        return Banner("none", "Not proved yet", ("No held-out rows were judged before and after.",))
    kinds = {c.verdict for c in found}
    headlines = {
        "better": "The tuning helped",
        "worse": "The tuning made it worse",
        "inconclusive": "No clear difference",
    }
    kind: str
    if len(kinds) == 1:
        kind, headline = found[0].verdict, headlines[found[0].verdict]
    else:
        kind = "worse" if "worse" in kinds else "mixed"
        headline = "; ".join(f"{c.split}: {words.VERDICTS[c.verdict]}" for c in found)
    said: list[str] = []
    for comparison in found:
        said.append(words.sentence(comparison.main, comparison.split))
        said.append(words.doubt(comparison.main) or "")
        worse = [d for d in comparison.differences if d.verdict == "worse" and d.metric != comparison.primary]
        if worse:
            names = ", ".join(words.in_sentence(d.metric) for d in worse)
            said.append(f"Worse on {comparison.split} by another measure: {names}.")
    said += [words.floor_sentence(floor) for floor in context.floors if floor.comparison.verdict != "better"]
    # What was broken stands first: it is what nobody asked for. One sentence a split; the table has the rest.
    worst = dict(reversed(broken(context.abilities)))
    if worst:
        headline, kind = f"{headline}, and it broke something else", "worse" if kind == "worse" else "mixed"
    order = [c.split for c in context.abilities if c.split in worst]
    lost = [words.broken_sentence(split, worst[split]) for split in order]
    return Banner(kind, headline, tuple(s for s in (*lost, *said) if s))


def tiles(context: ReportContext) -> list[Tile]:
    """Up to six figures for a first look."""
    found = []
    if context.comparisons:
        main = context.comparisons[0].main
        share = words.is_share(main.metric, main.baseline)
        for label, metric in (("Base model", main.baseline), ("Tuned model", main.tuned)):
            found.append(Tile(label, words.score(main.metric, metric.value, share=share), main_note(context)))
        low, high = (words.signed(x, share=share) for x in (main.delta.low, main.delta.high))
        found.append(Tile("Difference", words.signed(main.delta.value, share=share), f"{low} to {high}"))
    if context.train is not None:
        train = context.train
        found.append(Tile("Training", words.duration(train.seconds), f"{train.steps:,} steps"))
        found.append(Tile("Peak memory", words.memory(train.peak_memory), memory_kind(context)))
    ggufs = [a for a in context.artifacts if a.kind.startswith("gguf:")]
    if ggufs:
        least = min(ggufs, key=lambda a: a.bytes)
        found.append(Tile("Smallest file", words.size(least.bytes), least.kind.removeprefix("gguf:")))
    return found


def main_note(context: ReportContext) -> str:
    """Which metric and split the first tiles show."""
    comparison = context.comparisons[0]
    return f"{words.in_sentence(comparison.primary)}, {comparison.split}"


def memory_kind(context: ReportContext) -> str:
    """What the peak memory of training counts."""
    return "resident" if context.train is not None and context.train.device.startswith("cpu") else "tensors"

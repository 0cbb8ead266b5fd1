"""A recommendation in words and tables."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.text import Text

from luthier.cli.console import duration, memory, out, size
from luthier.cli.models import count, narrow, plain
from luthier.schema.plan import REJECTION_WORDS

if TYPE_CHECKING:
    from luthier.schema.plan import Candidate, Plan

KINDS = REJECTION_WORDS
MARKS = {"published": "", "converted": "~", "prior": "?"}
FEW = 4
"""Rejected models named in each group, the rest is counted."""


def show_ranking(plan: Plan, *, explain: bool) -> None:
    """The ranked pairs, and with explain what each score adds up from."""
    short = narrow()
    heads = ["", "model", "method", "params", "memory", "time", "quality"] + (
        [] if short else ["score", "licence"]
    )
    rows: list[list[str]] = []
    for c in plan.candidates:
        seconds = c.estimate.seconds
        cells = [
            str(c.rank),
            c.weights.rsplit("/", 1)[-1] if short else c.weights,
            c.method.name,
            count(c.card.total),
            memory(c.needed),
            "?" if seconds is None else about(seconds.expected),
            f"{MARKS[c.evidence.basis]}{c.evidence.index:.0f}",
        ]
        rows.append(cells if short else [*cells, f"{c.score:.1f}", c.card.licence])
    out().print()
    plain(heads, rows, right=(0, 3, 4, 5, 6, 7), bold=0)
    out().print("  quality: ~ converted from another benchmark, ? placed by size and date", style="dim")
    more = plan.total_candidates - len(plan.candidates)
    if more > 0:
        out().print(f"  and {more} more that fit; --all shows them", style="dim")
    if explain:
        _explain(plan)


def about(seconds: float) -> str:
    """A time in two figures: 40 s, 47 min, 1.5 h, 3.2 days."""
    for unit, length, most in (("s", 1.0, 90.0), ("min", 60.0, 90.0), ("h", 3_600.0, 48.0)):
        if seconds < most * length:
            value = seconds / length
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _explain(plan: Plan) -> None:
    out().print("\nWhat each score adds up from", style="bold")
    for c in plan.candidates:
        parts = ", ".join(f"{part.name} {part.points:+.1f}" for part in c.parts)
        out().print(f"  {c.rank} {c.weights}: {parts} = {c.score:.1f}", soft_wrap=True)
        for part in c.parts:
            out().print(f"      {part.name}: {part.why}", style="dim", soft_wrap=True)


def show_best(c: Candidate) -> None:
    """The first candidate in full."""
    out().print(f"\n1 {c.weights}, {c.method.name}", style="bold", soft_wrap=True)
    for reason in c.reasons:
        source = f"  [{reason.source}]" if reason.source else ""
        out().print(Text(f"  {reason.kind}: {reason.text}{source}"), soft_wrap=True)
    for line in c.alternatives:
        out().print(f"  method: {line}", soft_wrap=True)
    for line in c.warnings:
        out().print(Text(f"  ! {line}", style="yellow"), soft_wrap=True)
    for line in c.duties:
        out().print(Text(f"  duty: {line}"), soft_wrap=True)
    _memory(c)
    _settings(c)
    _serving(c)


def _memory(c: Candidate) -> None:
    peak = c.estimate.peak
    out().print(
        f"\n  Memory at the peak ({peak.name}): {memory(c.estimate.process.expected)}, "
        f"{memory(c.estimate.process.low)} to {memory(c.estimate.process.high)}; "
        f"{memory(c.spare)} to spare of {memory(c.budget)}",
        soft_wrap=True,
    )
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])
    out().print("    " + "  ".join(f"{name} {memory(n)}" for name, n in parts if n > 2**20), soft_wrap=True)
    if c.estimate.seconds is not None:
        band = c.estimate.seconds
        cost = c.estimate.cost
        money = "" if cost is None else f", ${cost.expected:,.2f} (${cost.low:,.2f} to ${cost.high:,.2f})"
        out().print(
            f"  Time: {duration(band.expected)}, {duration(band.low)} to {duration(band.high)}{money} for "
            f"{c.batch.rows:,} rows x {c.batch.epochs:g} epochs ({c.batch.source})",
            soft_wrap=True,
        )
    for line in c.estimate.assumptions:
        out().print(f"    assumed: {line}", style="dim", soft_wrap=True)


def _settings(c: Candidate) -> None:
    out().print()
    rows = [[setting.name, f"{setting.value}", setting.source] for setting in c.settings]
    plain(("setting", "value", "because"), rows, right=(1,))


def _serving(c: Candidate) -> None:
    served = c.serving
    if served is None:
        return
    verdict = "fits" if served.fits else "does not fit"
    rate = served.tokens_per_second
    speed = (
        "" if rate is None else f", about {rate.expected:.0f} tokens/s ({rate.low:.0f} to {rate.high:.0f})"
    )
    out().print(
        f"\n  Serving: {served.runtime}, {served.quantisation}, {served.context:,} tokens x {served.slots}: "
        f"{size(served.weights)} weights + {memory(served.cache)} cache = {memory(served.total)}, "
        f"{verdict} in {memory(served.available)}{speed}",
        soft_wrap=True,
    )
    if served.note:
        out().print(f"    {served.note}", style="dim", soft_wrap=True)


def show_guides(plan: Plan) -> None:
    """The three public guides' answers, one line each."""
    if not plan.guides:
        return
    out().print("\nThe public guides would say", style="bold")
    for guide in plan.guides:
        marks = f"  ✗ {'; '.join(guide.wrong)}" if guide.wrong else ""
        out().print(Text(f"  {guide.guide}: {guide.answer} ({guide.rule}){marks}"), soft_wrap=True)


def show_methods() -> None:
    """Guide C's table of methods beside the measured one, row by row."""
    from luthier.planning.recommend.claims import WORDS, measured_how, method_claims

    out().print("\nMethods, as guide C has them and as measured", style="bold")
    out().print(f"  {measured_how()}", style="dim", soft_wrap=True)
    for claim in method_claims():
        out().print(Text(f"  {claim.about}: {claim.finding}"), soft_wrap=True)
        for name, measured in claim.measured.items():
            says = f"guide: {claim.guide[name]}; " if name in claim.guide else ""
            out().print(Text(f"    {WORDS[name]}: {says}measured: {measured}", style="dim"), soft_wrap=True)


def show_rejected(plan: Plan, *, everything: bool) -> None:
    """What was left out, grouped by reason."""
    if not plan.rejected:
        return
    out().print(f"\nLeft out: {len(plan.rejected)} models", style="bold")
    counts = Counter(r.kind for r in plan.rejected)
    for kind, number in counts.most_common():
        group = [r for r in plan.rejected if r.kind == kind]
        out().print(f"  {KINDS[kind]}: {number}")
        if kind == "purpose" and not everything:
            continue
        for r in group if everything else group[:FEW]:
            source = f"  [{r.source}]" if r.source and r.source != "formula" else ""
            out().print(Text(f"    {r.model}: {r.reason}{source}", style="dim"), soft_wrap=True)
        if not everything and number > FEW:
            out().print(f"    and {number - FEW} more", style="dim")

"""Findings and profiles of data as tables."""

from __future__ import annotations

from pathlib import Path

from rich.padding import Padding
from rich.text import Text

from luthier.cli.console import out
from luthier.cli.follow import BLOCKS
from luthier.cli.story import columns, grid
from luthier.schema.data import CheckReport, DataProfile, Lengths

_RARE = 0.005
"""Share of a language that is a slip of the guess as often as not."""
COLOURS = {"error": "bold red", "warning": "yellow", "info": "dim"}


def show_findings(report: CheckReport, *, recipe: Path | None = None, fixed: bool = False) -> None:
    """All findings, worst first, then what was kept and dropped.

    recipe: what the data were checked for; fixed: whether the rows that can be used were written.
    """
    order = ("error", "warning", "info")
    for finding in sorted(report.findings, key=lambda f: order.index(f.level)):
        where = f"{finding.file}:{finding.line}" if finding.line is not None else (finding.file or "")
        line = Text(f"{finding.level} ", style=COLOURS[finding.level])
        line.append(f"[{finding.code}] ", style="dim not bold")
        line.append(finding.message, style="default not bold")
        if finding.count > 1:
            line.append(f" ({finding.count:,} rows)", style="dim not bold")
        out().print(line, soft_wrap=True)
        details = [("at", where), ("sample", finding.sample or ""), ("do", finding.fix or "")]
        out().print(grid([(name, Text(value)) for name, value in details if value]))
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
    rows = f"{report.read:,} read = {report.kept:,} kept + {sum(report.dropped.values()):,} dropped"
    facts: list[tuple[str, str | Text]] = [
        ("rows", rows + (f" ({dropped})" if dropped else "")),
        ("format", report.format),
    ]
    if report.tokens is not None:
        facts.append(("tokens", lengths(report.tokens)))
    if report.histogram:
        most = max(rows for _, rows in report.histogram)
        bars = "".join(BLOCKS[min(7, int(rows / most * 7.999))] for _, rows in report.histogram)
        facts.append(("lengths", f"{bars}  up to {report.histogram[-1][0]:,} tokens"))
    facts.append(("read in", f"{report.seconds:.1f} s ({report.megabytes:.1f} MB of text)"))
    if recipe is not None:
        facts.append(("checked for", str(recipe)))
    facts.append(("verdict", _verdict(report, fixed=fixed)))
    out().print(grid(facts))


def _verdict(report: CheckReport, *, fixed: bool) -> Text:
    """What the findings mean for a training."""
    errors = len(report.errors)
    warnings = sum(finding.level == "warning" for finding in report.findings)
    beside = f"; {several(warnings, 'warning')} to look at" if warnings else ""
    if not errors:
        return Text(f"nothing stops a training{beside}", style="green")
    fix = "; --fix OUT writes the rows that can be used" if report.kept and not fixed else ""
    fix = "; the file that was written is without them" if report.kept and fixed else fix
    stops = "stops" if errors == 1 else "stop"
    return Text(f"{several(errors, 'error')} {stops} a training{beside}{fix}", style="red")


def several(count: int, what: str) -> str:
    """A number of things: 1 row, 2 rows."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def lengths(found: Lengths) -> str:
    """Quantiles in one line."""
    return (
        f"{found.total:,} in all; median {found.median:,}, 90 % up to {found.p90:,}, "
        f"99 % up to {found.p99:,}, longest {found.maximum:,}"
    )


def show_profile(profile: DataProfile) -> None:
    """A data profile as facts and shares."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in profile.dropped.items())
    rows = f"{profile.rows:,} ({profile.format})"
    if dropped:
        rows += f"; {profile.read:,} read, the others cannot be used: {dropped}"
    facts = [("rows", rows), ("tokens a row", lengths(profile.tokens))]
    if profile.answer_tokens.total:
        facts.append(("answers", lengths(profile.answer_tokens)))
    out().print(grid([*facts, ("counted by", profile.basis)]))
    table = columns("what", "share", numbers=(1,))
    rare = [name for name, share in profile.languages.items() if share < _RARE]
    for name, share in (*profile.languages.items(), *profile.structure.items()):
        if name not in rare:
            table.add_row(name, f"{share:.0%}")
    if rare:
        table.add_row(f"less than 1 %: {', '.join(rare)}", "")
    out().print(Padding(table, (1, 0, 0, 2)))

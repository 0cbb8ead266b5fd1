"""What judging models said of this run's answers."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.evaluation.judge import doubts
from luthier.runs.report import words
from luthier.runs.report.context import ReportContext
from luthier.schema.judgement import JudgedRow, Judgement

SHOWN = 3
"""Rows with the judge's reasons that are listed of each judgement."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A prompt with both answers and why the judge preferred one of them."""

    prompt: str
    first: str
    second: str
    preferred: str
    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One judgement for people."""

    split: str
    judge: str
    first: str
    second: str
    criteria: str
    wins: str
    """How often each was preferred, and the ties."""
    rate: str
    rate_interval: str
    verdict: str
    kind: str
    p: str
    agreement: str
    cost: str
    doubts: tuple[str, ...]
    reasons: tuple[Reason, ...]


def judged(context: ReportContext) -> list[Judged]:
    """Every judgement kept in the run's folder, oldest first."""
    return [_judged(one) for one in context.judgements]


def _judged(found: Judgement) -> Judged:
    rate, agreement = found.win_rate, "nothing was asked"
    if found.agreement is not None:
        agreement = f"{found.agreement.value:.0%} of {found.agreement.n} rows"
        if found.shown_first is not None:
            agreement += f"; what stood first preferred {found.shown_first.value:.0%} of the time"
    cost = f"{found.asked} questions, {found.cached} from the cache"
    if found.prompt_tokens is not None:
        cost += f"; {found.prompt_tokens:,} tokens read, {found.completion_tokens:,} written"
    if found.cost is not None:
        cost += f": ${found.cost:.4f}"
    told = [row for row in found.rows if row.outcome in ("first", "second")]
    return Judged(
        split=found.split,
        judge=words.clean(found.judge, 120),
        first=words.clean(found.first, 120),
        second=words.clean(found.second, 120),
        criteria=words.clean(found.criteria, 600),
        wins=f"{found.wins_second} and {found.wins_first}, {found.ties} ties ({found.equal} with the same "
        + (f"answer), {found.unjudged} left out" if found.unjudged else "answer)"),
        rate=f"{rate.value * 100:.1f} %",
        rate_interval=f"{rate.low * 100:.1f} to {rate.high * 100:.1f}",
        verdict=words.VERDICTS[found.difference.verdict],
        kind=found.difference.verdict,
        p=words.p_words(found.difference.p_value),
        agreement=agreement,
        cost=cost,
        doubts=tuple(doubts(found)),
        reasons=tuple(_reason(row, found) for row in sorted(told, key=lambda row: row.id)[:SHOWN]),
    )


def _reason(row: JudgedRow, found: Judgement) -> Reason:
    return Reason(
        prompt=words.clean(row.prompt, 1_000),
        first=words.clean(row.first, 1_000),
        second=words.clean(row.second, 1_000),
        preferred=found.first if row.outcome == "first" else found.second,
        reason=words.clean(row.rulings[0].reason if row.rulings else "", 600),
    )

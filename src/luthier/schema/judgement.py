"""What a judging model said of two models' answers to the same prompts."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Record
from luthier.schema.results import Difference, Metric

Outcome = Literal["first", "second", "tie"]


class Ruling(Record):
    """What the judge said of one pair in one order."""

    swapped: bool
    """Whether the second model's answer was shown first."""
    choice: Outcome | None
    """Which model's answer was preferred; None where no verdict could be read."""
    reason: str
    """The judge's own words."""


class JudgedRow(Record):
    """One prompt with both answers and what the judge said in both orders."""

    id: str
    prompt: str
    first: str
    second: str
    outcome: Outcome | None
    """Preferred in both orders, else a tie; None where a verdict could not be read."""
    equal: bool = False
    """Whether the answers are the same: a tie that nobody was asked about."""
    rulings: tuple[Ruling, ...] = ()
    group: str | None = None


class Judgement(Record):
    """Two models compared by a judge on the same prompts, each pair in both orders."""

    split: str
    first: str
    second: str
    judge: str
    criteria: str
    reference: bool = False
    """Whether the judge saw the expected answer."""
    rows: tuple[JudgedRow, ...]
    wins_first: int
    wins_second: int
    ties: int
    unjudged: int
    """Rows left out because a verdict could not be read."""
    equal: int
    """Ties that were not asked about because both answers are the same."""
    win_rate: Metric
    """Share of judged rows that the second model wins, ties counted half; 95 % interval."""
    difference: Difference
    """Share of rows won by the second minus share won by the first, paired over rows."""
    agreement: Metric | None = None
    """How often the judge said the same of both orders; None where nothing was asked."""
    shown_first: Metric | None = None
    """How often it preferred the answer that was shown first, of those times that it preferred one."""
    parse_failures: int = 0
    """Answers of the judge without a verdict."""
    asked: int = 0
    """Questions to the judge, those answered from the cache left out."""
    cached: int = 0
    repeated: int = 0
    """Questions that were put once more because the first answer had no verdict."""
    prompt_tokens: int | None = None
    """Tokens that the judge read, where its server tells; those answered from the cache left out."""
    completion_tokens: int | None = None
    seconds: float = 0.0
    cost: float | None = None
    """US dollars, where prices were given."""

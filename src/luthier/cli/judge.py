"""``--judge`` of compare and evaluate: who reads the answers, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.runs.directory import RunDirectory
    from luthier.schema.judgement import Judgement
    from luthier.schema.protocols import Message
    from luthier.schema.results import EvalResult

SHOWN = 2
"""Rows on which the judge's reasons are printed."""


@Parameter(name="*")
@dataclass(frozen=True)
class Judging:
    """A model that reads the answers."""

    judge: str | None = None
    """A model reads both answers to each prompt, in both orders: the address of an OpenAI-compatible endpoint
    (its key in OPENAI_API_KEY), a .gguf file, a run, a folder or a model."""
    judge_model: str | None = None
    """Which model of the endpoint judges; the only one when not given."""
    criteria: str | None = None
    """What it judges by, in words."""
    judge_reference: Annotated[bool, Parameter(negative="")] = False
    """Show it the expected answer too."""
    judge_rows: int | None = None
    """Ask about no more rows than this, chosen by seed."""
    judge_price: str | None = None
    """US dollars for a million tokens read and written, for the cost: 0.15,0.6."""


NOBODY = Judging()


def run_judge(
    judging: Judging,
    first: EvalResult,
    second: EvalResult,
    *,
    names: tuple[str, str],
    split: str,
    run: RunDirectory | None = None,
    chats: Mapping[str, Sequence[Message]] | None = None,
) -> Judgement:
    """Have two results read, and keep what was said in the run's folder, if there is one.

    chats: conversations by row; those of the run's own split when not given.
    """
    from luthier.cli.console import err, row_bar
    from luthier.evaluation.judge import CRITERIA
    from luthier.runs.judgements import Asked, chats_of_run, judge_results, keep, read_prices

    assert judging.judge is not None
    if judging.judge_rows is not None and judging.judge_rows < 1:
        raise UsageError(f"{judging.judge_rows} rows", hint="use at least one: --judge-rows 100")

    def say(words: str) -> None:
        err().print(words, style="dim", highlight=False, soft_wrap=True)

    asked = Asked(
        judge=judging.judge,
        model=judging.judge_model,
        criteria=(judging.criteria or CRITERIA).strip().rstrip("."),
        reference=judging.judge_reference,
        rows=judging.judge_rows,
        prices=read_prices(judging.judge_price),
    )
    if chats is None and run is not None:
        chats = chats_of_run(run, split, say)
    with row_bar(f"judge on {split}") as progress:
        found = judge_results(first, second, asked, names=names, chats=chats, say=say, progress=progress)
    if run is not None:
        say(f"every reason: {keep(run, found)}")
    return found


def show_judgement(found: Judgement, *, json: bool) -> None:
    """Win rate, ties, how far the judge can be trusted, and what it cost."""
    from rich.markup import escape
    from rich.panel import Panel

    from luthier.cli import story
    from luthier.cli.console import duration, out, print_json
    from luthier.evaluation.judge import doubts

    if json:
        print_json(found.model_dump(mode="json"))
        return
    rate, verdict = found.win_rate, story.VERDICTS[found.difference.verdict]
    story.heading(None, "Judge", f"{found.judge}, each pair in both orders")
    rows: list[tuple[str, str]] = [
        (
            "Preferred",
            f"{found.second} in {found.wins_second}, {found.first} in {found.wins_first}, "
            f"ties {found.ties} ({found.equal} with the same answer), of {rate.n} rows of {found.split}",
        ),
        (
            "Win rate",
            f"{found.second} {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}], ties half: {verdict[0]}, "
            f"p {found.difference.p_value:.3f}",
        ),
    ]
    if found.agreement is not None:
        told = f"the same of both orders on {found.agreement.value:.0%} of {found.agreement.n} rows"
        if found.shown_first is not None:
            told += f"; preferred what was shown first {found.shown_first.value:.0%} of the time"
        rows.append(("Agrees with itself", told))
    if found.parse_failures:
        rows.append(
            ("Not readable", f"{found.parse_failures} answers of the judge; {found.unjudged} rows left out")
        )
    again = f", {found.repeated} asked once more for a verdict" if found.repeated else ""
    told = f"{found.asked} questions{again}, {found.cached} from the cache, {duration(found.seconds)}"
    if found.prompt_tokens is not None:
        told += f"; {found.prompt_tokens:,} tokens read, {found.completion_tokens:,} written"
    if found.cost is not None:
        told += f": ${found.cost:.4f}"
    rows.append(("Cost", told))
    out().print(story.grid([(name, escape(text)) for name, text in rows]))
    for doubt in doubts(found):
        out().print(f"  ! {escape(doubt)}", style="yellow", soft_wrap=True)
    for row in [one for one in found.rows if one.outcome in ("first", "second")][:SHOWN]:
        winner = found.first if row.outcome == "first" else found.second
        text = f"{row.prompt[:200]}\n\n{winner}: {row.rulings[0].reason[:400]}"
        out().print(Panel(escape(text), border_style="dim"))

"""``luthier init``: a guided recommendation that ends in a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from luthier.cli.console import out
from luthier.errors import LuthierError, UsageError

if TYPE_CHECKING:
    from luthier.schema.hardware import Hardware
    from luthier.schema.plan import Plan

STEPS = (
    "Identify the task",
    "Audit the hardware",
    "Select the scale",
    "Verify the licence",
    "Measure the baseline",
)
"""The checklist of guide A, one screen each."""


def init(
    output: Path = Path("recipe.yaml"),
    /,
    *,
    data: Path | None = None,
    hardware: str | None = None,
    answers: Annotated[tuple[str, ...], Parameter(negative="")] = (),
) -> None:
    """Five questions, then a recipe: task, hardware, scale, licence, baseline.

    Parameters
    ----------
    output
        Where the recipe is written.
    data
        Training rows; their number, lengths and languages are used.
    hardware
        Hardware in words; this machine if not given.
    answers
        Answers in order, instead of asking: task, scale, licence and use, model's rank.
    """
    from luthier.cli.recommend import one_line, read_request, show_plan, write_recipe
    from luthier.planning.audit import audit
    from luthier.planning.findings import findings
    from luthier.planning.hypothetical import parse_hardware

    if not answers and not sys.stdin.isatty():
        raise UsageError(
            "init asks questions, and nobody is there to answer",
            hint="give --answers, or use `luthier recommend ... -o recipe.yaml`",
        )
    asked = _Answers(answers)
    _step(1)
    words = asked.ask("What should the model do? (a sentence)", "answer customers' questions in our tone")
    _step(2)
    machine = audit() if hardware is None else parse_hardware(hardware)
    for finding in findings(machine):
        if finding.level != "note":
            out().print(f"  {finding.what}: {finding.found}", soft_wrap=True)
    _step(3)
    out().print(
        "  1-3B for edge, mobile, simple classification; 7-8B for general use; 14-30B for expert logic"
    )
    scale = asked.choose("Size", ("any", "under-1b", "edge", "general", "expert"), "any")
    _step(4)
    use = asked.choose("Use", ("commercial", "research", "internal"), "commercial")
    rule = asked.ask("Licence rule (empty for none; apache-2.0, osi, commercial...)", "")
    options: dict[str, Any] = {"use": use, "size": None if scale == "any" else scale, "licence": rule or None}
    request = read_request(words, options, data=data)
    plan = _plan(request, machine)
    show_plan(plan)
    if not plan.candidates:
        raise UsageError(
            "nothing meets all of that",
            hint="; or ".join(r.change for r in plan.relaxations) or "start again with fewer conditions",
        )
    rank = asked.choose("Take number", tuple(str(c.rank) for c in plan.candidates), "1")
    chosen = plan.candidates[int(rank) - 1]
    write_recipe(plan.model_copy(update={"candidates": (chosen,)}), output, data)
    _step(5)
    out().print(f"  wrote {output}: {one_line(chosen)}", soft_wrap=True)
    out().print("  the untouched model is measured on held-out rows before any training step:")
    out().print(f"  luthier train {output}", style="bold")
    if data is None:
        out().print("  put your rows into rows.jsonl beside it, or set data.train", style="yellow")


def _plan(request: Any, machine: Hardware) -> Plan:
    from luthier.planning.recommend import recommend

    return recommend(request, machine, most=5)


def _step(number: int) -> None:
    from luthier.cli import story

    story.heading(number, STEPS[number - 1])


class _Answers:
    """Asks on the terminal, or takes the answers that were given."""

    def __init__(self, given: Sequence[str]) -> None:
        self.given = list(given)
        self.scripted = bool(given)

    def ask(self, question: str, default: str) -> str:
        """One answer; empty means the default."""
        if self.scripted:
            return (self.given.pop(0) if self.given else "") or default
        shown = f" [{default}]" if default else ""
        try:
            return input(f"{question}{shown}: ").strip() or default
        except EOFError:
            raise UsageError("the questions were not answered to the end") from None

    def choose(self, question: str, options: Sequence[str], default: str) -> str:
        """One of the options, asked again until it is."""
        while True:
            answer = self.ask(f"{question} ({', '.join(options)})", default)
            if answer in options:
                return answer
            fault = UsageError(f"{answer!r} is not one of {', '.join(options)}")
            if self.scripted:
                raise fault
            _complain(fault)


def _complain(fault: LuthierError) -> None:
    from luthier.cli.console import print_error

    print_error(fault, as_json=False)

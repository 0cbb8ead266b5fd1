"""``luthier doctor``: what this machine has, what that means, and what would mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from luthier.cli.console import out, print_json

if TYPE_CHECKING:
    from luthier.planning.findings import Finding

MARKS = {"good": ("✓", "green"), "note": ("·", "cyan"), "warning": ("!", "yellow"), "bad": ("✗", "red")}


def doctor(
    *,
    hardware: str | None = None,
    offline: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """What this machine has, what that allows, and the command that mends what is wrong.

    Parameters
    ----------
    hardware
        Describe hardware in words ("rtx 4090", 2xh100, cpu:16GB) instead of looking at this machine.
    offline
        Do not try to reach the Hub.
    json
        Print one JSON object.
    """
    from luthier.planning.audit import audit
    from luthier.planning.findings import findings, hub_finding
    from luthier.planning.hypothetical import parse_hardware

    machine = audit() if hardware is None else parse_hardware(hardware)
    found = findings(machine)
    if hardware is None and not offline:
        found.append(hub_finding())
    if json:
        print_json(
            {
                "hardware": machine.model_dump(mode="json"),
                "findings": [finding.model_dump(mode="json") for finding in found],
            }
        )
        return
    for finding in found:
        _print(finding)
    bad = [finding for finding in found if finding.level == "bad"]
    out().print()
    if bad:
        out().print(f"{len(bad)} to mend: {', '.join(f.what for f in bad)}", style="bold red")
    else:
        out().print("nothing stands in the way; next: luthier recommend", style="bold")


def _print(finding: Finding) -> None:
    from rich.text import Text

    mark, style = MARKS[finding.level]
    line = Text(f"{mark} ", style=style)
    line.append(f"{finding.what}: ", style="bold")
    line.append(finding.found, style="default")
    out().print(line, soft_wrap=True)
    if finding.means:
        out().print(f"    {finding.means}", style="dim", soft_wrap=True)
    if finding.mend:
        out().print(Text(f"    mend: {finding.mend}", style="cyan"), soft_wrap=True)

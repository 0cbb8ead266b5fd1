"""``luthier import``: a configuration of another trainer as a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.padding import Padding

from luthier.cli.console import err, out, print_json
from luthier.errors import UsageError


def import_(
    file: Path,
    /,
    *,
    to: Annotated[Path | None, Parameter(name=("--to", "-o"))] = None,
    tool: str | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a recipe from one of axolotl, LLaMA-Factory, NeMo Automodel, TRL, ms-swift or torchtune.

    Parameters
    ----------
    file
        The configuration (YAML).
    to
        Where to write the recipe; printed when not given.
    tool
        Whose configuration it is, where its keys do not say: axolotl, llamafactory, automodel, trl,
        swift, torchtune.
    overwrite
        Replace a recipe that is there already.
    json
        Print what became of every key as one JSON object.
    """
    from luthier.data.importers.convert import convert

    text, report = convert(file, tool=tool)
    if to is not None:
        if to.exists() and not overwrite:
            raise UsageError(
                "this file is there already", file=to, hint="name another file, or add --overwrite"
            )
        to.write_text(text, encoding="utf-8")
        report = report.model_copy(update={"out": str(to)})
    if json:
        print_json({**report.model_dump(mode="json"), "recipe": text})
        return
    if to is None:
        out().print(text, markup=False, highlight=False, soft_wrap=True)
        return
    from luthier.cli.story import columns, grid

    facts = [("wrote", str(to)), ("from", f"{report.file} ({report.tool})")]
    facts.append(("carried", f"{len(report.carried)} settings, each with its origin behind it"))
    facts += [("to fill in", one) for one in report.missing] + [("note", one) for one in report.notes]
    out().print(grid(facts))
    if report.not_carried:
        table = columns("not carried", "value", "why")
        for one in report.not_carried:
            where = f"{one.key}:{one.line}" if one.line else one.key
            table.add_row(where, one.value, one.reason)
        out().print(Padding(table, (1, 0, 0, 2)))
    err().print(f"next: luthier plan {to}", soft_wrap=True)

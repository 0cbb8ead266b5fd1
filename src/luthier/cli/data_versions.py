"""``luthier data add|ls|versions|diff``: named data sets and what changed between their versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from luthier.cli.console import out, print_json
from luthier.cli.findings import several
from luthier.cli.story import columns, grid

Flag = Annotated[bool, Parameter(negative="")]


def add(
    source: Path,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    name: str | None = None,
    fix: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    json: Flag = False,
) -> None:
    """Keep a version of a data set: which rows, from which files, read how, split by which seed.

    Parameters
    ----------
    source
        A recipe.yaml, or a data file together with --name.
    overrides
        Settings that win over the recipe's.
    name
        The data set's name; the recipe's data.name when not given.
    fix
        What was done to the rows before, in words; kept with the version.
    json
        Print one JSON object.
    """
    from luthier.data.versions import record
    from luthier.schema.load import load_recipe, recipe_from

    if source.suffix in (".yaml", ".yml"):
        recipe = load_recipe(source, overrides)
    else:
        recipe = recipe_from({"model": {"id": "none/none"}, "data": {"train": str(source)}}, overrides)
    version, new = record(recipe, base=Path("/"), name=name, fixes=fix)
    if json:
        print_json({**version.model_dump(mode="json"), "new": new})
        return
    rows = ", ".join(f"{count:,} {split}" for split, count in version.rows.items())
    out().print(f"{version.id} ({'new' if new else 'known already'}): {rows} rows", soft_wrap=True)
    for old, count in version.leaks.items():
        stand = _stand(count, f"{version.name}@{old}")
        words = f"{stand} in its training rows: scores there prove nothing"
        out().print(words, style="yellow", soft_wrap=True)


def ls(*, json: Flag = False) -> None:
    """Data sets that have versions.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from luthier.data.versions import datasets_root, names, versions

    found = {name: versions(name) for name in names()}
    if json:
        print_json({name: [one.model_dump(mode="json") for one in part] for name, part in found.items()})
        return
    if not found:
        out().print(f"no data set in {datasets_root()}; `luthier data add FILE --name NAME` makes one")
        return
    table = columns("data set", "versions", "newest", "rows", numbers=(1, 3))
    for name, part in found.items():
        table.add_row(name, str(len(part)), part[-1].version, f"{sum(part[-1].rows.values()):,}")
    out().print(table)


def versions(name: str, /, *, json: Flag = False) -> None:
    """All versions of a data set, oldest first.

    Parameters
    ----------
    name
        The data set's name.
    json
        Print one JSON object.
    """
    from luthier.data.versions import find
    from luthier.data.versions import versions as known

    find(name)
    found = known(name)
    if json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    table = columns("version", "made", "rows", "files", "seed", "leaks", numbers=(2, 4))
    for one in found:
        files = ", ".join(Path(file).name for part in one.sources.values() for file, _ in part)
        leaks = ", ".join(f"{count} of {old}" for old, count in one.leaks.items())
        rows = f"{sum(one.rows.values()):,}"
        table.add_row(one.version, one.created[:16].replace("T", " "), rows, files, str(one.seed), leaks)
    out().print(table)


def diff(old: str, new: str, /, *, json: Flag = False) -> None:
    """Rows added, removed, changed and moved between two versions.

    Parameters
    ----------
    old
        NAME@VERSION, or the beginning of one.
    new
        The same, or NAME alone for the newest.
    json
        Print one JSON object.
    """
    from luthier.data.versions import diff as compare
    from luthier.data.versions import find

    found = compare(find(old), find(new))
    if json:
        print_json(found.model_dump(mode="json"))
        return
    out().print(f"{found.old} to {found.new}: {found.kept:,} rows kept", soft_wrap=True)
    counts = {"added": found.added, "removed": found.removed, "changed": found.changed, "moved": found.moved}
    facts = []
    for what, count in counts.items():
        samples = found.samples.get(what, ())
        more = ", ..." if count > len(samples) else ""
        facts.append((what, f"{count:,}" + (f" ({_places(samples)}{more})" if count else "")))
    out().print(grid(facts))
    for split, count in found.leaks.items():
        words = f"{_stand(count, f'the old {split} split')} in the new training rows"
        out().print(words, style="yellow", soft_wrap=True)


def _stand(count: int, where: str) -> str:
    return f"{several(count, 'row')} of {where} {'stands' if count == 1 else 'stand'}"


def _places(samples: Sequence[str]) -> str:
    """``file:line`` of some rows, each file once, from here where it lies below."""
    lines: dict[str, list[str]] = {}
    for sample in samples:
        file, _, line = sample.rpartition(":")
        lines.setdefault(file, []).append(line)
    here = Path.cwd()
    shown = {
        file: str(Path(file).relative_to(here)) if Path(file).is_relative_to(here) else file for file in lines
    }
    return ", ".join(f"{shown[file]}:{', '.join(part)}" for file, part in lines.items())

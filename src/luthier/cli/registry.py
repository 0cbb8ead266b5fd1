"""``luthier registry``: tuned models by name, version and alias."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from luthier.cli.console import out, print_json

if TYPE_CHECKING:
    from luthier.schema.registry import AliasChange, Version

Flag = Annotated[bool, Parameter(negative="")]
app = App(name="registry", help="Tuned models by name, version and alias.", help_format="plaintext")


@app.default
def ls(name: str | None = None, /, *, json: Flag = False) -> None:
    """List registered models, or the versions of one.

    Parameters
    ----------
    name
        Only this model.
    json
        Print one JSON object.
    """
    from luthier.cli.story import VERDICTS, columns
    from luthier.runs import registry

    found = [one for each in ([name] if name else registry.names()) for one in registry.versions(each)]
    if json:
        print_json({"versions": [one.model_dump(mode="json") for one in found]})
        return
    if not found:
        out().print("Nothing is registered. A finished run: luthier registry add RUN --name NAME")
        return
    table = columns("model", "aliases", "base", "method", "verdict", "run", "registered")
    for one in found:
        called = [alias for alias, version in registry.aliases(one.name).items() if version == one.version]
        verdicts = [VERDICTS[score.verdict][0] for score in one.scores.values()]
        table.add_row(
            one.id, ", ".join(called), one.base_model.rpartition("/")[2], one.method,
            verdicts[0] if verdicts else "not judged", one.run, _when(one.created),
        )  # fmt: skip
    out().print(table)


@app.command
def add(run: str = "latest", /, *, name: str | None = None, note: str = "", json: Flag = False) -> None:
    """Register a finished run as the next version of a name.

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    name
        The model's name; the recipe's when not given.
    note
        A sentence to remember it by.
    json
        Print one JSON object.
    """
    from luthier.runs import registry
    from luthier.runs.directory import find_run

    made = registry.add(find_run(run), name=name, note=note)
    if json:
        print_json(made.model_dump(mode="json"))
    else:
        out().print(f"{made.id} is {made.run}. In use: luthier registry promote {made.id} production")


@app.command
def show(model: str, /, *, json: Flag = False) -> None:
    """Show one version: NAME (the newest), NAME:VERSION or NAME:ALIAS."""
    from luthier.runs import registry

    found = registry.find(model)
    if json:
        history = [change.model_dump(mode="json") for change in registry.history(found.name)]
        print_json(
            {**found.model_dump(mode="json"), "aliases": registry.aliases(found.name), "history": history}
        )
        return
    _show(found)
    for change in registry.history(found.name):
        out().print(f"  {_when(change.at)}  {_words(found.name, change)}", style="dim", highlight=False)


def _show(one: Version) -> None:
    from luthier.cli.console import size
    from luthier.cli.story import VERDICTS

    lines = [
        f"{one.id}  {one.task}, {one.method} on {one.base_model}"
        + (f" at {one.base_revision}" if one.base_revision else ""),
        f"  run {one.run}: {one.path}",
        f"  data {one.data or 'unknown'}, recipe {one.recipe[:12]}, licence {one.licence or 'unknown'}",
    ]
    if one.note:
        lines.append(f"  {one.note}")
    for split, score in one.scores.items():
        tuned = score.tuned
        lines.append(
            f"  {split}: {score.metric} {score.baseline.value:.4g} -> {tuned.value:.4g} "
            f"[{tuned.low:.4g}, {tuned.high:.4g}], {VERDICTS[score.verdict][0]}"
        )
    for artifact in one.artifacts:
        parity = (
            "" if artifact.parity is None else f", parity {'passed' if artifact.parity.passed else 'BROKEN'}"
        )
        lines.append(f"  {artifact.kind}: {size(artifact.bytes)}, sha256 {artifact.sha256[:12]}{parity}")
    for line in lines:
        out().print(line, highlight=False, soft_wrap=True)


@app.command
def promote(model: str, alias: str = "production", /) -> None:
    """Let an alias name a version: luthier registry promote NAME:VERSION [ALIAS]."""
    from luthier.runs import registry

    change = registry.promote(model, alias)
    out().print(_words(model.partition(":")[0], change), highlight=False)


@app.command
def rollback(name: str, alias: str = "production", /) -> None:
    """Let an alias name the version that it named before."""
    from luthier.runs import registry

    out().print(_words(name, registry.rollback(name, alias)), highlight=False)


@app.command
def unalias(name: str, alias: str, /) -> None:
    """Take an alias away."""
    from luthier.runs import registry

    out().print(_words(name, registry.drop_alias(name, alias)), highlight=False)


@app.command
def diff(first: str, second: str, /, *, json: Flag = False) -> None:
    """What differs between two versions: base, data, recipe, scores."""
    from luthier.cli.story import columns
    from luthier.runs import registry

    a, b = registry.find(first), registry.find(second)
    found = registry.differences(a, b)
    if json:
        print_json({"first": a.id, "second": b.id, "differences": {k: list(v) for k, v in found.items()}})
        return
    if not found:
        out().print(f"{a.id} and {b.id} differ in nothing but their run")
        return
    table = columns("", a.id, b.id)
    for key, (one, other) in found.items():
        table.add_row(key, one, other)
    out().print(table)


@app.command
def rm(model: str, /) -> None:
    """Forget a version. Its run and files stay."""
    from luthier.runs import registry

    out().print(f"{registry.remove(model).id} is forgotten; its run stays", highlight=False)


@app.command
def rebuild() -> None:
    """Write the index anew from the runs."""
    from luthier.runs import registry

    out().print(f"{len(registry.rebuild())} versions found in the runs")


def _words(name: str, change: AliasChange) -> str:
    before = f" (before: {name}:{change.before})" if change.before is not None else ""
    if change.version is None:
        return f"{name}:{change.alias} names nothing{before}"
    return f"{name}:{change.alias} is {name}:{change.version}{before}"


def _when(at: float) -> str:
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M}"

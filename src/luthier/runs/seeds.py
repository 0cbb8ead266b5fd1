"""Which runs are the same recipe with another seed."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.runs.directory import RunDirectory
from luthier.runs.lineage import settings

APART = ("seed", "name")
"""Settings in which runs of one recipe may differ."""


def by_recipe(runs: Mapping[str, RunDirectory]) -> dict[str, list[str]]:
    """Recipe -> the ids of its runs. One run alone goes by its id, several by the name that they share."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, run in runs.items():
        kept = {key: value for key, value in settings(run.recipe).items() if not key.startswith("sources")}
        key = tuple(sorted((k, v) for k, v in kept.items() if k not in APART))
        groups.setdefault(key, []).append(name)
    found: dict[str, list[str]] = {}
    for names in groups.values():
        called = {runs[name].recipe.name for name in names}
        label = names[0]
        if len(names) > 1 and len(called) == 1 and (own := called.pop()) is not None and own not in found:
            label = own
        found[label] = names
    return found

"""Recipes that come with Luthier: by GPU memory and by task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import UsageError, did_you_mean

FOLDER = Path(__file__).with_name("recipes")


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """One file: its name, what it is for, and the hardware that it was planned on."""

    name: str
    path: Path
    title: str
    hardware: str
    notes: tuple[str, ...]


def shipped_recipes() -> tuple[ShippedRecipe, ...]:
    """All of them, by name."""
    return tuple(_read(path) for path in sorted(FOLDER.glob("*.yaml")))


def shipped_recipe(name: str) -> ShippedRecipe:
    """One by its name. Errors: UsageError with the nearest names."""
    known = {recipe.name: recipe for recipe in shipped_recipes()}
    found = known.get(name.removesuffix(".yaml"))
    if found is None:
        raise UsageError(
            f"no recipe is called {name!r}",
            hint=did_you_mean(name, known) or f"shipped are: {', '.join(known)}",
        )
    return found


def _read(path: Path) -> ShippedRecipe:
    """The comments at a recipe's head: title, hardware, notes."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    hardware = next((m[1] for line in lines if (m := re.fullmatch(r"hardware: (.+)", line))), "")
    notes = tuple(line for line in lines[1:] if not line.startswith("hardware: "))
    return ShippedRecipe(path.stem, path, lines[0] if lines else path.stem, hardware, notes)

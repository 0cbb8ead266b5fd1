"""Rows of the hyperparameter table: under which conditions a value holds, and who says so."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.schema.base import Fact
from luthier.schema.recipe import Purpose
from luthier.schema.request import MethodName

Preset = Literal["quick", "balanced", "best"]


class Condition(Fact):
    """All that is given must hold; what is empty holds always."""

    methods: tuple[MethodName, ...] = ()
    purposes: tuple[Purpose, ...] = ()
    kinds: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    """Beginnings of family names."""
    goals: tuple[str, ...] = ()
    presets: tuple[Preset, ...] = ()
    parameters_below: float | None = None
    parameters_from: float | None = None
    rows_below: int | None = None
    rows_from: int | None = None


class Hyperparameter(Fact):
    """One value under one condition. The first row of a name whose condition holds is taken."""

    name: str
    """Key of the recipe, without its section: ``learning_rate``, ``rank``..."""
    value: float | int | str
    when: Condition = Field(default_factory=Condition)
    source: str
    """Who documents it, in words."""
    basis: Literal["documented", "claimed", "measured", "convention"]
    """A maker's or peer's documentation; one of the guides; measured by us; usage without one source."""
    others: str | None = None
    """What other sources say instead."""

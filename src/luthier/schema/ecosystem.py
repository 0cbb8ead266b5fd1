"""What is around a family of models, each statement with who says it."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Fact


class Statement(Fact):
    """One statement about a family."""

    text: str
    basis: Literal["documented", "claimed", "measured"]
    """Documented by a source, claimed by a guide, or measured by us."""
    source: str
    date: str
    """Year, month or day of the source."""


class FamilyFacts(Fact):
    """Ecosystem and tuning traits of a family."""

    family: str
    """Beginning of the family's name."""
    encoders: bool = False
    """Whether it is about encoders; a decoder family's name also begins those of its embedders."""
    points: float
    """0 to 100, what the priority ``ecosystem`` ranks by: an ordering of these facts, not a measurement."""
    facts: tuple[Statement, ...] = ()
    traits: tuple[Statement, ...] = ()
    """How it takes to tuning: learning rate, epochs, template."""

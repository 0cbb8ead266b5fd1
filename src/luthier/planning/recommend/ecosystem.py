"""What is around a family: community, tools, maturity of its conversions; and how it takes to tuning."""

from __future__ import annotations

from luthier.catalog.index import index
from luthier.schema.ecosystem import FamilyFacts
from luthier.schema.model import ModelCard

UNKNOWN_POINTS = 40.0
"""For families of which nothing is noted."""


def family_facts(card: ModelCard) -> FamilyFacts | None:
    """The entry whose family name begins the card's, the longest first."""
    encoder = card.kind not in ("decoder", "vision-language")
    fitting = [
        entry
        for entry in index().ecosystem
        if card.family.startswith(entry.family) and entry.encoders == encoder
    ]
    return max(fitting, key=lambda entry: len(entry.family)) if fitting else None


def ecosystem_points(card: ModelCard) -> tuple[float, str]:
    """(points, why). Small models of a family share its ecosystem; the usual size leads a little."""
    facts = family_facts(card)
    if facts is None:
        return UNKNOWN_POINTS, "nothing noted about its ecosystem"
    total = card.total or 0
    usual = 4.0 if 6e9 <= total <= 9e9 else 0.0
    first = facts.facts[0]
    why = f"{first.text} ({first.basis}: {first.source})" if facts.facts else "noted by family"
    return facts.points + usual, why

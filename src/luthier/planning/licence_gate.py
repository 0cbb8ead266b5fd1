"""What a recipe asks of its base model's licence, held against the terms before anything is done."""

from __future__ import annotations

from typing import Literal

from luthier.catalog.index import licence, model_card
from luthier.errors import LicenceBroken, LuthierError
from luthier.planning.recommend.filters import licence_objections
from luthier.schema.licence import Licence
from luthier.schema.recipe import Recipe
from luthier.schema.request import Request

Deed = Literal["trained", "exported", "deployed"]


def terms_of(recipe: Recipe, named: str | None = None) -> tuple[Licence | None, bool]:
    """(terms, whether the model reads images) of a recipe's base model.

    The catalogue's word for the model comes first: sizes of one family differ. named: the licence that its
    files name, for a model that the catalogue does not have. None where neither is known.
    """
    try:
        card = model_card(recipe.model.id)
    except LuthierError:
        card = None
    if card is not None and card.licence != "unknown":
        return licence(card.licence), "image" in card.modalities
    try:
        return (None if named is None else licence(named)), False
    except LuthierError:
        return None, False


def hold_to_licence(recipe: Recipe, deed: Deed, *, named: str | None = None) -> tuple[str, ...]:
    """The licence's duties, one sentence each; refuses what breaks a rule that the recipe asks for.

    Errors: LicenceBroken with the clause. It informs and cites, and is not legal advice.
    """
    terms, images = terms_of(recipe, named)
    asked = recipe.licence
    if asked is None:
        return () if terms is None else terms.duties
    request = Request(
        licence=asked.rules,
        use=asked.use,
        monthly_users=asked.monthly_users,
        eu_entity=asked.eu_entity,
        outputs_train_models=asked.outputs_train_models,
        redistribute=asked.redistribute,
    )
    found = licence_objections(terms or licence("unknown"), request, multimodal=images)
    if not found:
        return () if terms is None else terms.duties
    reason, clause = found[0]
    raise LicenceBroken(
        f"{recipe.model.id} is not {deed}: {reason}" + (f" ({clause})" if clause else ""),
        hint="choose another model (`luthier recommend` with the same rules), or change the recipe's licence "
        "section if it says more than you need; this informs and cites, it is not legal advice",
    )

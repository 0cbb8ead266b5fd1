"""What a recipe asks of a licence is held when it is trained, exported and deployed."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.errors import LicenceBroken
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.licence_gate import hold_to_licence
from luthier.planning.recommend import recommend
from luthier.planning.recommend.recipe import to_recipe
from luthier.planning.recommend.words import make_request
from luthier.schema.load import dump_recipe
from luthier.schema.recipe import Recipe

SMALL_QWEN = "Qwen/Qwen2.5-3B-Instruct"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def recipe(model: str, **asked: Any) -> Recipe:
    values = {"model": {"id": model}, "data": {"train": "rows.jsonl"}}
    return Recipe.model_validate({**values, **({"licence": asked} if asked else {})})


@pytest.mark.parametrize(
    ("model", "asked", "words"),
    [
        (SMALL_QWEN, {"use": "commercial"}, "non-commercial"),
        (LLAMA, {"rules": ["apache-2.0"]}, "not apache-2.0"),
        (LLAMA, {"monthly_users": 800_000_000}, "700,000,000"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", {"eu_entity": True}, "European Union"),
        ("somebody/unheard-of", {"use": "commercial"}, "not verified"),
    ],
)
def test_a_broken_rule_is_refused_with_its_clause(model: str, asked: dict[str, Any], words: str) -> None:
    for deed in ("trained", "exported", "deployed"):
        with pytest.raises(LicenceBroken, match=deed) as caught:
            hold_to_licence(recipe(model, **asked), deed)  # type: ignore[arg-type]
        assert words in str(caught.value)
        assert "not legal advice" in (caught.value.hint or "")


def test_duties_are_told_where_nothing_is_broken() -> None:
    assert any("Built with Llama" in duty for duty in hold_to_licence(recipe(LLAMA), "trained"))
    assert hold_to_licence(recipe(SMALL_QWEN), "trained")
    assert hold_to_licence(recipe(SMALL_QWEN, use="research"), "deployed")
    assert hold_to_licence(recipe("somebody/unheard-of"), "trained") == ()
    assert hold_to_licence(recipe("somebody/unheard-of", use="commercial"), "trained", named="mit")


def test_a_request_goes_into_the_recipe() -> None:
    request = make_request({"use": "commercial", "licence": "osi", "monthly_users": 1_000})
    plan = recommend(request, parse_hardware("h100"))
    assert plan.best is not None
    written = to_recipe(plan.best, request)
    assert written.licence is not None
    assert (written.licence.rules, written.licence.use) == (("osi",), "commercial")
    assert "licence:" in dump_recipe(written)
    hold_to_licence(written, "trained")
    with pytest.raises(LicenceBroken):
        hold_to_licence(written.model_copy(update={"model": recipe(SMALL_QWEN).model}), "trained")
    plain = to_recipe(plan.best, make_request({}))
    assert plain.licence is None

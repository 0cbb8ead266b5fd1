"""The advisor as a form: what is asked, what is answered, and the way to a plan."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.datastructures import QueryParams

from luthier.errors import UsageError
from luthier.planning.hypothetical import parse_hardware
from luthier.schema.plan import REJECTION_WORDS
from luthier.studio.pages.new_run import wish_of
from luthier.studio.services import advising, inspection, planning
from luthier.studio.services.advising import advise, form_of, plan_url, rejected_by_reason, request_of
from studio_case import studio
from studio_rows import CHATS, lines, made

CARD = parse_hardware("rtx 4090")


def test_a_form_is_a_request(tmp_path: Path) -> None:
    form = form_of(
        {
            "words": "classify tickets in German",
            "use": "commercial",
            "largest": "8",
            "size": "",
            "licence": [""],
        }
    )
    request = request_of(form, tmp_path)
    assert request.purpose == "multi-class-classification"
    assert request.languages == ("de",)
    assert (request.use, request.max_parameters) == ("commercial", 8_000_000_000)
    assert request.mapped
    over = request_of(form_of({"words": "classify tickets", "purpose": "chat"}), tmp_path)
    assert over.purpose == "chat", "the fields win over the sentence"


@pytest.mark.parametrize("wrong", [{"users": "many"}, {"nonsense": "1"}, {"largest": "-1"}, {"price": "nan"}])
def test_values_that_cannot_be(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        form_of(wrong)


def test_data_say_what_they_are_for(tmp_path: Path) -> None:
    known = made(tmp_path, "c.jsonl", lines(CHATS))
    assert inspection.main([str(tmp_path), known.id, inspection.key_of(known, None, None), "", ""]) == 0
    request = request_of(form_of({"data": known.id}), tmp_path)
    assert (request.purpose, request.rows) == ("chat", 60)
    assert request.profile is not None


def test_a_candidate_becomes_a_plan_that_fits(tmp_path: Path) -> None:
    form = form_of(
        {
            "purpose": "chat",
            "hardware": "rtx 4090",
            "use": "commercial",
            "licence": ["apache-2.0"],
            "gguf": "true",
        }
    )
    found = advise(form, uploads=tmp_path, here=CARD)
    assert found.candidates
    best = found.candidates[0]
    url = plan_url(best, form, found.request)
    fields = parse_qs(urlsplit(url).query)
    assert fields["model"] == [best.weights]
    assert fields["method"] == [best.method.name]
    wish = wish_of(QueryParams(urlsplit(url).query))
    plan = planning.plan(wish, uploads=tmp_path, here=CARD)
    assert plan.fits, plan.problem
    assert plan.recipe is not None
    assert plan.recipe.licence is not None
    assert (plan.recipe.licence.use, plan.recipe.licence.rules) == ("commercial", ("apache-2.0",))
    assert plan.recipe.export is not None
    assert plan.recipe.export.gguf == ("Q8_0", "Q4_K_M")
    settings = {one.name: one.value for one in best.settings}
    assert plan.recipe.training.learning_rate == settings["learning_rate"]


def test_what_is_left_out_stands_under_its_reason(tmp_path: Path) -> None:
    found = advise(form_of({"purpose": "chat", "licence": ["mit"]}), uploads=tmp_path, here=CARD)
    groups = rejected_by_reason(found)
    assert sum(len(group) for _, group in groups) == len(found.rejected)
    for heading, group in groups:
        assert {REJECTION_WORDS[one.kind] for one in group} == {heading}
    assert groups[-1][0] == REJECTION_WORDS["purpose"]


def test_the_page_advises(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        empty = client.get("/advise").text
        assert "Recommend" in empty
        assert "Left out" not in empty
        page = client.get("/advise?words=answer+customers+in+our+tone&hardware=rtx+4090&use=commercial").text
        for words in (
            "Make this plan",
            "Licence duties",
            "Memory at the peak",
            "Left out:",
            "Too large:",
            "means purpose chat",
            "Methods, as guide C has them and as measured",
            "less than 1 % (adapters)",
        ):
            assert words in page, words
        url = unescape(re.search(r'href="(/runs/new\?[^"]+)">Make this plan', page)[1])  # type: ignore[index]
        plan = client.get(url)
        assert plan.status_code == 200
        assert "Predicted memory" in plan.text
        none = client.get("/advise?purpose=chat&size=expert&hardware=cpu:4GB&use=commercial").text
        assert "No model meets all of that" in none
        wrong = client.get("/advise?words=zzz")
        assert wrong.status_code == 200
        assert "no purpose was recognised" in wrong.text
        assert client.get("/advise?largest=x").status_code == 200
        every = client.get("/advise?purpose=similarity&hardware=rtx+4090&all=1").text
        assert "Show all" not in every
        answer = client.post(
            "/api/v1/recommend", json={"request": {"purpose": "reranking", "hardware": "rtx 4090"}, "most": 3}
        )
        assert len(answer.json()["plan"]["candidates"]) == 3
        assert answer.json()["notice"] == advising.NOT_ADVICE
        assert client.post("/api/v1/recommend", json={"request": {"purpose": "dance"}}).status_code == 422

"""The guides' rules, tables and recommendations, one case each, and the fields that flip an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.catalog.index import all_models, model_card
from luthier.planning.estimate import estimate_candidate
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.recommend import recommend
from luthier.planning.recommend.shapes import Estimator
from luthier.planning.recommend.words import from_sentence, make_request
from luthier.schema.load import read_yaml
from luthier.schema.plan import Candidate, Plan

GOLDEN: dict[str, Any] = read_yaml(Path(__file__).with_name("golden.yaml"))
CASES: list[dict[str, Any]] = GOLDEN["cases"]


def answer(case: dict[str, Any], rough: Estimator) -> Plan:
    hardware = None if case["hardware"] is None else parse_hardware(case["hardware"])
    models = [model_card(name) for name in case["only"]] if "only" in case else None
    return recommend(
        from_sentence(case["sentence"]) if "sentence" in case else make_request(case["request"]),
        hardware,
        estimate=estimate_candidate if case.get("estimator") == "real" else rough,
        most=None,
        models=models,
    )


def candidate(plan: Plan, name: str) -> Candidate:
    found = next((c for c in plan.candidates if c.card.id == name), None)
    assert found is not None, f"{name} is no candidate: {[r for r in plan.rejected if r.model == name]}"
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict[str, Any], rough: Estimator) -> None:
    plan = answer(case, rough)
    _check_first(case, plan)
    _check_all(case, plan)
    _check_words(case, plan)


def _check_first(case: dict[str, Any], plan: Plan) -> None:
    wanted = {"first", "method", "methods", "variant", "tagged", "least_of_first", "within"}
    wanted |= {"reads_first", "serves_first"}
    if not wanted & set(case):
        return
    assert plan.candidates, plan.rejected[:5]
    best = plan.candidates[0]
    assert best.card.id in case.get("first", [best.card.id])
    assert best.method.name in case.get("methods", [case.get("method", best.method.name)])
    assert case.get("tagged", "") in ("", *best.card.tags)
    assert (best.card.total or 0) >= case.get("least_of_first", 0)
    if "within" in case:
        assert best.estimate.seconds is not None
        assert best.estimate.seconds.expected <= case["within"] * 3600
    assert not case.get("reads_first") or any(case["reads_first"] in line for line in best.warnings)
    if "serves_first" in case:
        assert all(c.serving is not None and c.serving.fits for c in plan.candidates[:10])
    if "variant" in case:
        assert best.variant == case["variant"]


def _check_all(case: dict[str, Any], plan: Plan) -> None:
    found = {c.card.id: c for c in plan.candidates}
    repositories = [c.weights for c in plan.candidates]
    assert len(repositories) == len(set(repositories)), "the same weights twice"
    assert set(case.get("has", ())) <= set(found), [r for r in plan.rejected if r.model in case["has"]]
    assert not set(case.get("lacks", ())) & set(found)
    for c in plan.candidates:
        assert c.card.kind in case.get("kinds", [c.card.kind])
        assert case.get("least_parameters", 0) <= (c.card.total or 0) <= case.get("most_parameters", 1e15)
    rejected = {r.model: r for r in plan.rejected}
    for name, kind in case.get("rejected", {}).items():
        assert name in rejected, f"{name} is a candidate"
        assert rejected[name].kind == kind, rejected[name]
        if kind == "licence":
            assert rejected[name].source, "a licence objection names its clause"
    for name, words in case.get("reason", {}).items():
        assert words in rejected[name].reason
    for name, weights in case.get("weights_of", {}).items():
        assert candidate(plan, name).weights == weights
    if "faster" in case:
        quick, slow = (candidate(plan, name).estimate.seconds for name in case["faster"])
        assert quick is not None
        assert slow is not None
        assert quick.expected < slow.expected


def _check_words(case: dict[str, Any], plan: Plan) -> None:
    guides = {g.guide: g for g in plan.guides}
    for guide, words in case.get("answers", {}).items():
        assert words in guides[guide].answer, guides[guide]
    for guide, words in case.get("rule_of_guide", {}).items():
        assert words in guides[guide].rule, guides[guide]
    for guide, words in case.get("marks", {}).items():
        assert any(words in mark for mark in guides[guide].wrong), guides[guide]
    for name, words in case.get("warns", {}).items():
        assert any(words in line for line in candidate(plan, name).warnings), candidate(plan, name).warnings
    for name, words in case.get("silent", {}).items():
        assert not any(words in line for line in candidate(plan, name).warnings)
    for name, words in case.get("duty", {}).items():
        assert any(words in line for line in candidate(plan, name).duties)
    assert any(case.get("advice", "") in line for line in plan.advice)
    assert any(case.get("rule", "") in line for line in plan.rules)


def test_every_rule_has_its_case() -> None:
    names = {case["name"] for case in CASES}
    assert sorted(int(rule) for rule in GOLDEN["rules"]) == list(range(1, 27))
    for rule, held in GOLDEN["rules"].items():
        assert held, rule
        assert set(held) <= names, rule


def test_there_are_enough_cases() -> None:
    names = [case["name"] for case in CASES]
    assert len(names) == len(set(names)) >= 60
    assert sum("fact" in case for case in CASES) >= 12
    known = {card.id for card in all_models()}
    for case in CASES:
        for field in ("has", "lacks", "first", "only"):
            assert set(case.get(field, ())) <= known, case["name"]
        for field in ("rejected", "warns", "silent", "duty", "reason"):
            assert set(case.get(field, {})) <= known, case["name"]

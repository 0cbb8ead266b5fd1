"""What must hold for every request: properties over generated ones."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.catalog.index import all_models
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.recommend import recommend
from luthier.planning.recommend.shapes import Estimator, budget_of
from luthier.planning.recommend.words import make_request
from luthier.schema.hardware import Hardware
from luthier.schema.plan import Plan
from luthier.schema.request import Request

CARDS = all_models()[::3]
"""Every third model: all families and purposes, in a third of the time."""
QUICK = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
RULES = ("apache-2.0", "osi", "commercial", "no-acceptable-use-policy", "may-train-others")

requests = st.builds(
    Request,
    purpose=st.sampled_from(
        ("chat", "text-generation", "similarity", "reranking", "multi-class-classification")
    ),
    use=st.sampled_from((None, "commercial", "research")),
    licence=st.sampled_from(((), ("osi",), ("commercial",))),
    languages=st.sampled_from(((), ("de",), ("en", "ja"))),
    context=st.sampled_from((None, 500, 8_000, 40_000)),
    priority=st.sampled_from(("balanced", "quality", "speed", "size", "ecosystem")),
    rows=st.sampled_from((None, 100, 20_000)),
    stage=st.sampled_from((None, "production", "research")),
    eu_entity=st.booleans(),
    gguf=st.booleans(),
)
memories = st.sampled_from((6, 8, 12, 16, 24, 48, 80, 141))


def machine(gib: int) -> Hardware:
    """One and the same GPU with more or less memory: only memory differs."""
    whole = parse_hardware("h100")
    gpu = whole.accelerators[0].model_copy(update={"memory_total": gib * 2**30, "memory_free": gib * 2**30})
    return whole.model_copy(update={"accelerators": (gpu,)})


def answer(wish: Request, gib: int, estimate: Estimator) -> Plan:
    return recommend(wish, machine(gib), estimate=estimate, most=None, models=CARDS)


def names(plan: Plan) -> set[str]:
    return {c.card.id for c in plan.candidates}


def largest(plan: Plan) -> int:
    return max((c.card.total or 0 for c in plan.candidates), default=0)


@QUICK
@given(wish=requests, one=memories, other=memories)
def test_more_memory_never_hurts(rough: Estimator, wish: Request, one: int, other: int) -> None:
    less, more = answer(wish, min(one, other), rough), answer(wish, max(one, other), rough)
    assert names(less) <= names(more)
    assert largest(less) <= largest(more)
    if less.candidates:
        assert more.candidates[0].score >= less.candidates[0].score - 1e-6


@QUICK
@given(wish=requests, gib=memories, rule=st.sampled_from(RULES))
def test_a_stricter_licence_never_adds(rough: Estimator, wish: Request, gib: int, rule: str) -> None:
    strict = wish.model_copy(update={"licence": tuple(sorted({*wish.licence, rule}))})
    assert names(answer(strict, gib, rough)) <= names(answer(wish, gib, rough))


@QUICK
@given(wish=requests, gib=memories, context=st.integers(256, 6_000), more=st.integers(1, 60_000))
def test_a_longer_context_never_needs_less(
    rough: Estimator, wish: Request, gib: int, context: int, more: int
) -> None:
    short = answer(wish.model_copy(update={"context": context, "method": "lora"}), gib, rough)
    long = answer(wish.model_copy(update={"context": context + more, "method": "lora"}), gib, rough)
    assert names(long) <= names(short)
    before = {c.card.id: c for c in short.candidates}
    for c in long.candidates:
        assert c.batch.sequence_length >= before[c.card.id].batch.sequence_length
        same = before[c.card.id].batch.model_copy(update={"sequence_length": c.batch.sequence_length})
        longer = rough(c.card, c.method, same, machine(gib))
        assert longer.process.expected >= before[c.card.id].estimate.process.expected


@QUICK
@given(wish=requests, gib=memories)
def test_what_fits_fits_by_the_estimator(rough: Estimator, wish: Request, gib: int) -> None:
    for c in answer(wish, gib, rough).candidates:
        again = rough(c.card, c.method, c.batch, machine(gib))
        assert again.process.high <= budget_of(machine(gib))
        assert again.process == c.estimate.process


@QUICK
@given(
    rules=st.permutations(("osi", "commercial", "may-train-others")),
    languages=st.permutations(("de", "fr", "ja")),
)
def test_order_means_nothing(rules: list[str], languages: list[str]) -> None:
    values = {"licence": ",".join(rules), "languages": ",".join(languages)}
    flipped = make_request(dict(reversed(values.items())))
    assert flipped == make_request({"licence": "commercial,may-train-others,osi", "languages": "de,fr,ja"})

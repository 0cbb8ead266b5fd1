"""The recommendation itself: filter, estimate, score, rank, and say why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from luthier.catalog.index import all_models, gpus, model_card
from luthier.catalog.index import licence as find_licence
from luthier.catalog.trains import why_not_trained
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.recommend import guides
from luthier.planning.recommend.evidence import Scale, evidence, scale_for, scratch_evidence
from luthier.planning.recommend.filters import choose_variant, first_objection
from luthier.planning.recommend.hyperparameters import lookup, value_of
from luthier.planning.recommend.languages import multilingual
from luthier.planning.recommend.methods import build_method, method_objection, suitability
from luthier.planning.recommend.reasons import advice, candidate_reasons, warnings
from luthier.planning.recommend.relax import relaxations
from luthier.planning.recommend.score import score
from luthier.planning.recommend.serving import answering, suggest, too_large_for
from luthier.planning.recommend.shapes import (
    Estimator,
    Misfit,
    base_shape,
    budget_of,
    fit_shape,
    least_bytes,
    rows_of,
    training_length,
    unanswered,
    widen,
)
from luthier.planning.recommend.words import options_of
from luthier.planning.solver import GPU_SHARE
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate
from luthier.schema.hardware import Hardware
from luthier.schema.hyperparameter import Preset
from luthier.schema.model import ModelCard
from luthier.schema.plan import BatchShape, Candidate, Evidence, Plan, Rejection, ScorePart, Setting
from luthier.schema.recipe import Method
from luthier.schema.request import MethodName, Request

METHODS: tuple[MethodName, ...] = get_args(MethodName)
FIRST_RUN = "Qwen/Qwen3-0.6B"
"""Where guide C starts somebody who knows nothing yet."""
GIB = 2**30
UNTRAINED = "not to be trained with this version"
NEAREST = 5
"""Models looked at for what would fit on larger hardware."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A model with a method that fits, before it is put into words."""

    card: ModelCard
    method: Method
    shape: BatchShape
    estimate: Estimate
    score: float
    parts: tuple[ScorePart, ...]
    proof: Evidence
    settings: tuple[Setting, ...]

    @property
    def needed(self) -> int:
        return round(self.estimate.process.high)

    @property
    def order(self) -> tuple[float, int, str]:
        return -self.score, self.needed, self.card.id


def recommend(
    request: Request,
    hardware: Hardware | None,
    *,
    estimate: Estimator,
    preset: Preset = "balanced",
    most: int | None = 10,
    models: Sequence[ModelCard] | None = None,
) -> Plan:
    """Rank the pairs of model and method that meet the request and fit the hardware.

    hardware: None when nothing is known of it; the first-run rule answers then, judged on a GPU with
    8 GB. most: candidates to return, None for all. models: the catalogue unless given.
    """
    known = hardware is not None
    machine = hardware if hardware is not None else _assumed()
    cards = all_models() if models is None else models
    bench = _bench(request, machine, estimate, preset)
    tried = _try_all(cards, bench)
    ranked = sorted(
        _one_each([t for t in tried if isinstance(t, _Pair)], request),
        key=lambda pair: (not _pinned(pair, request, known=known), pair.order),
    )
    rejected = tuple(t for t in tried if isinstance(t, Rejection))
    candidates = tuple(_candidate(i + 1, pair, bench) for i, pair in enumerate(ranked[:most]))
    return Plan(
        request=request,
        hardware=hardware,
        candidates=candidates,
        total_candidates=len(ranked),
        rejected=rejected,
        guides=guides.answers(request, machine if known else None),
        nearest=None if ranked else _nearest(rejected, bench),
        rules=_rules(request, known=known),
        advice=(*_trainable(candidates), *advice(request)),
        relaxations=()
        if ranked
        else relaxations(request, lambda looser: _fitting(cards, _bench(looser, machine, estimate, preset))),
        next_commands=_next(candidates, request, hardware),
    )


def _one_each(pairs: Sequence[_Pair], request: Request) -> list[_Pair]:
    """One pair for each repository: several models may share base weights, of which the best known counts."""
    bases = ("published", "converted", "prior")
    found: dict[str, _Pair] = {}
    for pair in pairs:
        chosen = choose_variant(pair.card, request)
        repository = pair.card.id if chosen is None else chosen[1]
        other = found.get(repository)
        if other is None or bases.index(pair.proof.basis) < bases.index(other.proof.basis):
            found[repository] = pair
    return list(found.values())


def _assumed() -> Hardware:
    return parse_hardware("vram 8GB")


def _pinned(pair: _Pair, request: Request, *, known: bool) -> bool:
    """Rule 19: with no hardware told, or on a first run, the small known start comes first."""
    first = request.stage == "first-run" or (not known and request.stage is None)
    return first and pair.card.id == FIRST_RUN and pair.method.name == "lora"


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every model is tried with."""

    request: Request
    hardware: Hardware
    estimate: Estimator
    preset: Preset
    scale: Scale
    budget: int
    target: Hardware | None
    """Where the tuned model is to run, if that was said."""


def _bench(request: Request, hardware: Hardware, estimate: Estimator, preset: Preset) -> _Bench:
    target = None if request.target is None else parse_hardware(request.target)
    scale = scale_for(
        request.purpose,
        code=request.vertical == "code",
        image=request.reads_images,
        multilingual=multilingual(request.languages),
        base=request.purpose == "text-generation" or request.goal in ("new-language", "from-scratch"),
    )
    return _Bench(request, hardware, estimate, preset, scale, budget_of(hardware), target)


def _try_all(cards: Iterable[ModelCard], bench: _Bench) -> list[_Pair | Rejection]:
    return [first_objection(card, bench.request) or _try_model(card, bench) for card in cards]


def _fitting(cards: Iterable[ModelCard], bench: _Bench) -> list[str]:
    """Ids of the models that fit, the best first."""
    pairs = [tried for tried in _try_all(cards, bench) if isinstance(tried, _Pair)]
    return [pair.card.id for pair in sorted(pairs, key=lambda pair: pair.order)]


def _try_model(card: ModelCard, bench: _Bench) -> _Pair | Rejection:
    """The model's best pair, or the miss that was nearest to fitting.

    Methods are tried from the one that suits best. One that fits without recomputing, and is done in
    time, ends the search: what those after it could save no longer makes up for suiting less.
    """
    request = bench.request
    if bench.target is not None and (short := too_large_for(card, request, bench.target)) is not None:
        return Rejection(model=card.id, kind="target", reason=short, source="formula")
    proof = _proof(card, bench)
    found: list[_Pair] = []
    misses: list[Rejection] = []
    asked = [name for name in METHODS if request.method in (None, name)]
    order = sorted(asked, key=lambda name: -suitability(name, card, request).points)
    for name in order:
        tried = _try_method(card, name, proof, bench)
        if isinstance(tried, Rejection):
            misses.append(tried)
            continue
        found.append(tried)
        if not tried.shape.checkpointing and not any(part.name == "patience" for part in tried.parts):
            break
    return min(found, key=lambda pair: pair.order) if found else _nearest_miss(misses)


def _proof(card: ModelCard, bench: _Bench) -> Evidence:
    """What the model's quality rests on; from scratch no weights are taken over, so only its size does."""
    if bench.request.goal != "from-scratch":
        return evidence(card, bench.scale)
    _, mean, _ = training_length(card, bench.request)
    return scratch_evidence(card, tokens=rows_of(bench.request) * mean)


def _try_method(card: ModelCard, name: MethodName, proof: Evidence, bench: _Bench) -> _Pair | Rejection:
    request, hardware = bench.request, bench.hardware
    objection = method_objection(card, name, request, hardware)
    if objection is not None:
        return Rejection(model=card.id, kind="method", reason=f"{name}: {objection}")
    least = least_bytes(card, name, request, hardware)
    if least > bench.budget:
        return _too_large(card, name, least, bench.budget, at_least=True)
    settings = lookup(card, name, request, preset=bench.preset)
    method = build_method(name, *(value_of(settings, one) for one in ("rank", "alpha", "dropout")))
    batch, epochs = value_of(settings, "batch_size"), value_of(settings, "epochs")
    assert batch is not None, "the table has a batch size for every method"
    assert epochs is not None, "the table has epochs for every method"
    shape = base_shape(card, request, hardware, batch_size=int(batch.value), epochs=float(epochs.value))
    outcome = fit_shape(card, method, shape, hardware, bench.estimate)
    if isinstance(outcome, Misfit):
        return _too_large(card, name, round(outcome.needed.process.high), bench.budget, why=outcome.why)
    shape, estimate = outcome
    estimate = _priced(estimate, request, hardware)
    over = _over_budget(card, name, estimate, request)
    if over is not None:
        return over
    points = suitability(name, card, request)
    reading = None if bench.target is None else answering(card, request, bench.target)
    total, parts = score(
        card, request, hardware, proof=proof, estimate=estimate, method=points, target=reading
    )
    return _Pair(card, method, shape, estimate, total, parts, proof, settings)


def _nearest_miss(misses: list[Rejection]) -> Rejection:
    """The miss that says most: money, time, then memory (of the method that needs least), then the rest."""
    order = {"cost": 0, "time": 1, "memory": 2, "method": 3}
    return min(misses, key=lambda miss: (order[miss.kind], miss.bytes_needed or 0))


def _too_large(
    card: ModelCard, name: MethodName, needed: int, budget: int, *, at_least: bool = False,
    why: str | None = None,
) -> Rejection:  # fmt: skip
    """why: what else there is to say of weights that the GPUs might have held together."""
    what = "weights and their states alone take" if at_least and name == "full" else "weights alone take"
    verb = what if at_least else "needs"
    told = f"; {why}" if why else ""
    return Rejection(
        model=card.id,
        kind="memory",
        reason=f"{name}: {verb} {needed / GIB:.1f} GiB, {budget / GIB:.1f} GiB are free{told}",
        source="formula",
        bytes_needed=needed,
    )


def _priced(found: Estimate, request: Request, hardware: Hardware) -> Estimate:
    if request.price_per_hour is None or found.seconds is None:
        return found
    rate = request.price_per_hour * max(1, len(hardware.accelerators)) / 3600
    band = found.seconds
    cost = Range(low=band.low * rate, expected=band.expected * rate, high=band.high * rate)
    return found.model_copy(update={"cost": cost})


def _over_budget(card: ModelCard, name: MethodName, found: Estimate, request: Request) -> Rejection | None:
    if request.max_seconds is not None:
        if found.seconds is None:
            return Rejection(model=card.id, kind="time", reason=f"{name}: its time cannot be predicted")
        if found.seconds.expected > request.max_seconds:
            hours, limit = found.seconds.expected / 3600, request.max_seconds / 3600
            return Rejection(
                model=card.id, kind="time", reason=f"{name}: {hours:.1f} h, {limit:.1f} h allowed"
            )
    if request.max_cost is not None:
        if found.cost is None:
            return Rejection(
                model=card.id, kind="cost", reason=f"{name}: no price an hour is known (--price-per-hour)"
            )
        if found.cost.expected > request.max_cost:
            return Rejection(
                model=card.id,
                kind="cost",
                reason=f"{name}: ${found.cost.expected:,.2f}, ${request.max_cost:,.2f} allowed",
            )
    return None


def _candidate(rank: int, pair: _Pair, bench: _Bench) -> Candidate:
    """Put a pair into words, with the largest micro-batch that fits and the other methods that do."""
    request, hardware, budget = bench.request, bench.hardware, bench.budget
    shape, estimate = widen(
        pair.card, pair.method, pair.shape, hardware, found=pair.estimate, estimate=bench.estimate
    )
    pair = replace(pair, shape=shape, estimate=_priced(estimate, request, hardware))
    card = pair.card
    chosen = choose_variant(card, request)
    assert chosen is not None, "models without the variant are filtered out before"
    variant, repository, why = chosen
    method_why = next(part.why for part in pair.parts if part.name == "method")
    return Candidate(
        rank=rank,
        card=card,
        weights=repository,
        variant=variant,
        method=pair.method,
        batch=pair.shape,
        estimate=pair.estimate,
        budget=budget,
        score=round(pair.score, 3),
        parts=pair.parts,
        evidence=pair.proof,
        reasons=candidate_reasons(
            card,
            request,
            pair.proof,
            variant_why=why,
            method_why=_method_words(pair, request, method_why),
            batch=pair.shape,
            needed=pair.needed,
            budget=budget,
        ),
        duties=find_licence(card.licence).duties,
        warnings=(*_untrained(pair, request, hardware), *warnings(card, request, hardware)),
        settings=pair.settings,
        alternatives=_others(pair, bench),
        serving=suggest(card, request, bench.target or hardware),
    )


def _untrained(pair: _Pair, request: Request, hardware: Hardware) -> tuple[str, ...]:
    """What this version cannot do of it yet, and whether it takes longer than anybody waits."""
    why = why_not_trained(
        request.purpose,
        pair.method.name,
        goal=request.goal,
        images=request.reads_images,
        family=pair.card.architecture.model_type if pair.card.architecture is not None else None,
    )
    found = [] if why is None else [f"{UNTRAINED}: {why}"]
    if (short := unanswered(pair.card, pair.method, pair.shape, hardware)) is not None:
        found.append(short)
    if any(part.name == "patience" for part in pair.parts) and pair.estimate.seconds is not None:
        found.append(
            f"takes {pair.estimate.seconds.expected / 3600:.0f} h: fewer or shorter rows, --preset quick or "
            "another machine bring it down; --hours says how long is fine"
        )
    if any(gpu.kind == "mps" for gpu in hardware.accelerators):
        found.append(
            "on a Mac Luthier trains on the CPU, not on Apple's GPU: the time is a guess from its vector "
            "units, nothing was measured on Apple silicon"
        )
    return tuple(found)


def _method_words(pair: _Pair, request: Request, why: str) -> str:
    """Why this method, and which one would have suited better if it fitted."""
    name = pair.method.name
    asked = [m for m in METHODS if request.method in (None, m)]
    liked = max(asked, key=lambda m: suitability(m, pair.card, request).points)
    if suitability(liked, pair.card, request).points == suitability(name, pair.card, request).points:
        return f"{name}: {why}"
    return f"{name}, though {liked} would suit better where it fits: {why}"


def _others(pair: _Pair, bench: _Bench) -> tuple[str, ...]:
    """Other methods that fit the same model, in words."""
    found: list[str] = []
    for name in METHODS:
        if name == pair.method.name or bench.request.method not in (None, name):
            continue
        other = _try_method(pair.card, name, pair.proof, bench)
        if isinstance(other, _Pair):
            seconds = other.estimate.seconds
            when = "" if seconds is None else f", {seconds.expected / 3600:.1f} h"
            found.append(f"{name} fits too: {other.needed / GIB:.1f} GiB{when}")
    return tuple(found)


def _rules(request: Request, *, known: bool) -> tuple[str, ...]:
    """What decided, in words and in order of precedence."""
    found = ["filters first (task, licence, context, languages, memory), then preference"]
    if not known and request.stage is None:
        found.append(
            f"nothing is known of the hardware: {FIRST_RUN} with LoRA comes first (guide C), "
            "fits are judged on a GPU with 8 GB"
        )
    elif request.stage == "first-run":
        found.append(f"a first run: {FIRST_RUN} with LoRA comes first (guide C)")
    elif request.stage == "production":
        found.append("production: LoRA on the largest model that fits (guide C), judged with its quality")
    elif request.stage == "research":
        found.append("research: full fine-tuning, sharded over several GPUs where one is too small (guide C)")
    else:
        found.append(f"known hardware: the best that fits, by priority {request.priority}")
    found += list(request.mapped)
    return tuple(found)


def _trainable(candidates: tuple[Candidate, ...]) -> tuple[str, ...]:
    """Which candidate this version trains, where it is not the first."""
    usable = [c for c in candidates if not any(UNTRAINED in line for line in c.warnings)]
    if not candidates or (usable and usable[0] is candidates[0]):
        return ()
    if not usable:
        return ("none of those above can be trained with this version: they can be planned",)
    best = usable[0]
    return (
        f"{best.weights} with {best.method.name} (number {best.rank}) is the first that this version trains",
    )


def _next(candidates: tuple[Candidate, ...], request: Request, hardware: Hardware | None) -> tuple[str, ...]:
    """Commands that can be typed as they stand."""
    if not candidates:
        return ("luthier recommend --help",)
    usable = [c for c in candidates if not any(UNTRAINED in line for line in c.warnings)]
    best = usable[0] if usable else candidates[0]
    words = options_of(request)
    if hardware is not None and hardware.words:
        words = f'--hardware "{hardware.words}" {words}'.rstrip()
    again = " ".join(filter(None, ("luthier recommend", words, f"--model {best.card.id}")))
    if request.method is None and best.method.name != candidates[0].method.name:
        again += f" --method {best.method.name}"
    return (
        f"luthier models show {best.card.id}",
        f"{again} --data rows.jsonl -o recipe.yaml",
        "luthier train recipe.yaml",
    )


def needed_by(
    card: ModelCard, name: MethodName, request: Request, hardware: Hardware, *, estimate: Estimator
) -> tuple[int, bool] | str:
    """(bytes needed, whether they fit) for one method, or why it cannot be used."""
    if card.architecture is None:
        return "its shape is not verified"
    bench = _bench(request, hardware, estimate, "balanced")
    tried = _try_method(card, name, _proof(card, bench), bench)
    if isinstance(tried, _Pair):
        return tried.needed, True
    if tried.bytes_needed is not None:
        return tried.bytes_needed, False
    return tried.reason


def _nearest(rejected: Sequence[Rejection], bench: _Bench) -> str | None:
    """Of the models that only memory rejects, the one that needs least, and a GPU that would hold it."""
    short = sorted((r for r in rejected if r.kind == "memory"), key=lambda r: r.bytes_needed or 0)
    needs: list[tuple[int, str]] = []
    for rejection in short[:NEAREST]:
        card = model_card(rejection.model)
        for name in METHODS:
            if bench.request.method not in (None, name):
                continue
            if (needed := _tightest(card, name, bench)) is not None:
                needs.append((needed, f"{card.id} with {name}"))
    if not needs:
        return None
    needed, what = min(needs)
    holding = [spec for spec in gpus() if spec.kind == "cuda" and spec.memory_total * GPU_SHARE >= needed]
    where = min(holding, key=lambda spec: spec.nameplate).name if holding else "several GPUs together"
    return f"{what} needs least, {needed / GIB:.1f} GiB: {where} would hold it"


def _tightest(card: ModelCard, name: MethodName, bench: _Bench) -> int | None:
    """Bytes of one row at a time with everything recomputed on a GPU, or None where the method cannot be."""
    request = bench.request
    machine = bench.hardware if bench.hardware.accelerators else parse_hardware("rtx 4090")
    if method_objection(card, name, request, machine) is not None:
        return None
    settings = lookup(card, name, request, preset=bench.preset)
    method = build_method(name, *(value_of(settings, one) for one in ("rank", "alpha", "dropout")))
    shape = base_shape(card, request, machine, batch_size=1, epochs=1.0)
    tight = shape.model_copy(update={"checkpointing": True})
    return round(bench.estimate(card, method, tight, machine).process.high)

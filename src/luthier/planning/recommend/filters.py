"""Conditions that a model meets or is rejected for. Each filter looks at one condition alone.

The first objection found is the one reported; their order is that of the checklist: the task, what
the model is, the licence, what it must be able to read and do, where it must run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from luthier.catalog.index import licence as find_licence
from luthier.planning.recommend.languages import NAMES, covers
from luthier.schema.licence import Licence, LicenceRule
from luthier.schema.model import ModelCard
from luthier.schema.plan import Rejection, RejectionKind
from luthier.schema.request import Request, SizeClass

LONG_DOCUMENT = 32_768
"""Native context from which a model counts as one for long documents."""

SIZES: dict[SizeClass, tuple[float, float]] = {
    "under-1b": (0, 1e9),
    "edge": (0, 4.6e9),
    "general": (5e9, 11e9),
    "expert": (13e9, 36e9),
}
"""Size by use, as bounds on total parameters: low <= total < high. What vendors call 4B has up to 4.6e9."""

Variant = Literal["instruct", "base", "only"]
Filter = Callable[[ModelCard, Request], Rejection | None]


def first_objection(card: ModelCard, request: Request) -> Rejection | None:
    """The first condition that the model misses whatever the hardware, or None."""
    for check in FILTERS:
        objection = check(card, request)
        if objection is not None:
            return objection
    return None


def listed(card: ModelCard, request: Request, *, any_purpose: bool) -> bool:
    """Whether a model belongs in a listing: as for a recommendation, but unknown shapes are shown too."""
    skipped = {_shape, _variant, *((_purpose,) if any_purpose else ())}
    return all(check(card, request) is None for check in FILTERS if check not in skipped)


def choose_variant(card: ModelCard, request: Request) -> tuple[Variant, str, str] | None:
    """(variant, repository, why) to start from, or None where the variant needed was never released."""
    instruct, base = card.variants.instruct, card.variants.base
    if card.kind in ("encoder", "bi-encoder", "cross-encoder"):
        return "only", card.id, "encoders have no instruct variant"
    if request.goal in ("new-language", "from-scratch"):
        if base is None:
            return None
        return "base", base, "a new language or vocabulary starts from base weights (guide A)"
    if request.purpose == "text-generation":
        if base is not None:
            return "base", base, "completion starts from base weights (guide A)"
        return "instruct", instruct or card.id, "no base weights released: the instruct ones complete too"
    if instruct is None:
        return "base", base or card.id, "only base weights released: the chat format is learned in training"
    return "instruct", instruct, "chat, tone and strict formats start from instruct weights (guide A)"


def _reject(card: ModelCard, kind: RejectionKind, reason: str, source: str | None = None) -> Rejection:
    return Rejection(model=card.id, kind=kind, reason=reason, source=source)


def _purpose(card: ModelCard, request: Request) -> Rejection | None:
    if request.purpose in card.purposes:
        return None
    needed = {
        "chat": "a decoder",
        "text-generation": "a decoder",
        "similarity": "a bi-encoder",
        "reranking": "a cross-encoder",
    }.get(request.purpose, "an encoder")
    return _reject(card, "purpose", f"{request.purpose} needs {needed}; this is a {card.kind}")


def _variant(card: ModelCard, request: Request) -> Rejection | None:
    if choose_variant(card, request) is not None:
        return None
    note = card.variants.base_note or "no base weights were released or verified"
    return _reject(card, "variant", f"{request.goal} starts from base weights: {note}")


def _modality(card: ModelCard, request: Request) -> Rejection | None:
    if request.reads_images and "image" not in card.modalities:
        return _reject(card, "modality", "does not read images")
    return None


def _family(card: ModelCard, request: Request) -> Rejection | None:
    if request.family is None:
        return None
    wanted = _folded(request.family)
    if any(_folded(name).startswith(wanted) for name in (card.family, card.name, card.org, card.id)):
        return None
    return _reject(card, "family", f"is not of {request.family}")


def _folded(name: str) -> str:
    return "".join(ch for ch in name.lower() if ch.isalnum())


def _size(card: ModelCard, request: Request) -> Rejection | None:
    low, high = SIZES[request.size] if request.size else (0, float("inf"))
    low = max(low, request.min_parameters or 0)
    ceiling = request.max_parameters if request.max_parameters is not None else float("inf")
    if (low, high, ceiling) == (0, float("inf"), float("inf")):
        return None
    if card.total is None:
        return _reject(card, "size", "its parameter count is not verified")
    if low <= card.total < high and card.total <= ceiling:
        return None
    return _reject(card, "size", f"has {card.total / 1e9:.2f}B parameters")


def licence_objections(terms: Licence, request: Request, *, multimodal: bool) -> list[tuple[str, str | None]]:
    """What the licence has against the request: (reason, clause), none where it is free."""
    found: list[tuple[str, str | None]] = []
    for rule in request.licence:
        objection = _rule_objection(terms, rule)
        if objection is not None:
            found.append(objection)
    if request.use == "commercial" and terms.commercial_use in ("no", "unknown"):
        found.append(_commercial_objection(terms))
    if (
        terms.user_threshold is not None
        and request.monthly_users is not None
        and request.monthly_users > terms.user_threshold
    ):
        found.append(
            (
                f"{terms.name}: above {terms.user_threshold:,} monthly users a separate licence is needed",
                _clause(terms, "user-threshold"),
            )
        )
    if request.eu_entity and multimodal and terms.excludes_eu_multimodal:
        found.append((f"{terms.name}: {terms.region}", _clause(terms, "region")))
    if request.outputs_train_models and terms.may_train_others == "no":
        found.append((f"{terms.name}: outputs may not train other models", _clause(terms, "outputs")))
    if request.redistribute and terms.redistribution in ("no", "unknown"):
        found.append((f"{terms.name}: passing on derivatives is {terms.redistribution}", None))
    return found


def _rule_objection(terms: Licence, rule: LicenceRule) -> tuple[str, str | None] | None:
    match rule:
        case "apache-2.0" | "mit":
            if (terms.spdx or "").lower() != rule:
                return f"its licence is {terms.name}, not {rule}", terms.url
        case "osi":
            if not terms.osi_approved:
                return f"{terms.name} is not approved by the Open Source Initiative", terms.url
        case "commercial":
            if terms.commercial_use in ("no", "unknown"):
                return _commercial_objection(terms)
        case "no-acceptable-use-policy":
            if terms.acceptable_use_policy is None:
                return f"{terms.name}: whether it has an acceptable-use policy is not verified", terms.url
            if terms.acceptable_use_policy:
                return f"{terms.name} has an acceptable-use policy", _clause(terms, "acceptable-use")
        case "may-train-others":
            if terms.may_train_others != "yes":
                why = terms.outputs_note or "whether outputs may train other models is not verified"
                return f"{terms.name}: {why}", _clause(terms, "outputs")
    return None


def _commercial_objection(terms: Licence) -> tuple[str, str | None]:
    if terms.id == "unknown":
        return "its licence is not verified", "unknown terms allow nothing until they are read"
    verified = terms.commercial_use == "no"
    why = "is for non-commercial use" if verified else "is not verified for commercial use"
    return f"{terms.name} {why}", _clause(terms, "commercial-use")


def _clause(terms: Licence, topic: str) -> str | None:
    found = next((c for c in terms.clauses if c.topic == topic), None)
    return terms.url if found is None else f"{found.where}: {found.says}"


def _licence(card: ModelCard, request: Request) -> Rejection | None:
    terms = find_licence(card.licence)
    objections = licence_objections(terms, request, multimodal="image" in card.modalities)
    if not objections:
        return None
    reason, clause = objections[0]
    return _reject(card, "licence", reason, clause)


def _context(card: ModelCard, request: Request) -> Rejection | None:
    if request.context is None:
        return None
    native = card.context.native
    if native is None:
        return _reject(card, "context", "its context length is not verified")
    if native >= request.context:
        return None
    reason = f"reads {native:,} tokens by itself, {request.context:,} are needed"
    if card.context.extended and card.context.extended >= request.context:
        reason += f" ({card.context.extended:,} only with its published extension)"
    return _reject(card, "context", reason, card.context.note)


def _language(card: ModelCard, request: Request) -> Rejection | None:
    if request.goal == "new-language":
        return None
    missing = [code for code in request.languages if covers(card, code) == "no"]
    if not missing:
        return None
    known = ", ".join(card.languages or ()) or card.language_claim or "none"
    return _reject(
        card, "language", f"its maker does not name {', '.join(NAMES[c] for c in missing)} (names: {known})"
    )


def _feature(card: ModelCard, request: Request) -> Rejection | None:
    for feature in ("tools", "thinking"):
        if feature in request.features and feature not in card.tags:
            return _reject(card, "feature", f"no {feature} format in its published chat template")
    return None


def _gguf(card: ModelCard, request: Request) -> Rejection | None:
    if not request.gguf or card.gguf.supported:
        return None
    what = "is not verified" if card.gguf.supported is None else "is not supported by llama.cpp's converter"
    note = f" ({card.gguf.note})" if card.gguf.note else ""
    return _reject(card, "gguf", f"conversion to GGUF {what}{note}")


def _offline(card: ModelCard, request: Request) -> Rejection | None:
    if request.offline and card.embedded is None and card.added_from is None:
        return _reject(card, "offline", "its weights come from the Hub only")
    return None


def _shape(card: ModelCard, _: Request) -> Rejection | None:
    if card.architecture is None or card.total is None:
        return _reject(card, "unknown-shape", "its shape is not verified: memory cannot be predicted")
    return None


FILTERS: tuple[Filter, ...] = (
    _purpose,
    _variant,
    _modality,
    _family,
    _size,
    _licence,
    _context,
    _language,
    _feature,
    _gguf,
    _offline,
    _shape,
)

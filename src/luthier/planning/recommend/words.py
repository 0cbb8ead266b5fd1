"""Requests from words: single values with the nearest name, and whole sentences by rules that are shown."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import ValidationError

from luthier.errors import UsageError, did_you_mean
from luthier.planning.recommend.languages import NAMES, language_code
from luthier.schema.data import DataProfile
from luthier.schema.licence import LicenceRule, Use
from luthier.schema.recipe import Purpose
from luthier.schema.request import (
    Feature,
    Goal,
    MethodName,
    Priority,
    Request,
    SizeClass,
    Stage,
    Vertical,
)

CHOICES: dict[str, tuple[str, ...]] = {
    "purpose": get_args(Purpose),
    "goal": get_args(Goal),
    "stage": get_args(Stage),
    "use": get_args(Use),
    "licence": get_args(LicenceRule),
    "vertical": get_args(Vertical),
    "features": get_args(Feature),
    "priority": get_args(Priority),
    "size": get_args(SizeClass),
    "method": get_args(MethodName),
}
"""Field -> the words that it takes."""

PURPOSE_WORDS: tuple[tuple[str, Purpose], ...] = (
    (r"re-?rank\w*|cross-encoder", "reranking"),
    (r"embed\w*|similar\w*|semantic search|retriev\w*|bi-encoder|duplicate\w*", "similarity"),
    (r"multi-?label|tagg\w*|\btags?\b|topics\b", "multi-label-classification"),
    (
        r"classif\w*|categor\w*|sentiment|intents?\b|route|routing|triage|spam|moderat\w*",
        "multi-class-classification",
    ),
    (r"complet\w*|autocomplete|continue text|infill\w*", "text-generation"),
    (
        r"chat\w*|assistant\w*|answer\w*|conversation\w*|dialog\w*|support bot|agent|summar\w*|"
        r"extract\w*|json|instruct\w*|translat\w*|rewrit\w*|explain\w*",
        "chat",
    ),
    (r"\bsearch\w*|\brag\b|look\w* up", "similarity"),
)
"""Patterns and the purpose that they mean, the more special first."""

FIELD_WORDS: tuple[tuple[str, str, Any], ...] = (
    (r"\bimages?\b|\bphotos?\b|\bscreenshots?\b|\bscans?\b|vision", "features", "image"),
    (r"tool call\w*|function call\w*|\btools\b|\bagents?\b", "features", "tools"),
    (r"\bjson\b|structured output", "features", "json"),
    (r"reason\w* step|thinking|chain of thought", "features", "thinking"),
    (r"\bcode\b|coding|programming|python|javascript|\bsql\b", "vertical", "code"),
    (r"medic\w*|clinic\w*|patient\w*|health\w*", "vertical", "medical"),
    (r"\blegal\b|contracts?\b|lawyers?|law firm", "vertical", "legal"),
    (r"financ\w*|bank\w*|trading|invoices?", "vertical", "finance"),
    (r"\bphones?\b|mobile|\bedge\b|raspberry|on-device|embedded device", "size", "edge"),
    (r"under 1 ?b\b|tiny model|sub-?1b", "size", "under-1b"),
    (r"commercial\w*|client\w*|customers?|product\b|startup|company", "use", "commercial"),
    (r"apache", "licence", "apache-2.0"),
    (r"open[- ]source licen[cs]e|osi", "licence", "osi"),
    (r"train other models|distil\w*|synthetic data", "outputs_train_models", True),
    (r"ollama|llama\.cpp|lm studio|gguf", "gguf", True),
    (r"first time|first run|never done|beginner|just trying", "stage", "first-run"),
    (r"in production|production", "stage", "production"),
    (r"new language|low-resource language|vocabulary", "goal", "new-language"),
    (r"from scratch|pretrain\w*", "goal", "from-scratch"),
    (r"domain|specialised|specialized|terminology|jargon", "goal", "domain"),
    (r"tone|style|persona|format\b", "goal", "behaviour"),
    (r"best quality|best possible|highest quality|accuracy matters", "priority", "quality"),
    (r"\bfast\b|quickly|low latency|cheap", "priority", "speed"),
    (r"as small as possible|smallest", "priority", "size"),
    (r"community|well supported|ecosystem", "priority", "ecosystem"),
    (r"long (?:\w+ )?(?:documents?|contracts?|reports?)|whole books?|long context", "context", 32_768),
)
"""Patterns, the field and its value."""

SPOKEN_SHARE = 0.1
"""Share of the data's rows from which a language must be handled."""
STRUCTURES: tuple[tuple[str, float, str, Any, str], ...] = (
    ("tools", 0.05, "features", "tools", "rows call tools"),
    ("json-answers", 0.5, "features", "json", "answers are JSON"),
    ("code-answers", 0.5, "vertical", "code", "answers are code"),
)
"""What the data hold, the share of rows from which it counts, and the field and value that it means."""


def read_data_into(values: dict[str, Any]) -> dict[str, Any]:
    """What the profile of the data says of fields that were not given; each is kept in ``mapped``."""
    profile: DataProfile | None = values.get("profile")
    if profile is None:
        return values
    found, mapped = dict(values), list(values.get("mapped", ()))
    spoken = {code: share for code, share in profile.languages.items() if code in NAMES}
    if "languages" not in values and (codes := [c for c, share in spoken.items() if share >= SPOKEN_SHARE]):
        found["languages"] = tuple(codes)
        named = ", ".join(f"{NAMES[code]} ({spoken[code]:.0%} of the rows)" for code in codes)
        mapped.append(f"the data are in {named}")
    generative = values.get("purpose", "chat") in ("chat", "text-generation")
    for structure, least, field, value, words in STRUCTURES:
        share = profile.structure.get(structure, 0.0)
        if share < least or not generative or (field == "vertical" and field in values):
            continue
        several = field == "features"
        found[field] = (*_several(found.get(field)), value) if several else value
        mapped.append(f"{share:.0%} of the {words}: {field} {value}")
    return {**found, "mapped": tuple(mapped)}


def _several(value: Any) -> tuple[str, ...]:
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value or ())


def make_request(values: dict[str, Any]) -> Request:
    """A request from plain values. Errors: UsageError with the nearest name, or what contradicts what."""
    checked = read_data_into(values)
    if "languages" in checked:
        words = checked["languages"]
        words = re.split(r"[,\s]+", words.strip()) if isinstance(words, str) else list(words)
        checked["languages"] = tuple(language_code(word) for word in words if word)
    for field, known in CHOICES.items():
        if field in checked and checked[field] is not None:
            checked[field] = _checked(field, checked[field], known)
    try:
        request = Request.model_validate(checked)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UsageError(f"{where}: {fault['msg'][:1].lower()}{fault['msg'][1:]}") from None
    refuse_contradictions(request)
    return request


def _checked(field: str, value: Any, known: tuple[str, ...]) -> Any:
    several = field in ("licence", "features")
    words = value.split(",") if several and isinstance(value, str) else value if several else [value]
    found = []
    for word in words:
        folded = str(word).strip().lower().replace("_", "-").replace(" ", "-")
        if not folded:
            continue
        if folded not in known:
            name = {"features": "feature", "licence": "licence rule"}.get(field, field)
            raise UsageError(
                f"{str(word).strip()!r} is not a {name}",
                hint=did_you_mean(folded, known) or f"one of {', '.join(known)}",
            )
        found.append(folded)
    return tuple(found) if several else found[0] if found else None


def refuse_contradictions(request: Request) -> None:
    """Errors: UsageError for wishes that cannot be met together, with what to give up."""
    low, high = request.min_parameters, request.max_parameters
    if low is not None and high is not None and low > high:
        raise UsageError(
            f"at least {low:,} and at most {high:,} parameters leave nothing",
            hint="raise the largest size or lower the smallest",
        )
    if {"apache-2.0", "mit"} <= set(request.licence):
        raise UsageError("no model is under both apache-2.0 and mit", hint="ask for osi to allow either")
    if request.max_cost is not None and request.price_per_hour is None:
        raise UsageError(
            f"at most ${request.max_cost:,.2f} were allowed, but no price is known",
            hint="say what an hour of one GPU costs: --price-per-hour 2.50 (prices differ by maker and day; "
            "`luthier plan` names a dated list price where there is one), or limit the time with --hours",
        )
    generative = request.purpose in ("chat", "text-generation")
    if not generative and request.goal in ("new-language", "from-scratch"):
        raise UsageError(
            f"{request.purpose} with goal {request.goal} is not done",
            hint="leave the goal out, or train a decoder (purpose text-generation)",
        )
    if not generative and {"tools", "thinking"} & set(request.features):
        raise UsageError(
            f"{request.purpose} neither calls tools nor thinks",
            hint="leave the features out, or use purpose chat",
        )
    if not generative and request.method == "qlora":
        raise UsageError(
            f"qlora is not offered for {request.purpose}", hint="use full or lora: encoders are small"
        )


def from_sentence(sentence: str, given: dict[str, Any] | None = None) -> Request:
    """Map a sentence to a request by patterns; each that matched is kept in ``mapped``.

    given: fields that were set otherwise; they win. Errors: UsageError when no purpose is found in it.
    """
    text = sentence.lower()
    values: dict[str, Any] = {}
    mapped: list[str] = []
    for pattern, purpose in PURPOSE_WORDS:
        if match := re.search(pattern, text):
            values["purpose"] = purpose
            mapped.append(f"{match.group(0)!r} means purpose {purpose}")
            break
    for pattern, field, value in FIELD_WORDS:
        match = re.search(pattern, text)
        if match is None:
            continue
        if field in ("features", "licence"):
            values[field] = (*values.get(field, ()), value)
        elif field in values:
            continue
        else:
            values[field] = value
        mapped.append(f"{match.group(0)!r} means {field} {value}")
    codes = [code for code, name in NAMES.items() if re.search(rf"\b{name}\b", text)]
    if codes:
        values["languages"] = tuple(codes)
        mapped.append(f"languages: {', '.join(NAMES[code] for code in codes)}")
    if "multilingual" in text and not codes:
        values["languages"] = ("de", "en", "es", "fr", "ja", "zh")
        mapped.append("'multilingual' means languages de, en, es, fr, ja, zh")
    if "purpose" not in values and "purpose" not in (given or {}):
        raise UsageError(
            f"no purpose was recognised in {sentence!r}",
            hint=f"say it with --purpose: {', '.join(CHOICES['purpose'])}",
        )
    return make_request({**values, **(given or {}), "words": sentence, "mapped": tuple(mapped)})


FLAGS: dict[str, str] = {
    "monthly_users": "users", "eu_entity": "eu", "languages": "language", "features": "feature",
    "sequence_length": "length", "max_cost": "dollars", "max_parameters": "max-size",
    "min_parameters": "min-size",
}  # fmt: skip
"""Fields whose option is called otherwise."""


def options_of(request: Request) -> str:
    """The request as the options of `luthier recommend`, so that it can be asked again."""
    neutral, found = Request(), list[str]()
    for name in Request.model_fields:
        value = getattr(request, name)
        if value == getattr(neutral, name) or name in ("words", "mapped", "profile", "max_seconds"):
            continue
        flag = f"--{FLAGS.get(name, name).replace('_', '-')}"
        if isinstance(value, bool):
            found.append(flag)
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        found.append(f'{flag} "{text}"' if " " in text else f"{flag} {text}")
    if request.max_seconds is not None:
        found.append(f"--hours {request.max_seconds / 3600:g}")
    return " ".join(found)

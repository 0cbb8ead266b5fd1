"""The recommendation as a form: what was asked, the ranking, and the way from a candidate to a run."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.errors import UsageError
from luthier.planning.recommend import recommend
from luthier.planning.recommend.words import CHOICES, from_sentence, make_request
from luthier.schema.hardware import Hardware
from luthier.schema.plan import REJECTION_WORDS, Candidate, Plan, Rejection
from luthier.schema.request import Request
from luthier.studio.services import inspection
from luthier.studio.services.datasets import dataset
from luthier.studio.services.models import folder_of, revision_to_take
from luthier.studio.services.planning import described

NOT_ADVICE = "Licence terms are cited to inform; this is not legal advice."
BILLION = 1_000_000_000


class Form(BaseModel):
    """The fields of the page Advise; each is an option of ``luthier recommend``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: str = Field("", max_length=2_000)
    """The task in a sentence."""
    purpose: str = Field("", max_length=64)
    data: str = Field("", max_length=64)
    """Id of a data set."""
    hardware: str = Field("", max_length=200)
    goal: str = Field("", max_length=64)
    stage: str = Field("", max_length=64)
    priority: str = Field("", max_length=64)
    use: str = Field("", max_length=64)
    licence: tuple[str, ...] = ()
    users: int | None = Field(None, ge=0)
    eu: bool = False
    outputs_train_models: bool = False
    redistribute: bool = False
    vertical: str = Field("", max_length=64)
    language: str = Field("", max_length=200)
    context: int | None = Field(None, ge=1)
    feature: tuple[str, ...] = ()
    size: str = Field("", max_length=64)
    largest: float | None = Field(None, gt=0, le=100_000, allow_inf_nan=False)
    """Billions of parameters."""
    family: str = Field("", max_length=100)
    method: str = Field("", max_length=16)
    preset: str = Field("balanced", max_length=16)
    rows: int | None = Field(None, ge=1)
    length: int | None = Field(None, ge=8)
    hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    dollars: float | None = Field(None, gt=0, allow_inf_nan=False)
    price: float | None = Field(None, ge=0, allow_inf_nan=False)
    target: str = Field("", max_length=200)
    gguf: bool = False
    offline: bool = False

    @property
    def asked(self) -> bool:
        """Whether anything was said."""
        return self != Form()


def form_of(values: dict[str, Any]) -> Form:
    """The form of a page's query; empty fields are left out. Errors: UsageError for what cannot be."""
    given = {key: value for key, value in values.items() if value not in ("", [], [""])}
    try:
        return Form.model_validate(given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"][:1])
        raise UsageError(f"{where}: {fault['msg'][:1].lower()}{fault['msg'][1:]}") from None


def request_of(form: Form, uploads: Path) -> Request:
    """The request of a form. Errors: UsageError with the nearest name, or what contradicts what."""
    given: dict[str, Any] = {
        "purpose": form.purpose, "goal": form.goal, "stage": form.stage, "priority": form.priority,
        "licence": form.licence, "use": form.use, "monthly_users": form.users, "vertical": form.vertical,
        "languages": form.language, "context": form.context, "features": form.feature, "size": form.size,
        "family": form.family, "method": form.method, "rows": form.rows, "sequence_length": form.length,
        "max_seconds": None if form.hours is None else form.hours * 3600, "max_cost": form.dollars,
        "price_per_hour": form.price, "target": form.target, "gguf": form.gguf or None,
        "offline": form.offline or None, "eu_entity": form.eu or None,
        "outputs_train_models": form.outputs_train_models or None, "redistribute": form.redistribute or None,
        "max_parameters": None if form.largest is None else round(form.largest * BILLION),
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value not in (None, "", ())}
    if form.data:
        known = dataset(uploads, form.data)
        given.setdefault("purpose", known.task)
        seen = inspection.any_found(uploads, known)
        if seen is None:
            inspection.start(uploads, known)
        elif seen.profile is not None:
            given["profile"] = seen.profile
            given.setdefault("rows", seen.profile.rows)
    if form.words.strip():
        return from_sentence(form.words.strip(), given)
    return make_request(given)


def advise(form: Form, *, uploads: Path, here: Hardware, most: int | None = 10) -> Plan:
    """Rank models and methods for a form. Errors: UsageError for wishes that cannot be."""
    presets = ("quick", "balanced", "best")
    if form.preset not in presets:
        raise UsageError(f"{form.preset!r} is not a preset", hint=f"one of {', '.join(presets)}")
    machine = described(form.hardware) if form.hardware.strip() else here
    return recommend(request_of(form, uploads), machine, preset=form.preset, most=most)  # type: ignore[arg-type]


def rejected_by_reason(plan: Plan) -> list[tuple[str, list[Rejection]]]:
    """What was left out under headings, the largest group first; those for other purposes last."""
    groups: dict[str, list[Rejection]] = defaultdict(list)
    for one in plan.rejected:
        groups[one.kind].append(one)
    order = sorted(groups.items(), key=lambda group: (group[0] == "purpose", -len(group[1])))
    return [(REJECTION_WORDS[kind], group) for kind, group in order]  # type: ignore[index]


def plan_url(candidate: Candidate, form: Form, request: Request) -> str:
    """New run with this candidate filled in: its settings, the data, and what was asked of the licence."""
    settings = {one.name: one.value for one in candidate.settings}
    method = candidate.method
    fields: dict[str, Any] = {"model": candidate.weights, "method": method.name, "task": request.purpose}
    if folder_of(candidate.weights) is not None:
        fields["revision"] = revision_to_take(candidate.weights)
    if method.name != "full":
        fields |= {"rank": method.rank, "alpha": method.alpha}
    for name, field in (("epochs", "epochs"), ("learning_rate", "learning_rate"), ("batch_size", "batch")):
        fields[field] = settings.get(name)
    if form.data:
        # The length of real rows is derived from them; only a guess has to be handed on.
        fields |= {"data": form.data, "task": None}
    else:
        fields["length"] = candidate.batch.sequence_length
    if form.hardware.strip():
        fields["hardware"] = form.hardware.strip()
    if form.price is not None:
        fields["price"] = form.price
    words = [f"{key}={value}" for key, value in (("licence.use", request.use),
             ("licence.monthly_users", request.monthly_users)) if value is not None]  # fmt: skip
    words += [f"licence.{name}=true" for name in ("eu_entity", "outputs_train_models", "redistribute")
              if getattr(request, name)]  # fmt: skip
    if request.licence:
        words.append(f"licence.rules=[{', '.join(request.licence)}]")
    if words:
        fields["settings"] = "\n".join(words)
    if request.gguf:
        fields["gguf"] = ["Q8_0", "Q4_K_M"]
    kept = {key: value for key, value in fields.items() if value is not None}
    return f"/runs/new?{urlencode(kept, doseq=True)}"


def choices() -> dict[str, tuple[str, ...]]:
    """Field -> the words that it takes."""
    return CHOICES

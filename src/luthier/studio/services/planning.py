"""What a run would need, in milliseconds: the very resolver and formulas of ``luthier plan``, nothing loaded.

A ``Wish`` is the form of the page New run and the body of ``POST /api/v1/plan``: what is left out is derived.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from luthier.catalog.index import model_card
from luthier.catalog.purposes import check_supported, spec_of
from luthier.errors import DoesNotFit, LuthierError, UsageError
from luthier.planning.correction import Corrections
from luthier.planning.cost import priced
from luthier.planning.licence_gate import hold_to_licence
from luthier.planning.resolve import Resolved, resolve
from luthier.planning.solver import Change, Question, changes
from luthier.schema.base import Range
from luthier.schema.data import Lengths
from luthier.schema.data_profile import LengthProfile
from luthier.schema.estimate import Estimate
from luthier.schema.hardware import Hardware
from luthier.schema.hyperparameter import Preset
from luthier.schema.load import dump_recipe, recipe_from
from luthier.schema.model import Architecture, ModelCard
from luthier.schema.recipe import OptimizerName, Purpose, Recipe
from luthier.schema.request import MethodName, Request
from luthier.sizing.gguf import gguf_bytes
from luthier.sizing.offload import waiting
from luthier.sizing.resident import BYTES
from luthier.studio.services import inspection
from luthier.studio.services.datasets import Dataset, dataset
from luthier.studio.services.models import folder_of, is_small_encoder, revision_to_take

if TYPE_CHECKING:
    from luthier.runs.directory import RunDirectory

ROOMY = 1 << 50
"""Bytes of a machine on which everything fits, to price what does not fit here."""
UNKNOWN_ROWS, UNKNOWN_LENGTH = 1_000, 512
"""Rows and longest row where no data are chosen or counted yet."""
PARTS = {
    "weights": "Weights",
    "adapters": "Adapters",
    "gradients": "Gradients",
    "optimizer": "Optimiser",
    "activations": "Activations",
    "logits": "Logits",
    "buffers": "Buffers",
    "workspace": "Workspace",
    "runtime": "Runtime",
}


class Wish(BaseModel):
    """What somebody wants to train. Only a model is needed; all else can be derived."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    """Catalogue or Hub id, a folder, or a version of the registry."""
    revision: str | None = None
    data: str | None = None
    """Id of the data set to train on."""
    test: str | None = None
    """Id of the data set to judge on; a tenth of the training rows is held out when not given."""
    from_run: str | None = None
    """A run whose recipe is taken and changed."""
    task: Purpose | None = None
    """What the model is for; what the data set says when not given."""
    preset: Preset = "balanced"
    method: MethodName | None = None
    rank: int | None = Field(None, ge=1, le=4096)
    alpha: float | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0, le=10_000)
    steps: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    batch: int | None = Field(None, ge=1, le=1_000_000)
    micro: int | None = Field(None, ge=1, le=1_000_000)
    devices: int | None = Field(None, ge=1, le=4096)
    """GPUs that train together; one when not given."""
    length: int | None = Field(None, ge=8, le=100_000_000)
    over: Literal["error", "truncate", "drop"] | None = None
    """What to do with rows longer than the sequence."""
    checkpointing: Literal["none", "selective", "full", "offload"] | None = None
    optimizer: OptimizerName | None = None
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better one."""
    seed: int | None = Field(None, ge=0)
    eval_rows: int | None = Field(None, ge=1)
    answer: int | None = Field(None, ge=1)
    """Longest answer in tokens, where answers are judged."""
    gguf: tuple[str, ...] = ()
    merged: bool | None = None
    onnx: bool | None = None
    name: str | None = Field(None, max_length=200)
    hardware: str | None = Field(None, max_length=200)
    """Hardware in words; this machine when not given."""
    price: float | None = Field(None, ge=0, allow_inf_nan=False)
    """US dollars an hour."""
    settings: tuple[str, ...] = ()
    """Any other setting of a recipe as ``key.sub=value``."""


KEYS: dict[str, str] = {
    "rank": "method.rank",
    "alpha": "method.alpha",
    "epochs": "training.epochs",
    "steps": "training.max_steps",
    "learning_rate": "training.learning_rate",
    "batch": "training.batch_size",
    "micro": "training.micro_batch_size",
    "devices": "training.devices",
    "length": "training.sequence_length",
    "over": "data.over_length",
    "checkpointing": "training.activation_checkpointing",
    "optimizer": "training.optimizer",
    "patience": "training.patience",
    "seed": "seed",
    "eval_rows": "evaluation.max_rows",
    "answer": "evaluation.max_new_tokens",
    "merged": "export.merged",
    "onnx": "export.onnx",
    "name": "name",
}
"""Field of a wish -> key of the recipe."""


@dataclass(frozen=True, slots=True)
class Fix:
    """One change that can be made with one click."""

    words: str
    saves: int
    """Bytes off the peak; 0 where it saves none."""
    helps: bool
    """Whether it fits then and does not now."""
    values: dict[str, Any]
    """Field of the wish -> its new value."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a wish comes to."""

    wish: Wish
    recipe: Recipe | None = None
    """As asked for, nothing derived; None where the wish is no recipe."""
    resolved: Resolved | None = None
    """With every value derived; None where nothing can be said."""
    device: str = ""
    machine: str = ""
    cards: int = 0
    """GPUs of the machine."""
    budget: int = 0
    total_memory: int = 0
    """Of the device."""
    fits: bool = False
    tight: bool = False
    """Whether less than a tenth of the room is left at the band's upper end."""
    parts: tuple[tuple[str, int], ...] = ()
    """(part, bytes) at the peak, largest first."""
    memory: Range | None = None
    peak: str = ""
    away: int = 0
    """Bytes of frozen weights that wait in the host's memory."""
    away_why: str = ""
    """Why they do, and what it costs in time."""
    training: Range | None = None
    """Seconds of training."""
    judging: Range | None = None
    """Seconds of judging base and tuned model."""
    cost: Range | None = None
    priced: str = ""
    rate: float | None = None
    """Tokens a second."""
    rows: int = 0
    tokens_an_epoch: int = 0
    fixes: tuple[Fix, ...] = ()
    warnings: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    duties: tuple[str, ...] = ()
    counting: bool = False
    """Whether the lengths of the rows are still being counted."""
    exports: tuple[tuple[str, int], ...] = ()
    """(GGUF type, bytes) that can be chosen."""
    problem: str | None = None
    fix: str | None = None
    where: str | None = None
    milliseconds: float = 0.0
    derived: tuple[tuple[str, Any, str], ...] = field(default=())
    """(key, value, why) of each value that was derived."""

    @property
    def expected(self) -> float:
        return 0.0 if self.memory is None else self.memory.expected

    @property
    def over(self) -> float:
        """Bytes beyond the room at the band's upper end; negative where some are left."""
        return 0.0 if self.memory is None else self.memory.high - self.budget

    @property
    def yaml(self) -> str:
        """The recipe as a file: what was asked for, nothing derived."""
        return "" if self.recipe is None else recipe_text(self.recipe)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML with what differs from the defaults alone, and what it must name."""
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    values |= {"version": recipe.version, "task": recipe.task}
    values.setdefault("method", {})["name"] = recipe.method.name
    values = {key: values[key] for key in Recipe.model_fields if key in values}
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 110
    stream = StringIO()
    yaml.dump({key: value for key, value in values.items() if value not in ({}, None)}, stream)
    return stream.getvalue()


def resolved_text(plan: Plan) -> str:
    """The recipe with every derived value and where it came from."""
    return "" if plan.resolved is None else dump_recipe(plan.resolved.recipe)


# -- from a wish to a recipe ---------------------------------------------------------------------


def recipe_of(wish: Wish, uploads: Path, known: Dataset | None = None) -> Recipe:
    """The recipe of a wish, not yet resolved. Errors: RecipeError, UsageError, NotFound."""
    if not wish.model and wish.from_run is None:
        raise UsageError("choose a model", hint="Advise finds one for a task, or pick one under Models")
    values, words = _base(wish)
    if known is None and wish.data is not None:
        known = dataset(uploads, wish.data)
    if known is not None:
        values["task"] = known.task
        given = known.choice().model_dump(mode="json", exclude_defaults=True)
        kept = {
            key: value for key, value in values.get("data", {}).items() if key in ("max_rows", "over_length")
        }
        values["data"] = {**kept, **given}
        for section in ("preference", "classification", "similarity", "reranking"):
            if section != spec_of(known.task).section:
                values.pop(section, None)
        if known.purpose == "preference":
            values.setdefault("preference", {})
        elif known.task == "chat":
            values.pop("preference", None)
    if wish.task is not None:
        values["task"] = wish.task
    if not values.get("data"):
        values["data"] = {"train": ["rows.jsonl"]}
    if wish.test is not None:
        values["data"]["test"] = {"test": [dataset(uploads, wish.test).file]}
    for name, key in KEYS.items():
        value = getattr(wish, name)
        if value is not None and not (key.startswith("method.") and values["method"]["name"] == "full"):
            words.append(f"{key}={json.dumps(value, ensure_ascii=False)}")
    if known is not None and wish.name is None and wish.from_run is None:
        # An uploaded file has no name of its own on the disk.
        words.append(f"name={json.dumps(run_name(values, known))}")
    if wish.gguf:
        words.append(f"export.gguf={json.dumps(list(wish.gguf))}")
    return recipe_from(values, [*words, *(line.strip() for line in wish.settings if line.strip())])


def run_name(values: dict[str, Any], known: Dataset) -> str:
    """Model, data and method, as runs are named."""
    stem = known.name.split(".")[0]
    words = f"{values['model']['id'].rstrip('/').rsplit('/', 1)[-1]}-{stem}-{values['method']['name']}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "run"


def _base(wish: Wish) -> tuple[dict[str, Any], list[str]]:
    """Values to start from, and settings over them."""
    if wish.from_run is not None:
        from luthier.runs.lineage import recipe_of as again

        run = run_of(wish.from_run)
        # A neutral setting: with one, what was derived for that run is derived anew.
        recipe = again(run, [f"seed={run.recipe.seed}"], keep=False)
        values = recipe.model_dump(mode="json", exclude_defaults=True)
        values["method"] = {"name": recipe.method.name, **values.get("method", {})}
        values.pop("name", None)
        if wish.model and wish.model != recipe.model.id:
            values["model"] = {"id": wish.model}
        if wish.method is not None and wish.method != recipe.method.name:
            values["method"] = {"name": wish.method}
    else:
        values = {"model": {"id": wish.model}, "method": {"name": wish.method or usual_method(wish.model)}}
    if wish.model and "revision" not in values["model"]:
        # Weights that a package brought are named by it: without, the Hub would be asked for them.
        revision = wish.revision or revision_to_take(values["model"]["id"])
        values["model"] |= {"revision": revision} if revision else {}
    return values, []


def usual_method(model: str) -> MethodName:
    """Adapters; all weights of encoders under a billion parameters."""
    card = _card(model)
    return "full" if card is not None and is_small_encoder(card) else "lora"


def _preset(recipe: Recipe, wish: Wish, rows: int) -> Recipe:
    """The recipe with the settings of a preset other than balanced, where the recipe leaves them open."""
    card = _card(recipe.model.id)
    if wish.preset == "balanced" or card is None or recipe.model.from_scratch is not None:
        return recipe
    from luthier.planning.recommend.hyperparameters import lookup

    request = Request(purpose=recipe.task, rows=max(1, rows))
    found = {one.name: one for one in lookup(card, recipe.method.name, request, preset=wish.preset)}
    training, method, sources = {}, {}, dict(recipe.sources)
    for name in ("learning_rate", "epochs", "batch_size"):
        one = found.get(name)
        taken = name == "epochs" and recipe.training.max_steps is not None
        if one is not None and getattr(recipe.training, name) is None and not taken:
            training[name] = min(int(one.value), max(1, rows)) if name == "batch_size" else one.value
            sources[f"training.{name}"] = f"{wish.preset}: {one.source}"
    if wish.rank is None and recipe.method.name != "full" and "rank" in found:
        method["rank"] = int(found["rank"].value)
        sources["method.rank"] = f"{wish.preset}: {found['rank'].source}"
    tree = recipe.model_dump()
    tree["training"] |= training
    tree["method"] |= method
    return Recipe.model_validate({**tree, "sources": sources})


# -- pricing -------------------------------------------------------------------------------------


def plan(wish: Wish, *, uploads: Path, here: Hardware) -> Plan:
    """Price a wish. Never raises for what a person can get wrong: the plan says what, and the way out.

    here: this machine. Takes milliseconds: nothing is loaded, nothing fetched, no row read.
    """
    started = time.perf_counter()
    try:
        found = _plan(wish, uploads, here)
    except LuthierError as error:
        found = Plan(wish, problem=error.message, fix=error.hint, where=error.where)
        if not isinstance(error, DoesNotFit):
            with contextlib.suppress(LuthierError):  # the recipe can be shown though it cannot be priced
                found = replace(found, recipe=recipe_of(wish, uploads))
    return replace(found, milliseconds=round((time.perf_counter() - started) * 1e3, 2))


def _plan(wish: Wish, uploads: Path, here: Hardware) -> Plan:
    known = dataset(uploads, wish.data) if wish.data is not None else None
    recipe = recipe_of(wish, uploads, known)
    check_supported(recipe)
    arch = shape_of(recipe.model.id, recipe.model.revision)
    spec = spec_of(recipe.task)
    if spec.answers == "chat" and not arch.causal:
        raise UsageError(
            f"{recipe.model.id} is an encoder: it cannot write text, which {recipe.task} asks for",
            hint="choose a decoder, or data with labels or pairs",
        )
    machine = here if wish.hardware is None or not wish.hardware.strip() else _described(wish.hardware)
    rows, said, counting = _lengths(wish, uploads, known, recipe)
    asked = recipe
    recipe = _preset(recipe, wish, rows.train.count)
    rates = {} if machine.hypothetical else measured_rates(machine)
    corrections = _corrections(machine)

    def derived(recipe: Recipe, machine: Hardware) -> Resolved:
        return resolve(
            recipe, arch=arch, hardware=machine, profile=rows, matrix_rates=rates, corrections=corrections
        )

    fits = True
    try:
        found = derived(recipe, machine)
    except DoesNotFit:
        fits, found = False, derived(_smallest(recipe), _roomy(machine))
    dtype = str(found.recipe.model.dtype)
    question = Question(
        arch, found.recipe.method, machine, found.device, dtype, tokens=found.tokens,
        matrix_rate=rates.get(dtype), corrections=corrections,
        processes=found.recipe.training.devices // found.recipe.training.nodes,
    )  # fmt: skip
    estimate, price_words = priced(_whole_time(found), machine, wish.price)
    estimate = estimate.model_copy(update={"seconds": found.estimate.seconds})
    device = machine.accelerators[0] if found.device == "cuda" else None
    processor = machine.processor
    derived_values = tuple(
        (key, value_at(found.recipe, key), why) for key, why in found.recipe.sources.items() if key != "name"
    )
    return Plan(
        wish=wish,
        recipe=asked if wish.preset == "balanced" else recipe.model_copy(update={"sources": {}}),
        resolved=found,
        device=found.device,
        cards=len(machine.accelerators),
        machine=device.name if device is not None else f"{processor.name}, {processor.cores} cores",
        budget=question.budget,
        total_memory=device.memory_total if device is not None else machine.memory_total,
        fits=fits,
        tight=fits and estimate.process.high > 0.9 * question.budget,
        parts=parts_of(estimate),
        memory=estimate.process,
        peak=estimate.peak.name,
        away=waiting(arch, found.recipe.method, BYTES[dtype]).total if found.shape.offload_parameters else 0,
        away_why=found.recipe.sources.get("training.offload_parameters", ""),
        training=found.estimate.seconds,
        judging=_twice(found.evaluation_seconds),
        cost=estimate.cost,
        priced=price_words,
        rate=estimate.tokens_per_second.expected if estimate.tokens_per_second else None,
        rows=rows.train.count,
        tokens_an_epoch=rows.train.total,
        fixes=_fixes(question, found, rows, fits=fits),
        warnings=_warnings(found, rows, machine, wish),
        assumed=(said, *estimate.assumptions),
        duties=_duties(recipe),
        counting=counting,
        exports=_exports(arch, recipe),
        problem=None if fits else _too_much(question, found),
        derived=derived_values,
    )


def _whole_time(found: Resolved) -> Estimate:
    """The estimate with the time of the whole run, for its cost."""
    seconds, judging = found.estimate.seconds, _twice(found.evaluation_seconds)
    if seconds is None or judging is None:
        return found.estimate
    both = Range(
        low=seconds.low + judging.low,
        expected=seconds.expected + judging.expected,
        high=seconds.high + judging.high,
    )
    return found.estimate.model_copy(update={"seconds": both})


def _twice(one: Range | None) -> Range | None:
    return (
        None
        if one is None or not one.high
        else Range(low=2 * one.low, expected=2 * one.expected, high=2 * one.high)
    )


def parts_of(estimate: Estimate) -> tuple[tuple[str, int], ...]:
    """Parts at the peak, scaled to the process: what the allocator keeps beyond tensors is the runtime's."""
    held = {part: size for part, size in estimate.peak.parts.items() if size > 0}
    beyond = round(estimate.process.expected) - sum(held.values())
    if beyond > 0:
        held["runtime"] = held.get("runtime", 0) + beyond
    return tuple(sorted(((PARTS[part], size) for part, size in held.items()), key=lambda one: -one[1]))


def _smallest(recipe: Recipe) -> Recipe:
    """The recipe with the cut that needs least, where it leaves the cut open."""
    training = recipe.training
    open_ = {
        "micro_batch_size": training.micro_batch_size or 1,
        "activation_checkpointing": training.activation_checkpointing or "full",
    }
    return recipe.model_copy(update={"training": training.model_copy(update=open_)})


def _roomy(machine: Hardware) -> Hardware:
    return machine.model_copy(
        update={
            "memory_free": ROOMY,
            "accelerators": tuple(
                one.model_copy(update={"memory_free": ROOMY}) for one in machine.accelerators
            ),
        }
    )


def _too_much(question: Question, found: Resolved) -> str:
    over = found.estimate.process.high - question.budget
    at_once = found.shape.micro_batch_size
    how = "one row at a time with activation checkpointing" if at_once == 1 else f"{at_once} rows at a time"
    return f"over by {over / 2**30:.1f} GiB at the band's upper end, {how}"


_FIELD_OF = {key: name for name, key in KEYS.items()}


def _fixes(question: Question, found: Resolved, rows: LengthProfile, *, fits: bool) -> tuple[Fix, ...]:
    """What can be changed with one click, the ones that help first."""
    shape = found.shape
    fixes = [fix for change in changes(question, shape) if (fix := _fix(change, rows)) is not None]
    length = found.recipe.training.sequence_length or 0
    usual = max(64, -(-rows.train.p99 // 64) * 64)
    if usual * 1.5 < length and rows.train.maximum > usual:
        here = question.estimate(shape)
        cut = question.estimate(shape.model_copy(update={"sequence_length": round(usual * rows.inputs)}))
        saves = round(here.process.expected - cut.process.expected)
        longer = max(1, rows.train.count // 100)
        words = f"sequences of {usual:,} tokens: 99 % of the rows are no longer, about {longer:,} are cut"
        fits_then = cut.process.high <= question.budget
        fixes.append(Fix(words, max(0, saves), fits_then and not fits, {"length": usual, "over": "truncate"}))
    return tuple(sorted(fixes, key=lambda one: not one.helps))


def _fix(change: Change, rows: LengthProfile) -> Fix | None:
    key, _, value = change.setting.partition("=")
    name = "method" if key == "method.name" else _FIELD_OF.get(key)
    if name is None:
        return None
    values: dict[str, Any] = {name: int(value) if value.isdigit() else value}
    words = change.what
    if name == "length" and values["length"] < rows.train.maximum:
        values["over"] = "truncate"
        words += ", longer rows are cut"
    return Fix(words, change.saves, change.helps, values)


def _warnings(found: Resolved, rows: LengthProfile, machine: Hardware, wish: Wish) -> tuple[str, ...]:
    said = list(found.warnings)
    length, over = found.recipe.training.sequence_length or 0, found.recipe.data.over_length
    if rows.train.maximum > length and over == "error":
        said.append(
            f"the longest row has {rows.train.maximum:,} tokens and the sequence {length:,}: choose whether "
            "longer rows are cut or left out, or the run stops at them"
        )
    disk = machine.disk_free
    if disk is not None and found.disk_bytes > disk:
        said.append(f"the run would write {found.disk_bytes / 1e9:.1f} GB and {disk / 1e9:.1f} GB are free")
    if found.recipe.export is not None and found.recipe.export.gguf and not machine.hypothetical:
        from luthier.llamacpp.setup import converter

        try:
            converter()
        except LuthierError as error:
            said.append(f"GGUF cannot be written yet: {error.message}; {error.hint}")
    if wish.data is None and wish.from_run is None:
        said.append("no data are chosen: the figures are for made-up rows")
    return tuple(said)


def _duties(recipe: Recipe) -> tuple[str, ...]:
    """What the licence asks. Errors: LicenceBroken where it forbids what is wanted."""
    if recipe.model.from_scratch is not None:
        return ()
    found = hold_to_licence(recipe, "trained")
    if found:
        return tuple(found)
    card = _card(recipe.model.id)
    if card is None:
        return ()
    from luthier.catalog.index import licence

    return licence(card.licence).duties


def _exports(arch: Architecture, recipe: Recipe) -> tuple[tuple[str, int], ...]:
    if spec_of(recipe.task).answers != "chat":
        return ()
    from luthier.schema.recipe import GgufType

    found = []
    for kind in get_args(GgufType):
        try:
            found.append((kind, gguf_bytes(arch, kind)))
        except LuthierError:
            continue
    return tuple(found)


def value_at(recipe: Recipe, key: str) -> Any:
    """A recipe's value by its dotted key; None where there is none."""
    found: Any = recipe
    for part in key.split("."):
        found = getattr(found, part, None)
    return found


# -- what pricing rests on -----------------------------------------------------------------------


def _card(model: str) -> ModelCard | None:
    try:
        return model_card(model)
    except LuthierError:
        return None


def shape_of(model: str, revision: str | None = None) -> Architecture:
    """Shape of a model of the catalogue or on disk. Errors: ModelNotFound, Unsupported."""
    from luthier.errors import Unsupported

    card = _card(model)
    if card is not None and card.architecture is not None:
        return card.architecture
    folder = folder_of(model, revision)
    if folder is None:
        if card is None:
            model_card(model)  # says that there is none, with the nearest name
        raise Unsupported(
            f"{model}: its shape is not verified, so its memory cannot be predicted",
            hint="download it first: its own config.json tells",
        )
    return _shape_in(str(folder), (folder / "config.json").stat().st_mtime)


@lru_cache(maxsize=64)
def _shape_in(folder: str, _changed: float) -> Architecture:
    from luthier.sizing.model_config import architecture_of

    return architecture_of(Path(folder))


@lru_cache(maxsize=256)
def _described(words: str) -> Hardware:
    from luthier.planning.hypothetical import parse_hardware

    return parse_hardware(words)


def described(words: str) -> Hardware:
    """Hardware in words. Errors: UsageError with the nearest name."""
    return _described(words)


_CORRECTIONS: dict[str, tuple[float, Corrections]] = {}


def _corrections(machine: Hardware) -> Corrections:
    """What earlier runs here came to, looked up at most every half minute."""
    if machine.hypothetical:
        return Corrections()
    from luthier.planning.audit import audit
    from luthier.planning.measured import corrections_for

    name = f"{machine.processor.name} {[one.name for one in machine.accelerators]}"
    known = _CORRECTIONS.get(name)
    if known is None or time.monotonic() - known[0] > 30:
        # Measurements hold for versions of packages, which the studio's quick look leaves out.
        full = machine if machine.versions else machine.model_copy(update={"versions": audit().versions})
        known = _CORRECTIONS[name] = (time.monotonic(), corrections_for(full))
    return known[1]


_RATES: dict[str, dict[str, float]] = {}
_probing = threading.Lock()


def measured_rates(machine: Hardware) -> dict[str, float]:
    """FLOP/s of this machine by type. Nothing at first: a child measures them, once for each torch."""
    name = f"{machine.processor.name} {machine.processor.cores} {[one.name for one in machine.accelerators]}"
    if name not in _RATES and _probing.acquire(blocking=False):

        def measure() -> None:
            from luthier.runs.probe import probe

            try:
                found = probe(machine)
                _RATES[name] = {dtype: float(found[dtype]) for dtype in ("float32", "bfloat16")}
            except (LuthierError, OSError, ValueError, KeyError):
                _RATES[name] = {}  # no torch here: plans stand on datasheets
            finally:
                _probing.release()

        threading.Thread(target=measure, name="probe", daemon=True).start()
    return _RATES.get(name, {})


def _lengths(
    wish: Wish, uploads: Path, known: Dataset | None, recipe: Recipe
) -> tuple[LengthProfile, str, bool]:
    """Lengths of the training rows, where they come from, and whether they are being counted."""
    if known is None and wish.from_run is not None and (taken := _of_run(wish.from_run)) is not None:
        return taken, f"lengths of the rows of {wish.from_run}", False
    if known is None:
        return _made_up(), f"no data: {UNKNOWN_ROWS:,} rows of up to {UNKNOWN_LENGTH} tokens", False
    model = recipe.model.id if folder_of(recipe.model.id, recipe.model.revision) is not None else None
    seen = inspection.any_found(uploads, known, model)
    counting = False
    if seen is None or (model is not None and seen.model != model):
        if inspection.found(uploads, known, model) is None:
            inspection.start(uploads, known, model, recipe.model.revision)
            counting = True
        elif seen is None and inspection.found(uploads, known, None) is None:
            inspection.start(uploads, known)
            counting = True
    if seen is None or seen.lengths is None:
        return _made_up(), "the lengths of the rows are not known yet", counting
    return _split(seen.lengths, recipe), f"lengths {seen.basis}", counting


def run_of(name: str) -> RunDirectory:
    """A run by its id, or ``latest``; never by a path. Errors: UsageError with the nearest."""
    from luthier.runs.directory import find_run

    if not re.fullmatch(r"[\w][\w.-]{0,254}", name):
        raise UsageError(f"{name[:60]!r} is not a run's id", hint="Runs lists those that are there")
    return find_run(name)


def _of_run(name: str) -> LengthProfile | None:
    run = run_of(name)
    report = run.stage_values("data")
    if not report:
        return None
    splits = {one["name"]: one for one in report.get("splits", ())}
    train = splits.get("train")
    if train is None or train.get("tokens") is None:
        return None
    validation = splits.get("validation", {}).get("tokens")
    return LengthProfile(
        train=Lengths.model_validate(train["tokens"]),
        trained_tokens=train.get("trained_tokens") or train["tokens"]["total"],
        validation=Lengths.model_validate(validation) if validation else None,
    )


def _made_up() -> LengthProfile:
    each = UNKNOWN_LENGTH // 2
    longest = dict.fromkeys(("p90", "p95", "p99", "maximum"), UNKNOWN_LENGTH)
    train = Lengths(count=UNKNOWN_ROWS, total=UNKNOWN_ROWS * each, minimum=each, median=each, **longest)
    return LengthProfile(train=train, trained_tokens=train.total // 2)


def _split(whole: LengthProfile, recipe: Recipe) -> LengthProfile:
    """Lengths of the training part, where test and validation rows are cut from the same files."""
    data = recipe.data
    test = 0.0 if data.test else data.test_share
    validation = 0.0 if data.validation else data.validation_share

    def part(share: float, of: Lengths) -> Lengths:
        return of.model_copy(
            update={"count": max(1, round(of.count * share)), "total": max(1, round(of.total * share))}
        )

    left = 1 - test - validation
    held = round(whole.train.count * test) if test else (whole.prompts.count if whole.prompts else 0)
    prompts = whole.prompts
    if prompts is not None and held:
        prompts = prompts.model_copy(update={"count": held})
    return whole.model_copy(
        update={
            "train": part(left, whole.train),
            "trained_tokens": max(1, round(whole.trained_tokens * left)),
            "validation": part(validation, whole.train) if validation else None,
            "prompts": whole.prompts.model_copy(update={"count": held})
            if whole.prompts and held
            else whole.prompts,
        }
    )

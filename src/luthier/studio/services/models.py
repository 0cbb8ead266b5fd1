"""Base models: the catalogue, what is on this machine, what each would need here, and their downloads."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from luthier.catalog.index import all_models, licence, model_card, sources
from luthier.errors import LuthierError, ModelNotFound, UsageError
from luthier.files import cache_dir, write_text
from luthier.planning.recommend.methods import ENCODERS
from luthier.schema.hardware import Hardware
from luthier.schema.licence import Licence
from luthier.schema.model import Kind, ModelCard
from luthier.schema.plan import BatchShape
from luthier.schema.recipe import Full, Lora, Method, Purpose, QLora
from luthier.schema.request import MethodName, Request
from luthier.studio.problems import Conflict, NotFound
from luthier.studio.services import children

METHODS: tuple[MethodName, ...] = get_args(MethodName)
_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
"""A model's name on the Hub."""
SORTS = ("name", "params", "context", "memory", "released")
LENGTH = 2_048
"""Tokens of a row at which models are compared."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which models are shown, and in which order."""

    q: str = ""
    family: str = ""
    purpose: str = ""
    fits: str = ""
    """A method with which it must fit, or nothing."""
    licence: str = ""
    disk: bool = False
    method: str = ""
    """Method whose memory is shown; the lightest that can be done when not given."""
    sort: str = "params"
    hardware: str = ""


@dataclass(frozen=True, slots=True)
class Need:
    """What training a model takes with one method."""

    method: MethodName
    bytes: int | None
    """Upper end of the band; None where it cannot be told."""
    fits: bool
    why: str | None = None
    """Why it cannot be done or told."""

    @property
    def word(self) -> str:
        if self.bytes is None:
            return "not possible" if self.why else "unknown"
        return "fits" if self.fits else "too large"


@dataclass(frozen=True, slots=True)
class Row:
    """One model of the list."""

    card: ModelCard
    terms: Licence
    need: Need
    on_disk: bool


def listed(wanted: Filter, machine: Hardware) -> list[Row]:
    """The models that meet a filter. Errors: UsageError for words that no filter has."""
    if wanted.sort not in SORTS or wanted.method not in ("", *METHODS) or wanted.fits not in ("", *METHODS):
        raise UsageError("there is no such order or method", hint=f"order by one of {', '.join(SORTS)}")
    if wanted.purpose and wanted.purpose not in get_args(Purpose):
        raise UsageError(
            f"{wanted.purpose[:40]!r} is not a purpose", hint=f"one of {', '.join(get_args(Purpose))}"
        )
    here = on_disk()
    shown = wanted.fits or wanted.method
    found = []
    for card in all_models():
        if not _meets(card, wanted, here):
            continue
        need = _need(card.id, shown, machine) if shown in METHODS else lightest(card, machine)
        if wanted.fits and not need.fits:
            continue
        found.append(Row(card, licence(card.licence), need, bool(here & names_of(card))))
    return sorted(found, key=lambda row: _order(row, wanted.sort))


def _meets(card: ModelCard, wanted: Filter, here: frozenset[str]) -> bool:
    words = wanted.q.lower().split()
    text = " ".join((card.id, *card.aliases, card.family, card.org, card.licence, *card.tags)).lower()
    flat = re.sub(r"[\s_-]+", "", text)
    return (
        all(word in text or re.sub(r"[\s_-]+", "", word) in flat for word in words)
        and (not wanted.family or card.family == wanted.family)
        and (not wanted.purpose or wanted.purpose in card.purposes)
        and (not wanted.licence or card.licence == wanted.licence)
        and (not wanted.disk or bool(here & names_of(card)))
    )


def _order(row: Row, sort: str) -> tuple[Any, ...]:
    card = row.card
    match sort:
        case "name":
            return (card.name.lower(),)
        case "context":
            return (-(card.context.native or 0), card.name.lower())
        case "memory":
            return (row.need.bytes is None, row.need.bytes or 0, card.name.lower())
        case "released":
            return ("~" if card.release_date is None else "", _newest(card.release_date), card.name.lower())
    return (card.total is None, card.total or 0, card.name.lower())


def _newest(date: str | None) -> int:
    digits = re.sub(r"\D", "", date or "")
    return -int(digits.ljust(8, "0")[:8] or 0)


def families() -> list[str]:
    """Every family of the catalogue, by letters."""
    return sorted({card.family for card in all_models()}, key=str.lower)


def licences_used() -> list[Licence]:
    """Every licence that a model of the catalogue is under."""
    return sorted(
        (licence(name) for name in {card.licence for card in all_models()}), key=lambda one: one.name.lower()
    )


# -- memory --------------------------------------------------------------------------------------


def _need(name: str, method: MethodName, machine: Hardware) -> Need:
    """Memory of one model with one method; kept while the machine's free memory is about the same."""
    device = machine.accelerators[0].memory_free if machine.accelerators else machine.memory_free
    bare = machine.model_copy(update={"disk_free": None, "versions": {}})
    return _needed(name, method, _Frozen(bare, (device >> 30, machine.words)))


def is_small_encoder(card: ModelCard) -> bool:
    """Whether a model is an encoder of less than a billion parameters, which is fine-tuned whole."""
    return card.kind in ENCODERS and (card.total or 0) < 1e9


def lightest(card: ModelCard, machine: Hardware) -> Need:
    """What the lightest possible method takes: a base in four bits for decoders, all weights for encoders."""
    order: tuple[MethodName, ...] = ("full", "lora") if is_small_encoder(card) else ("qlora", "lora", "full")
    needs = [_need(card.id, method, machine) for method in order]
    return next((need for need in needs if need.bytes is not None), needs[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Frozen:
    """Hardware as a key: equal where it is the same machine with about the same memory free."""

    machine: Hardware
    about: tuple[int, str]

    def __hash__(self) -> int:
        return hash((self.machine.processor.name, self.about))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Frozen):
            return NotImplemented
        names = [one.name for one in self.machine.accelerators]
        return (
            self.about == other.about
            and self.machine.processor.name == other.machine.processor.name
            and names == [one.name for one in other.machine.accelerators]
        )


@lru_cache(maxsize=4096)
def _needed(name: str, method: MethodName, frozen: _Frozen) -> Need:
    from luthier.planning.estimate import estimate_candidate
    from luthier.planning.recommend.ranking import needed_by

    card = model_card(name)
    request = Request(purpose=card.purposes[0])
    found = needed_by(card, method, request, frozen.machine, estimate=estimate_candidate)
    if isinstance(found, str):
        return Need(method, None, fits=False, why=found)
    return Need(method, found[0], fits=found[1])


@dataclass(frozen=True, slots=True)
class MethodMemory:
    """What one method takes, part by part."""

    need: Need
    parts: tuple[tuple[str, int], ...] = ()
    trainable: int | None = None
    checkpointing: bool = False
    micro: int = 0


def by_method(card: ModelCard, machine: Hardware) -> list[MethodMemory]:
    """Every method with its memory by part at 2,048 tokens (an encoder's 256), one row at a time."""
    from luthier.planning.estimate import estimate_candidate
    from luthier.planning.recommend.shapes import base_shape, budget_of

    found = []
    request = Request(purpose=card.purposes[0])
    methods: dict[MethodName, Method] = {"full": Full(), "lora": Lora(), "qlora": QLora()}
    for name, method in methods.items():
        need = _need(card.id, name, machine)
        if card.architecture is None or (need.bytes is None and need.why is not None):
            found.append(MethodMemory(need))
            continue
        shape: BatchShape = base_shape(card, request, machine, batch_size=8, epochs=1.0)
        estimate = estimate_candidate(card, method, shape, machine)
        if estimate.process.high > budget_of(machine):
            shape = shape.model_copy(update={"checkpointing": True})
            estimate = estimate_candidate(card, method, shape, machine)
        from luthier.studio.services.planning import parts_of

        fits = estimate.process.high <= budget_of(machine)
        found.append(
            MethodMemory(
                Need(name, round(estimate.process.high), fits), parts_of(estimate),
                estimate.trainable_parameters,
                shape.checkpointing, shape.micro_batch_size,
            )
        )  # fmt: skip
    return found


# -- on this machine -----------------------------------------------------------------------------

_DISK: dict[str, tuple[float, frozenset[str]]] = {}


def names_of(card: ModelCard) -> frozenset[str]:
    """Every repository of a model."""
    return frozenset(
        name for name in (card.id, card.variants.instruct, card.variants.base, *card.variants.other) if name
    )


def on_disk(*, fresh: bool = False) -> frozenset[str]:
    """Ids of models whose weights are here, from the Hub or from a package; looked up every ten seconds."""
    from luthier.hub.store import hub_cache

    place = f"{hub_cache()} {cache_dir()}"
    seen = _DISK.get(place)
    if seen is None or fresh or time.monotonic() - seen[0] > 10:
        from luthier.hub.upkeep import cached_models

        found = {model.id for model in cached_models()}
        found |= {card.id for card in all_models() if embedded_folder(card) is not None}
        _DISK.clear()
        seen = _DISK[place] = (time.monotonic(), frozenset(found))
    return seen[1]


def forget() -> None:
    """Look anew for what is on this machine."""
    _DISK.clear()
    _FOLDERS.clear()


def embedded_folder(card: ModelCard) -> Path | None:
    """Where a model from a package lies, once it was fetched."""
    if card.embedded is None:
        return None
    folder = cache_dir() / "models" / f"{card.id.replace('/', '--')}-{card.embedded.sha256[:12]}"
    return folder if (folder / "config.json").is_file() else None


def embedded_revision(card: ModelCard) -> str | None:
    """The revision that takes a model from the package that holds it."""
    return None if card.embedded is None else f"wheel:{card.embedded.requirement}"


def folder_of(model: str, revision: str | None = None) -> Path | None:
    """Where a model lies on this machine, or None. Asks nobody."""
    key = (model, revision)
    seen = _FOLDERS.get(key)
    if seen is not None and time.monotonic() - seen[0] < 5:
        return seen[1]
    found = _folder_of(model, revision)
    _FOLDERS[key] = (time.monotonic(), found)
    return found


_FOLDERS: dict[tuple[str, str | None], tuple[float, Path | None]] = {}


def _folder_of(model: str, revision: str | None) -> Path | None:
    from luthier.runs.model import REGISTERED, obtain
    from luthier.schema.recipe import ModelChoice

    if not model:
        return None
    local = model.startswith("/")
    if model.startswith(REGISTERED) or local:
        if local and not os.path.isdir(model):  # noqa: PTH112 - of a name that is too long it says no
            return None
        try:
            return obtain(ModelChoice(id=model), say=_silent, offline=True).path
        except LuthierError:
            return None
    if not _NAME.fullmatch(model):
        return None
    try:
        card = model_card(model)
    except ModelNotFound:
        card = None
    if card is not None and model == card.id and (revision or "").startswith(("", "wheel:")):
        folder = embedded_folder(card)
        if folder is not None and (revision is None or revision == embedded_revision(card)):
            return folder
    from luthier.hub.snapshot import resolve_model

    try:
        return resolve_model(model, revision=revision, offline=True).path
    except LuthierError:
        return None


def revision_to_take(model: str) -> str | None:
    """The revision that a recipe needs so that the weights on disk are used, where a package brought them."""
    try:
        card = model_card(model)
    except ModelNotFound:
        return None
    if model == card.id and embedded_folder(card) is not None:
        from luthier.hub.snapshot import resolve_model

        try:
            resolve_model(model, offline=True)
        except LuthierError:
            return embedded_revision(card)
    return None


def _silent(_words: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a model on disk."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Detail:
    """All that is known of one model."""

    card: ModelCard
    terms: Licence
    found_by: str | None
    methods: list[MethodMemory]
    folder: Path | None
    files: list[File]
    template: str | None
    """The model's own chat template."""
    rendered: str | None
    """An example conversation in it."""
    template_problem: str | None
    sources: list[tuple[str, str]]
    download: Download | None
    revision: str | None
    """What a recipe has to say to take the weights that are here (or can be had without the Hub)."""


def detail(name: str, machine: Hardware, home: Path) -> Detail:
    """One model by any of its names. Errors: ModelNotFound with the nearest."""
    from luthier.catalog.index import why_found

    card = model_card(name)
    folder = next((place for one in sorted(names_of(card), key=lambda n: n != card.id)
                   if (place := folder_of(one)) is not None), None)  # fmt: skip
    template, rendered, problem = _template(folder) if folder is not None else (None, None, None)
    known = sources()
    return Detail(
        card=card,
        terms=licence(card.licence),
        found_by=why_found(name),
        methods=by_method(card, machine),
        folder=folder,
        files=_files(folder) if folder is not None else [],
        template=template,
        rendered=rendered,
        template_problem=problem,
        sources=[(key, known[key]) for key in card.sources],
        download=download_of(home, card.id),
        revision=revision_to_take(card.id) if folder is not None else embedded_revision(card),
    )


def _files(folder: Path) -> list[File]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [File(path.relative_to(folder).as_posix(), path.stat().st_size) for path in found]


EXAMPLE = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Where is my parcel?"},
    {"role": "assistant", "content": "It left our depot this morning and arrives tomorrow."},
]


def _template(folder: Path) -> tuple[str | None, str | None, str | None]:
    """(source, an example rendered, why not). No tokenizer is loaded: the template's text is enough."""
    import jinja2

    from luthier.data.template import compile_template

    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    beside = folder / "chat_template.jinja"
    source = beside.read_text(encoding="utf-8") if beside.is_file() else config.get("chat_template")
    if isinstance(source, list):
        source = next((one.get("template") for one in source if one.get("name") == "default"), None)
    if not isinstance(source, str):
        return None, None, None
    tokens = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in config.items()
        if key.endswith("_token") and isinstance(value, (dict, str))
    }
    try:
        text = compile_template(source).render(messages=EXAMPLE, add_generation_prompt=False, **tokens)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        return source, None, f"the template refuses the example: {error}"
    return source, text[:4_000], None


# -- downloads -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Download:
    """A model on its way here."""

    id: str
    state: str
    """running, done, failed or lost."""
    done: int = 0
    total: int = 0
    said: str = ""
    problem: str | None = None
    fix: str | None = None


_starting = threading.Lock()


def _place(home: Path, name: str) -> Path:
    return home / "downloads" / f"{re.sub(r'[^A-Za-z0-9.]+', '--', name)}.json"


def start_download(home: Path, name: str, revision: str | None = None) -> Download:
    """Fetch a model in a child process that outlives the server. Errors: ModelNotFound, Conflict where it is
    being fetched, UsageError for a revision that is none.
    """
    found = name if "/" in name and not name.startswith(("/", ".")) else model_card(name).id
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", found):
        raise UsageError(f"{found[:80]!r} is not a model's name", hint="owner/name, as the Hub writes it")
    if revision is not None and not re.fullmatch(r"[\w.:=+/-]{1,120}", revision):
        raise UsageError("that is no revision")
    with _starting:
        known = download_of(home, found)
        if known is not None and known.state == "running":
            raise Conflict(f"{found} is being fetched already")
        place = _place(home, found)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(
            place, json.dumps({"id": found, "state": "running", "done": 0, "total": 0, "said": "starting"})
        )
        children.start(str(place), "luthier.studio.services.fetching", [str(place), found, revision or ""])
    return Download(found, "running", said="starting")


def download_of(home: Path, name: str) -> Download | None:
    """How far the download of a model is; None where none was started."""
    return _read_download(_place(home, name))


def downloads(home: Path) -> list[Download]:
    """All downloads that were started, the running ones first."""
    folder = home / "downloads"
    found = [_read_download(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return sorted((one for one in found if one is not None), key=lambda one: one.state != "running")


def _read_download(place: Path) -> Download | None:
    try:
        found = Download(**json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if found.state != "running" or children.running(str(place), place.with_suffix(".lock")):
        return found
    try:  # it may have ended between the two looks
        again = Download(**json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if again.state != "running":
        return again
    return Download(
        again.id, "lost", again.done, again.total, again.said, "the download ended without a word",
        "start it again: it goes on from what has arrived",
    )  # fmt: skip


def delete(name: str) -> int:
    """Remove a model's weights from this machine and return the bytes freed. Errors: NotFound."""
    from luthier.hub import cache
    from luthier.hub.upkeep import of_model, prune

    freed, found = 0, False
    try:
        card = model_card(name)
        ids: Sequence[str] = sorted(names_of(card))
        folder = embedded_folder(card)
    except ModelNotFound:
        ids, folder = [name], None
    if folder is not None:
        freed, found = cache.remove(folder), True
    for one in ids:
        try:
            freed += prune(of_model(one))
            found = True
        except ModelNotFound:
            continue
    forget()
    if not found:
        raise NotFound(f"{name[:80]} is not on this machine")
    return freed


def kinds() -> tuple[str, ...]:
    """Kinds of models."""
    return get_args(Kind)

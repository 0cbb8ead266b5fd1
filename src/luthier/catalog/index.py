"""Look up models, licences and accelerators. Reading the index takes milliseconds; YAML is not parsed.

A wheel carries ``index.json``. In a checkout the index is rebuilt into the user's cache whenever the
YAML changes, and found there again by the YAML's digest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.errors import ModelNotFound, UsageError, did_you_mean
from luthier.files import cache_dir
from luthier.schema.base import Fact
from luthier.schema.ecosystem import FamilyFacts
from luthier.schema.hardware import GpuSpec
from luthier.schema.hyperparameter import Hyperparameter
from luthier.schema.licence import Licence
from luthier.schema.model import ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping

SHIPPED = Path(__file__).with_name("index.json")


class Index(Fact):
    """All that the catalogue knows."""

    format: int
    digest: str
    models: tuple[ModelCard, ...]
    licences: tuple[Licence, ...]
    gpus: tuple[GpuSpec, ...]
    hyperparameters: tuple[Hyperparameter, ...]
    ecosystem: tuple[FamilyFacts, ...]
    sources: dict[str, str]


@lru_cache(maxsize=1)
def index() -> Index:
    """The whole catalogue, with the entries that ``luthier models add`` wrote."""
    from luthier.catalog.build import digest_of, yaml_files

    files = yaml_files()
    if not files:
        shipped = Index.model_validate_json(SHIPPED.read_bytes())
    else:
        digest = digest_of(files)
        path = cache_dir() / f"catalogue-{digest[:16]}.json"
        try:
            shipped = Index.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            # Not built yet, or by a version whose records differ.
            shipped = _build(path)
    added = _added()
    return shipped if not added else shipped.model_copy(update={"models": _merge(shipped.models, added)})


def _build(path: Path) -> Index:
    from luthier.catalog.build import build_index, write_index

    values = build_index()
    built = Index.model_validate_json(json.dumps(values))
    # A cache that cannot be written costs time at each start, nothing else.
    with suppress(OSError):
        write_index(values, path)
    return built


def added_folder() -> Path:
    """Where ``luthier models add`` keeps its entries: ``LUTHIER_HOME``, else the user's data folder."""
    if named := os.environ.get("LUTHIER_HOME"):
        return Path(named).expanduser() / "models"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "luthier" / "models"


def _added() -> list[ModelCard]:
    try:
        files = sorted(added_folder().glob("*.json"))
    except OSError:
        return []
    return [ModelCard.model_validate_json(path.read_bytes()) for path in files]


def _merge(shipped: Iterable[ModelCard], added: Iterable[ModelCard]) -> tuple[ModelCard, ...]:
    cards = {card.id: card for card in shipped}
    cards.update({card.id: card for card in added})
    return tuple(cards.values())


def forget() -> None:
    """Read the catalogue anew at the next question: entries were added or removed."""
    index.cache_clear()
    _names.cache_clear()


def all_models() -> tuple[ModelCard, ...]:
    """Every model, in the catalogue's order."""
    return index().models


def sources() -> Mapping[str, str]:
    """Key -> where a fact comes from."""
    return index().sources


def gpus() -> tuple[GpuSpec, ...]:
    """Every known accelerator."""
    return index().gpus


def licences() -> tuple[Licence, ...]:
    """Every known licence."""
    return index().licences


@lru_cache(maxsize=1)
def _names() -> dict[str, tuple[ModelCard, Literal["id", "variant", "name", "alias"]]]:
    """Every spelling that finds a model, folded; full ids win over short names, names over aliases."""
    found: dict[str, tuple[ModelCard, Literal["id", "variant", "name", "alias"]]] = {}
    for how in ("id", "variant", "name", "alias"):
        for card in all_models():
            for spelling in _spellings(card, how):
                found.setdefault(_fold(spelling), (card, how))
    return found


def _spellings(card: ModelCard, how: str) -> list[str]:
    variants = [v for v in (card.variants.instruct, card.variants.base, *card.variants.other) if v]
    if how == "id":
        return [card.id]
    if how == "variant":
        return variants
    if how == "name":
        return [name.rsplit("/", 1)[-1] for name in (card.id, *variants)]
    return list(card.aliases)


def _fold(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name.strip().lower())


def model_card(name: str) -> ModelCard:
    """Find a model by its id, a variant's id, its short name or a loose name.

    Errors: ModelNotFound with the nearest names.
    """
    found = _names().get(_fold(name))
    if found is None:
        known = [card.id for card in all_models()]
        short = {card.name: card.id for card in all_models()}
        near = did_you_mean(name, known) or did_you_mean(name.rsplit("/", 1)[-1], short)
        raise ModelNotFound(
            f"the catalogue has no model called {name!r}",
            hint=(f"{near} " if near else "")
            + "`luthier models` lists all; `luthier models add DIR_OR_ID` makes an entry for another one",
        )
    return found[0]


def why_found(name: str) -> str | None:
    """Why a loose name means the model it finds; None when the name is one of its own."""
    found = _names().get(_fold(name))
    if found is None or found[1] != "alias":
        return None
    card = found[0]
    return card.alias_note or f"{name} is a usual name of {card.id}"


def licence(name: str) -> Licence:
    """Find a licence by id, SPDX name or title. Errors: UsageError with the nearest names."""
    wanted = _fold(name)
    for entry in licences():
        if wanted in (_fold(entry.id), _fold(entry.spdx or ""), _fold(entry.name)):
            return entry
    known = [entry.id for entry in licences()]
    raise UsageError(
        f"no licence is called {name!r}",
        hint=did_you_mean(name, known) or f"known: {', '.join(known)}",
    )


def gpu(name: str) -> GpuSpec | None:
    """Find an accelerator by a usual name (``rtx 4090``, ``H100``), or None."""
    wanted = _gpu_fold(name)
    for entry in gpus():
        if wanted in {_gpu_fold(word) for word in (entry.id, entry.name, *entry.aliases)}:
            return entry
    return None


def _gpu_fold(name: str) -> str:
    folded = re.sub(r"[\s_\-]+", "", name.strip().lower())
    return re.sub(r"^(nvidia|geforce|tesla|amd|apple|instinct|radeon|rtx|gtx|rx)+", "", folded)


def gpu_like(driver_name: str) -> GpuSpec | None:
    """Find the accelerator that a driver calls by a longer name (``NVIDIA H100 80GB HBM3``), or None."""
    if (exact := gpu(driver_name)) is not None:
        return exact
    words = _gpu_words(driver_name)
    fitting = [
        (len(named), entry)
        for entry in gpus()
        for named in (_gpu_words(w) for w in (entry.id, entry.name, *entry.aliases))
        # A Ti, a Super or a laptop's card is another chip, not a longer name.
        if named and named <= words and not (words - named) & {"ti", "super", "laptop", "mobile"}
    ]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _gpu_words(name: str) -> frozenset[str]:
    vendors = {"nvidia", "geforce", "tesla", "amd", "instinct", "radeon", "rtx", "gtx", "rx", "gpu"}
    return frozenset(word for word in re.split(r"[\s_\-]+", name.lower()) if word not in vendors)

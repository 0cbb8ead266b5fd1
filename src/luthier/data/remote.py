"""Data sets of the Hugging Face Hub: ``hub:name@commit[config]/split`` into Arrow files on disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier.data.sources import Source
from luthier.errors import (
    FileProblem,
    GatedModel,
    LuthierError,
    RecipeError,
    Unreachable,
    Unsupported,
    did_you_mean,
)
from luthier.files import readable
from luthier.hub.remote import hub_api, shown_endpoint
from luthier.schema.recipe import DataChoice

PREFIX = "hub:"
_FORM = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+))?"
    r"(?:\[(?P<config>[^\[\]]*)\])?(?:/(?P<split>[\w.-]+))?"
)


@dataclass(frozen=True, slots=True)
class HubName:
    """The parts of ``hub:name@revision[config]/split``."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        # Brackets part a name without an owner from the split.
        config = f"[{self.config or ''}]" if self.config or "/" not in self.name else ""
        return f"{PREFIX}{self.name}{at}{config}/{self.split}"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A split of a data set on disk."""

    files: tuple[Source, ...]
    pinned: HubName
    note: str


def parse_name(text: str) -> HubName:
    """``hub:org/name``, ``hub:org/name/test``, ``hub:name[config]/test``... Raises RecipeError."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"{text!r} names no data set of the Hub",
            hint="write hub:NAME, hub:NAME[CONFIG]/SPLIT or hub:NAME@COMMIT[CONFIG]/SPLIT, "
            "for example hub:rajpurkar/squad/validation",
        )
    return HubName(found["name"], found["revision"], found["config"] or None, found["split"] or "train")


@lru_cache(maxsize=64)
def fetch(text: str) -> Fetched:
    """Bring one split to disk, or find it there.

    The commit is asked for first and the data are taken at it. Without a network a copy that
    `datasets` has on disk is used, and the note says so. Raises Unsupported without the `datasets`
    package, Unreachable, GatedModel, FileProblem for an unknown name, RecipeError for an unknown
    configuration or split.
    """
    name = parse_name(text)
    library = _library(text)
    commit, problem = _commit(name, text)
    try:
        found = library.load_dataset(
            name.name, name.config, split=name.split, revision=commit or name.revision
        )
    except ValueError as error:
        raise _choice(name, text, str(error)) from error
    except RuntimeError as error:  # what `datasets` raises for data sets that are programs
        raise Unsupported(
            f"cannot be loaded: {error}",
            file=text,
            hint="name a data set of Parquet, CSV or JSON files; look for its branch refs/convert/parquet",
        ) from error
    except (OSError, library.exceptions.DatasetsError, _transport()) as error:
        if commit is None:
            raise problem from error
        raise FileProblem(
            f"cannot be loaded: {str(error).splitlines()[0]}",
            file=text,
            hint="look at its page on the Hub; download a file of it and name that instead",
        ) from error
    paths = [Path(one["filename"]) for one in found.cache_files]
    pinned = HubName(name.name, commit or name.revision, name.config, name.split)
    several = len(paths) > 1
    files = tuple(
        Source(path, f"{text}#{number}" if several else text, "arrow", None)
        for number, path in enumerate(paths, 1)
    )
    size = readable(sum(path.stat().st_size for path in paths))
    at = f"commit {commit[:12]}" if commit else f"the copy on disk, since {problem.message}"
    return Fetched(files, pinned, f"{text}: {len(found):,} rows, {size}, {at}")


def pin(data: DataChoice) -> DataChoice:
    """The same choice with the commit of every data set of the Hub written out."""

    def pinned(sources: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(fetch(one).pinned) if one.startswith(PREFIX) else one for one in sources)

    everything = (*data.train, *data.validation, *(one for part in data.test.values() for one in part))
    if not any(one.startswith(PREFIX) for one in everything):
        return data
    update: dict[str, Any] = {
        "train": pinned(data.train),
        "validation": pinned(data.validation),
        "test": {name: pinned(part) for name, part in data.test.items()},
    }
    return data.model_copy(update=update)


def _library(text: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise Unsupported(
            "data sets of the Hub need the datasets package",
            file=text,
            hint="pip install 'luthier[hub-data]', or download a file of the data set and name that",
        ) from error
    return datasets


def _transport() -> type[Exception]:
    """What the HTTP library below huggingface_hub raises; its name differs between major versions."""
    from huggingface_hub.errors import HfHubHTTPError

    bases: tuple[type[Exception], ...] = HfHubHTTPError.__mro__[:-2]
    return next(base for base in bases if base.__name__ == "HTTPError")


def _commit(name: HubName, text: str) -> tuple[str | None, LuthierError]:
    """The commit that a name stands for now; None, with the error to raise, where the Hub is not reached."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    away = Unreachable(
        "the Hugging Face Hub cannot be reached",
        file=text,
        hint="connect and try again; or load it once on a machine with a network and bring its cache "
        "(HF_HOME) here; or name local files under data.train: local files never need the network",
    )
    try:
        return str(hub_api().dataset_info(name.name, revision=name.revision, timeout=20).sha), away
    except GatedRepoError as error:
        raise GatedModel(
            f"the data set {name.name} asks for an agreement",
            file=text,
            hint=f"accept its terms at {shown_endpoint()}/datasets/{name.name}, then `hf auth login`",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        missing = (
            "data set" if isinstance(error, RepositoryNotFoundError) else f"commit {name.revision} in it"
        )
        raise FileProblem(
            f"there is no {missing} on the Hub",
            file=text,
            hint="names are owner/name as in the page's address; private ones need `hf auth login`; "
            "for a local file leave out `hub:`",
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, _transport(), OSError):
        return None, away


def _choice(name: HubName, text: str, said: str) -> RecipeError:
    """Words of `datasets` about a configuration or split, with the nearest name."""
    known = re.findall(r"'([\w.-]+)'", said.split("[", 1)[-1]) if "[" in said else []
    config = "onfig" in said
    wrong = name.config if config else name.split
    what = "configuration" if config else "split"
    if config and name.config is None:
        message = "this data set has several configurations"
    else:
        message = f"this data set has no {what} {wrong!r}"
    near = did_you_mean(wrong or "", known) if wrong else None
    listed = f"it has {', '.join(known[:20])}" if known else said.splitlines()[0]
    form = f"write hub:{name.name}[CONFIG]/{name.split}" if config else f"write hub:{name.name}/SPLIT"
    return RecipeError(message, file=text, hint="; ".join(part for part in (near, listed, form) if part))

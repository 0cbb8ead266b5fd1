"""``luthier licences``: what each licence asks and allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from luthier.cli.console import out, print_json

if TYPE_CHECKING:
    from luthier.schema.licence import Licence

app = App(name="licences", help="What each licence asks and allows.", help_format="plaintext")

Flag = Annotated[bool, Parameter(negative="")]
NOT_ADVICE = "This informs and cites; it is not legal advice. The licence's own text decides."
WORDS = {True: "yes", False: "no", None: "not verified"}


@app.default
@app.command(name="list")
def list_licences(*, json: Flag = False) -> None:
    """Every licence of the catalogue's models.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from luthier.catalog.index import all_models, licences
    from luthier.cli.models import plain

    uses = {terms.id: sum(card.licence == terms.id for card in all_models()) for terms in licences()}
    if json:
        found = [{**terms.model_dump(mode="json"), "models": uses[terms.id]} for terms in licences()]
        print_json({"licences": found, "notice": NOT_ADVICE})
        return
    heads = ("licence", "models", "commercial", "users below", "use policy", "outputs may train", "OSI")
    rows = [
        [
            terms.id,
            str(uses[terms.id]),
            terms.commercial_use,
            f"{terms.user_threshold:,}" if terms.user_threshold else "",
            WORDS[terms.acceptable_use_policy],
            terms.may_train_others,
            WORDS[terms.osi_approved],
        ]
        for terms in licences()
    ]
    plain(heads, rows, right=(1, 3))
    out().print(f"\n{NOT_ADVICE}", style="dim")


@app.command
def show(licence: str, /, *, json: Flag = False) -> None:
    """One licence: what it allows, what it asks, where that stands.

    Parameters
    ----------
    licence
        Its id (see `luthier licences`), its SPDX name, or a model's name.
    json
        Print one JSON object.
    """
    from luthier.catalog.index import all_models, sources
    from luthier.cli import story

    terms, note = _find(licence)
    if json:
        models = [card.id for card in all_models() if card.licence == terms.id]
        print_json({"licence": terms.model_dump(mode="json"), "models": models, "notice": NOT_ADVICE})
        return
    out().print(terms.name, style="bold")
    rows = [
        ("Text", terms.url or "not known"),
        ("Read", terms.verified.replace("-", " ")),
        ("Commercial use", terms.commercial_use),
        ("Users", f"below {terms.user_threshold:,} a month" if terms.user_threshold else "no threshold"),
        ("Use policy", _policy(terms.acceptable_use_policy, terms.acceptable_use_url)),
        ("Outputs may train", f"{terms.may_train_others}. {terms.outputs_note or ''}".rstrip(". ")),
        ("Passing on", terms.redistribution),
        ("Leaves out", terms.region or "nobody"),
    ]
    out().print(story.grid([(name, value) for name, value in rows]))
    if note:
        out().print(f"  {note}", soft_wrap=True)
    out().print("\nDuties when a tuned model is passed on or shown", style="bold")
    for duty in terms.duties or ("none known",):
        out().print(f"  {duty}", soft_wrap=True)
    if terms.clauses:
        out().print("\nClauses", style="bold")
        for clause in terms.clauses:
            out().print(f"  {clause.topic} ({clause.where}): {clause.says}", soft_wrap=True)
    if terms.note:
        out().print(f"\n{terms.note}", soft_wrap=True)
    known = sources()
    out().print("\nSources: " + "; ".join(known[key] for key in terms.sources), soft_wrap=True)
    out().print(f"\n{NOT_ADVICE}", style="dim")


def _policy(has: bool | None, url: str | None) -> str:
    return f"yes, {url}" if has and url else WORDS[has]


def _find(name: str) -> tuple[Licence, str | None]:
    """A licence by its own name, or by a model's."""
    from luthier.catalog.index import licence, model_card
    from luthier.errors import ModelNotFound, UsageError

    try:
        return licence(name), None
    except UsageError as error:
        try:
            card = model_card(name)
        except ModelNotFound:
            raise error from None
        return licence(card.licence), card.licence_note

"""``luthier recipes``: recipes that come with Luthier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from luthier.cli.console import memory, out, print_json
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.catalog.shipped import ShippedRecipe
    from luthier.schema.model import ModelCard
    from luthier.schema.recipe import Recipe

app = App(name="recipes", help="Recipes that come with Luthier.", help_format="plaintext")

Flag = Annotated[bool, Parameter(negative="")]
ROWS = 1_000
"""Rows that times are told for."""


@app.default
@app.command(name="list")
def list_recipes(*, json: Flag = False) -> None:
    """All shipped recipes, each with predicted memory and time on the hardware that it names.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from luthier.catalog.shipped import shipped_recipes
    from luthier.cli.models import plain
    from luthier.cli.plan_words import about

    rows = [predicted(recipe) for recipe in shipped_recipes()]
    if json:
        print_json({"recipes": rows, "rows": ROWS})
        return
    cells = [
        [
            row["name"],
            row["title"],
            row["hardware"],
            memory(row["bytes"]),
            "?" if row["seconds"] is None else about(row["seconds"]),
            "not yet" if row["not_trained"] else "yes",
        ]
        for row in rows
    ]
    plain(("recipe", "for", "hardware", "memory", "time", "trains"), cells, right=(3, 4))
    for why in dict.fromkeys(row["not_trained"] for row in rows if row["not_trained"]):
        out().print(f"  not yet: {why}", style="dim", soft_wrap=True)
    out().print(f"\ntime is for {ROWS:,} rows; `luthier recipes copy NAME` writes one here", style="dim")


@app.command
def show(name: str, /) -> None:
    """Print one recipe.

    Parameters
    ----------
    name
        As `luthier recipes` lists it.
    """
    from luthier.catalog.shipped import shipped_recipe

    out().print(shipped_recipe(name).path.read_text(encoding="utf-8"), end="", markup=False, soft_wrap=True)


@app.command
def copy(name: str, to: Path = Path("recipe.yaml"), /) -> None:
    """Write one recipe here, to be changed and trained.

    Parameters
    ----------
    name
        As `luthier recipes` lists it.
    to
        Where to; it must not exist yet.
    """
    from luthier.catalog.shipped import shipped_recipe

    recipe = shipped_recipe(name)
    if to.is_dir():
        to = to / f"{recipe.name}.yaml"
    if to.exists():
        raise UsageError(f"{to} exists already", hint="name another file")
    if not to.parent.is_dir():
        raise UsageError(f"{to.parent} is not a directory", hint="make it first")
    to.write_text(recipe.path.read_text(encoding="utf-8"), encoding="utf-8")
    if (why := predicted(recipe)["not_trained"]) is not None:
        out().print(f"! as it stands it cannot be trained: {why}", style="yellow", soft_wrap=True)
    out().print(f"wrote {to}; put your rows where data.train says, then: luthier train {to}", soft_wrap=True)


def predicted(recipe: ShippedRecipe) -> dict[str, Any]:
    """What a recipe would need on the hardware that it names."""
    from luthier.catalog.trains import why_not_trained
    from luthier.planning.hypothetical import parse_hardware
    from luthier.planning.recommend.shapes import fit_recipe
    from luthier.schema.load import load_recipe

    loaded = load_recipe(recipe.path)
    machine = parse_hardware(recipe.hardware)
    found, budget, refused = fit_recipe(_card_of(loaded), loaded, machine, rows=ROWS)
    why = why_not_trained(loaded.task, loaded.method.name, images=loaded.vision is not None) or refused
    return {
        "name": recipe.name,
        "title": recipe.title,
        "task": loaded.task,
        "model": loaded.model.id,
        "method": loaded.method.name,
        "hardware": recipe.hardware,
        "bytes": round(found.process.high),
        "budget": budget,
        "fits": found.process.high <= budget,
        "not_trained": why,
        "seconds": None if found.seconds is None else found.seconds.expected,
    }


def _card_of(recipe: Recipe) -> ModelCard:
    """The catalogue's entry of a recipe's model, or one made for a model from scratch."""
    from luthier.catalog.index import model_card
    from luthier.schema.model import ModelCard as Card
    from luthier.sizing.model_config import architecture_from_config
    from luthier.sizing.scratch import scratch_config

    choice = recipe.model.from_scratch
    if choice is None:
        return model_card(recipe.model.id)
    size = 128 if choice.tokenizer == "characters" else choice.vocabulary
    config = scratch_config(choice, vocabulary=size, bos=None, eos=0, pad=0)
    return Card(
        id=recipe.model.id,
        family=choice.family,
        org="from scratch",
        kind="decoder",
        purposes=(recipe.task,),
        licence="your own",
        architecture=architecture_from_config(config),
    )

"""Look at rows as a training would see them, without starting one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.data.load import read_chats
from luthier.data.render import render_rows
from luthier.data.show import show_tokens
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import UsageError
from luthier.runs.model import Say
from luthier.runs.scratch import bring_model
from luthier.schema.load import load_recipe, recipe_from
from luthier.schema.protocols import TokenRow

Piece = tuple[str, int, bool]
"""A token's text, its id, and whether it carries loss."""


def rendered_rows(
    source: Path, overrides: Sequence[str], *, model: str | None, count: int, say: Say
) -> list[tuple[TokenRow, list[Piece]]]:
    """The first training rows of a recipe, or of a data file with a model's template."""
    if source.suffix in (".yaml", ".yml"):
        recipe = load_recipe(source, overrides)
    elif model is None:
        raise UsageError(
            "a data file is rendered by a model's template: which one?",
            hint="add --model FOLDER_OR_ID, or name a recipe.yaml",
        )
    else:
        recipe = recipe_from({"model": {"id": model}, "data": {"train": str(source)}}, overrides)
    found = bring_model(recipe, say=say)
    tokenizer = load_tokenizer(found.path)
    chats, _shape, _files = read_chats(recipe.data, recipe.data.train, base=Path("/"))
    rows = render_rows(chats[:count], tokenizer, recipe.data.train_on)
    return [(row, show_tokens(row, tokenizer)) for row in rows]

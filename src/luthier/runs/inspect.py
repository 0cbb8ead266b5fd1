"""Look at rows as a training would see them, without starting one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

from luthier.data.read import read_file
from luthier.data.render import render_rows
from luthier.data.shapes import map_rows, several
from luthier.data.show import show_tokens
from luthier.data.sources import resolve
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import DataError, LuthierError, UsageError
from luthier.runs.model import Say
from luthier.runs.scratch import bring_model
from luthier.schema.load import load_recipe, recipe_from
from luthier.schema.protocols import ChatRow, TokenRow
from luthier.schema.recipe import DataChoice

Piece = tuple[str, int, bool]
"""A token's text, its id, and whether it carries loss."""


def rendered_rows(
    source: Path, overrides: Sequence[str], *, model: str | None, count: int, say: Say
) -> list[tuple[TokenRow, list[Piece]]]:
    """The first training rows of a recipe, or of a data file with a model's template.

    Files are read no further than needed; say is told of rows on the way that cannot be used.
    """
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
    chats = first_chats(recipe.data, base=Path("/"), count=count, say=say)
    rows = render_rows(chats, tokenizer, recipe.data.train_on)
    return [(row, show_tokens(row, tokenizer)) for row in rows]


def first_chats(data: DataChoice, *, base: Path, count: int, say: Say) -> list[ChatRow]:
    """The first usable training rows; the files are read up to them (and the few that tell their shape).

    Raises one DataError for all broken rows where none can be used.
    """
    problems: list[LuthierError] = []
    files = resolve(data.train, base=base).files
    raw = chain.from_iterable(read_file(file, on_problem=problems.append) for file in files)
    first = next(raw, None)
    if first is None:
        problems = problems or [DataError("the data set is empty: no row was read", file=files[0].shown)]
        raise several(problems)
    _, mapped = map_rows(
        chain([first], raw),
        format=data.format,
        columns=data.columns,
        system=data.system,
        on_problem=problems.append,
    )
    chats = list(islice(mapped, count))
    if not chats and problems:
        raise several(problems)
    for problem in problems:
        say(f"left out: {problem}")
    return chats

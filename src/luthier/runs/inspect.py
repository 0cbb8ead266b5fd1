"""Look at rows as a training would see them, without starting one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from luthier.data.images import reference_problem
from luthier.data.infill import infill_of
from luthier.data.load import read_chats
from luthier.data.messages import RowProblem
from luthier.data.passes import joins_texts, plain_chat
from luthier.data.preferences import read_held_out, render_pairs
from luthier.data.read import read_file
from luthier.data.render import render_rows
from luthier.data.seeing import SeeingTokenizer
from luthier.data.shapes import by_file, several
from luthier.data.show import show_tokens
from luthier.data.sources import resolve
from luthier.data.tokenizer import FileTokenizer
from luthier.data.vision import chat_or_view
from luthier.errors import DataError, LuthierError, UsageError
from luthier.runs.model import Say
from luthier.runs.prepare import tokenizer_of
from luthier.runs.scratch import bring_model
from luthier.schema.load import load_recipe, recipe_from
from luthier.schema.protocols import ChatRow, TokenRow
from luthier.schema.recipe import DataChoice, Recipe
from luthier.schema.rows import ImageReference, PreferenceChat

Piece = tuple[str, int, bool]
"""A token's text, its id, and whether it carries loss."""


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row as it would be trained on, and the images it holds, with what is wrong with them."""

    row: TokenRow
    pieces: list[Piece]
    images: tuple[str, ...] = ()


def rendered_rows(
    source: Path, overrides: Sequence[str], *, model: str | None, count: int, say: Say
) -> list[ShownRow]:
    """The first training rows of a recipe, or of a data file with a model's template.

    Files are read no further than needed; say is told of rows on the way that cannot be used. Images
    stand as their names: no model of text can be trained on such a row.
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
    tokenizer = tokenizer_of(recipe, found.path)
    if isinstance(tokenizer, SeeingTokenizer):
        return _seen(recipe, tokenizer, count)
    if recipe.preference is not None:
        return _pairs(recipe.data, tokenizer, count)
    chats = first_chats(recipe.data, base=Path("/"), count=count, say=say)
    ready = [chat for chat, _ in chats]
    if joins_texts(recipe.task, tokenizer):
        ready = [plain_chat(chat) for chat in ready]
    infill = infill_of(recipe.data.fim_rate, recipe.seed, tokenizer, recipe.training.sequence_length)
    if infill is not None:
        ready = [infill(chat, tokenizer) for chat in ready]
    rows = render_rows(ready, tokenizer, recipe.data.train_on)
    return [
        ShownRow(row, show_tokens(row, tokenizer), images)
        for row, (_, images) in zip(rows, chats, strict=True)
    ]


def _seen(recipe: Recipe, tokenizer: SeeingTokenizer, count: int) -> list[ShownRow]:
    """The first rows with images as a model that sees reads them."""
    chats = read_chats(recipe.data, recipe.data.train, base=Path("/"), images=True)[0][:count]
    rows = render_rows(chats, tokenizer, recipe.data.train_on)
    return [ShownRow(row, show_tokens(row, tokenizer)) for row in rows]


def _pairs(data: DataChoice, tokenizer: FileTokenizer, count: int) -> list[ShownRow]:
    """The first pairs of a preference recipe, the chosen answer before the rejected one."""
    rows = read_held_out(data, data.train, base=Path("/"), name="train")[:count]
    pairs = render_pairs([row for row in rows if isinstance(row, PreferenceChat)], tokenizer)
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    return [ShownRow(side, show_tokens(side, tokenizer)) for side in sides]


def first_chats(
    data: DataChoice, *, base: Path, count: int, say: Say
) -> list[tuple[ChatRow, tuple[str, ...]]]:
    """The first usable training rows and their images; files are read up to them (and the few that tell
    their shape).

    Raises one DataError for all broken rows where none can be used.
    """
    problems: list[LuthierError] = []
    files = resolve(data.train, base=base).files
    raw = chain.from_iterable(read_file(file, on_problem=problems.append) for file in files)
    first = next(raw, None)
    if first is None:
        problems = problems or [DataError("the data set is empty: no row was read", file=files[0].shown)]
        raise several(problems)
    chats: list[tuple[ChatRow, tuple[str, ...]]] = []
    for shape, row in by_file(chain([first], raw), format=data.format, columns=data.columns):
        if len(chats) == count:
            break
        try:
            chat, vision = chat_or_view(row, shape, system=data.system)
        except RowProblem as problem:
            problems.append(problem)
            continue
        images = () if vision is None else vision.images
        chats.append((chat, tuple(_words(image, row.file, base) for image in images)))
    if not chats and problems:
        raise several(problems)
    for one in problems:
        say(f"left out: {one}")
    return chats


def _words(image: ImageReference, file: str, base: Path) -> str:
    """An image by its name, and whether it is there."""
    if image.kind == "bytes":
        return f"{image.type or 'image'} in the row ({image.value})"
    problem = reference_problem(image.value, file, str(base))
    return image.value if problem is None else f"{image.value} ({problem.removesuffix('-image')})"

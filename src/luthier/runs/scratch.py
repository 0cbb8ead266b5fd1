"""Make the folder of a model that begins from scratch: tokenizer from the data, shape from the size."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.data.chat_template import marks_of
from luthier.data.load import read_chats
from luthier.data.tokenizer import load_tokenizer
from luthier.data.vocabulary import character_tokenizer, save_tokenizer, train_bpe
from luthier.errors import FileProblem, RecipeError
from luthier.files import UNFINISHED, write_text
from luthier.hub.cache import room
from luthier.hub.snapshot import LocalModel
from luthier.runs.model import Say, obtain
from luthier.schema.protocols import Progress
from luthier.schema.recipe import Full, Recipe
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.parameters import count_parameters
from luthier.sizing.scratch import scratch_config

MARK = "scratch.json"
MADE = ("bpe", "characters")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def bring_model(
    recipe: Recipe, *, say: Say, progress: Progress | None = None, offline: bool = False
) -> LocalModel:
    """The base model of a recipe: made from scratch, or brought as `runs.model.obtain` does."""
    if recipe.model.from_scratch is not None:
        return scratch_model(recipe, say=say)
    return obtain(recipe.model, say=say, progress=progress, offline=offline)


def scratch_model(recipe: Recipe, *, say: Say) -> LocalModel:
    """The folder of a recipe's ``model.from_scratch``: made once for its settings, data and seed.

    The worker writes the random weights when it first needs them. Errors: RecipeError for settings that
    contradict each other, FileProblem for a tokenizer folder without one.
    """
    choice = recipe.model.from_scratch
    assert choice is not None
    if not isinstance(recipe.method, Full):
        raise RecipeError(
            f"a model from scratch is random: {recipe.method.name} would leave it so",
            hint="set method.name: full",
        )
    if recipe.task not in ("text-generation", "chat"):
        raise RecipeError(
            f"model.from_scratch makes decoders that write text, not models for {recipe.task}",
            hint="set task: text-generation, or name a base model",
        )
    texts = list(_texts(recipe)) if choice.tokenizer in MADE else []
    marks = marks_of(recipe.model.chat_template)
    digest = hashlib.sha256(json.dumps([choice.model_dump(mode="json"), recipe.seed, *marks]).encode())
    for text in texts:
        digest.update(text.encode("utf-8", "replace") + b"\0")
    if given := _given(choice.tokenizer):
        for name in TOKENIZER:
            if (given / name).is_file():
                digest.update((given / name).read_bytes() + b"\0")
    folder = room("models") / f"scratch-{digest.hexdigest()[:16]}"
    if not (folder / MARK).is_file():
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent) as apart:
            made = Path(apart) / folder.name
            _make(recipe, texts, made)
            try:
                made.rename(folder)
            except OSError:  # another process was first; its model is this one
                if not (folder / MARK).is_file():
                    raise
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = count_parameters(architecture_from_config(config)).total
    say(
        f"a {choice.family} of {size:,} parameters from scratch: {config['num_hidden_layers']} layers of "
        f"{config['hidden_size']}, {config['vocab_size']:,} tokens ({choice.tokenizer})"
    )
    return LocalModel(path=folder, id=recipe.model.id, revision=None, licence=None)


def _texts(recipe: Recipe) -> Iterator[str]:
    rows, _, _ = read_chats(recipe.data, recipe.data.train, base=Path("/"))
    for row in rows:
        yield "".join(str(message["content"]) for message in row.messages)


def _given(tokenizer: str) -> Path | None:
    """The folder of a tokenizer that is there already; None for one that is made from the data."""
    if tokenizer in MADE:
        return None
    folder = Path(tokenizer).expanduser()
    if not (folder / TOKENIZER[0]).is_file():
        raise FileProblem(
            f"there is no {TOKENIZER[0]}",
            file=folder,
            hint="model.from_scratch.tokenizer is bpe, characters or a folder with a tokenizer",
        )
    return folder


def _make(recipe: Recipe, texts: list[str], folder: Path) -> None:
    choice = recipe.model.from_scratch
    assert choice is not None
    folder.mkdir(parents=True)
    marks = marks_of(recipe.model.chat_template)
    if choice.tokenizer == "bpe":
        save_tokenizer(train_bpe(texts, choice.vocabulary, marks), folder, context=choice.context)
    elif choice.tokenizer == "characters":
        save_tokenizer(character_tokenizer(texts, marks), folder, context=choice.context)
    elif given := _given(choice.tokenizer):
        for name in TOKENIZER:
            if (given / name).is_file():
                shutil.copyfile(given / name, folder / name)
    tokenizer = load_tokenizer(folder)
    config = scratch_config(
        choice,
        vocabulary=tokenizer.vocab_size,
        bos=tokenizer.prefix_ids[0] if tokenizer.prefix_ids else None,
        eos=min(tokenizer.eos_ids, default=None),
        pad=tokenizer.pad_id,
    )
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_text(folder / MARK, json.dumps({"seed": recipe.seed}) + "\n")

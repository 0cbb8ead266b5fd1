"""Settings in words: what a wrong one should have been, and what a right one means."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from luthier.errors import RecipeError, did_you_mean
from luthier.schema.recipe import Recipe

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Place = Callable[[tuple[str, ...]], tuple[str | Path | None, int | None]]
"""From a key's path to the file and line it was written at."""

START = "start from `luthier init`, `luthier recommend -o recipe.yaml` or the example in the README"
"""Every way to a first recipe."""

ALIASES = {
    "base_model": "model.id",
    "model_name_or_path": "model.id",
    "pretrained_model_name_or_path": "model.id",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "lora_target": "method.targets",
    "lora_target_modules": "method.targets",
    "finetuning_type": "method.name",
    "adapter": "method.name",
    "sequence_len": "training.sequence_length",
    "cutoff_len": "training.sequence_length",
    "max_seq_length": "training.sequence_length",
    "micro_batch_size": "training.micro_batch_size",
    "per_device_train_batch_size": "training.micro_batch_size",
    "local_batch_size": "training.micro_batch_size",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "learning_rate": "training.learning_rate",
    "max_steps": "training.max_steps",
    "warmup_ratio": "training.warmup_share",
    "lr_scheduler_type": "training.schedule",
    "seed": "seed",
}
"""Names of the same setting in other tools, accepted at the top of a recipe and as overrides."""


def explain_fault(record: type[BaseModel], fault: ErrorDetails, place: Place) -> RecipeError:
    """Turn a validation fault into words: where it was written, what is wrong, the nearest name."""
    path, owner = _walk(record, fault["loc"])
    file, line = place(path)
    dotted = ".".join(path)
    if fault["type"] == "extra_forbidden":
        section = ".".join(path[:-1])
        of = _title(owner) if owner is not None else "the recipe"
        known = list(owner.model_fields) if owner is not None else []
        elsewhere = [p for p in _all_keys(record) if p.rsplit(".", 1)[-1] == path[-1]]
        hint = did_you_mean(path[-1], known)
        if elsewhere:
            hint = f"it stands at {' or '.join(elsewhere)}"
        return RecipeError(
            f"{dotted} is not a setting of {of}",
            file=file,
            line=line,
            hint=hint or f"{section or 'the recipe'} has: {', '.join(known)}",
        )
    if fault["type"] == "missing":
        return RecipeError(f"{dotted} is missing", file=file, line=line, hint=START)
    if fault["type"] in ("literal_error", "union_tag_invalid"):
        context = fault.get("ctx", {})
        expected = str(context.get("expected") or context.get("expected_tags") or "")
        word = str(fault["input"] if fault["type"] == "literal_error" else context.get("tag"))
        names = re.findall(r"'([^']+)'", expected)
        if fault["type"] == "union_tag_invalid":
            dotted = f"{dotted}.name"
            file, line = place((*path, "name"))
        return RecipeError(
            f"{dotted}: {word!r} is not one of {expected}",
            file=file,
            line=line,
            hint=did_you_mean(word, names),
        )
    return RecipeError(f"{dotted}: {fault['msg'][:1].lower()}{fault['msg'][1:]}", file=file, line=line)


def _title(owner: type[BaseModel]) -> str:
    name = owner.model_fields.get("name")
    if name is not None and isinstance(name.default, str):
        return name.default
    return {"Recipe": "the recipe"}.get(owner.__name__, owner.__name__.removesuffix("Choice").lower())


def _walk(
    record: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[tuple[str, ...], type[BaseModel] | None]:
    """Follow an error's location, leaving out union tags; return the written path and its record."""
    path: list[str] = []
    owner: type[BaseModel] | None = record
    options: list[type[BaseModel]] = []
    last: type[BaseModel] | None = record
    for part in loc:
        tagged = [o for o in options if getattr(o.model_fields.get("name"), "default", None) == part]
        if tagged:
            owner, options = tagged[0], []
            last = owner
            continue
        path.append(str(part))
        last = owner
        field = owner.model_fields.get(str(part)) if owner is not None else None
        options = [] if field is None else list(_records_in(field.annotation))
        owner = options[0] if len(options) == 1 else None
    return tuple(path), last


def _records_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None:
        for part in get_args(annotation):
            yield from _records_in(part)


def _all_keys(record: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in record.model_fields.items():
        inner = list(_records_in(field.annotation))
        if inner:
            seen: set[str] = set()
            for part in inner:
                for key in _all_keys(part, f"{prefix}{name}."):
                    if key not in seen:
                        seen.add(key)
                        yield key
        else:
            yield f"{prefix}{name}"


def explain_key(dotted: str) -> tuple[str, str, str]:
    """Return (key, type, sentence) of a recipe setting; aliases of other tools are known too."""
    dotted = ALIASES.get(dotted, dotted)
    options: list[type[BaseModel]] = [Recipe]
    owner: type[BaseModel] = Recipe
    name = ""
    for name in dotted.split("."):
        owners = [o for o in options if name in o.model_fields]
        if not owners:
            raise RecipeError(
                f"{dotted} is not a setting of a recipe", hint=did_you_mean(dotted, set(_all_keys(Recipe)))
            )
        owner = owners[0]
        options = [r for o in owners for r in _records_in(o.model_fields[name].annotation)]
    annotation = owner.model_fields[name].annotation
    kind = getattr(annotation, "__name__", None) or str(annotation)
    return (
        dotted,
        re.sub(r"\btyping\.|luthier\.schema\.recipe\.", "", kind),
        sentences_of(owner).get(name, ""),
    )


def sentences_of(record: type[BaseModel]) -> dict[str, str]:
    """Field -> the sentence under it, read from the source of the record and of those it extends."""
    found: dict[str, str] = {}
    for owner in reversed(record.__mro__):
        if not (issubclass(owner, BaseModel) and owner is not BaseModel):
            continue
        (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for line, below in pairwise(tree.body):
            if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[line.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe with each field's sentence, for editors."""
    schema = Recipe.model_json_schema()
    named: dict[str, type[BaseModel]] = {"Recipe": Recipe, **{r.__name__: r for r in _all_records(Recipe)}}
    for name, part in {"Recipe": schema, **schema.get("$defs", {})}.items():
        for field, sentence in sentences_of(named[name]).items():
            part["properties"][field].setdefault("description", sentence)
    return schema


def _all_records(record: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in record.model_fields.values():
        for part in _records_in(field.annotation):
            yield part
            yield from _all_records(part)

"""The only YAML door: text in, frozen records out, every fault with its file and line."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from luthier.errors import FileProblem, RecipeError
from luthier.schema.base import Record
from luthier.schema.explain import ALIASES, START, explain_fault
from luthier.schema.recipe import ExportChoice, Recipe

R = TypeVar("R", bound=Record)

OVERRIDE = re.compile(r"^(?:--)?(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)$", re.DOTALL)
COMMAND_LINE = "command line"


class _Lines:
    """Remembers where each dotted key was written: a file's line, or the command line."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.of: dict[tuple[str, ...], int | str] = {}

    def place(self, path: tuple[str, ...]) -> tuple[str | Path | None, int | None]:
        """File and line of the key, or of its nearest written parent."""
        while path:
            if (found := self.of.get(path)) is not None:
                return (COMMAND_LINE, None) if isinstance(found, str) else (self.file, found)
            path = path[:-1]
        return self.file, None


def read_yaml(path: Path) -> Any:
    """Return the document of a YAML 1.2 file as plain values. Errors: FileProblem, RecipeError."""
    return _plain(_parse(_text(path), path))


def load_record(path: Path, record: type[R]) -> R:
    """Read one record from a YAML file. Errors: FileProblem, RecipeError with file and line."""
    tree = _parse(_text(path), path)
    lines = _Lines(path)
    values = _gather(tree, (), lines)
    return _validate(record, values, lines)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``key.sub=value`` overrides, and anchor its relative paths.

    Paths in the file are relative to the file, paths in overrides to the working directory.
    Errors: FileProblem when it cannot be read, RecipeError with file:line and the nearest name.
    """
    tree = _parse(_text(path), path)
    lines = _Lines(path)
    values = _gather(tree, (), lines)
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of sections", file=path, line=1, hint=START)
    _rename_aliases(values, lines)
    _anchor(values, path.resolve().parent)
    _apply(values, overrides, lines)
    return _validate(Recipe, values, lines)


def recipe_from(values: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Build a recipe from Python values, checked like a file's. Relative paths start here."""
    lines = _Lines(None)
    values = _copy(values)
    _rename_aliases(values, lines)
    _anchor(values, Path.cwd())
    _apply(values, overrides, lines)
    return _validate(Recipe, values, lines)


def recipe_values(text: str) -> dict[str, Any]:
    """The values of a recipe's YAML, not checked yet. Errors: RecipeError."""
    values = _plain(_parse(text, None))
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of sections", hint=START)
    return values


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML: defaults included, unset values left out, sources last."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 110
    stream = io.StringIO()
    yaml.dump(recipe.model_dump(mode="json", exclude_none=True), stream)
    return stream.getvalue()


def dump_values(*documents: dict[str, Any]) -> str:
    """Plain values as YAML, one document each; texts of several lines as they stand."""
    from ruamel.yaml import YAML
    from ruamel.yaml.scalarstring import LiteralScalarString

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, str) and "\n" in value and all(map(str.isprintable, value.split("\n"))):
            return LiteralScalarString(value)
        return value

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096  # a line that is broken is a line that a shell may misread
    parts = []
    for document in documents:
        stream = io.StringIO()
        yaml.dump(plain(document), stream)
        parts.append(stream.getvalue())
    return "---\n".join(parts)


def _text(path: Path, missing: str = START) -> str:
    """The file's text. missing: the way out where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileProblem("no such file", file=path, hint=missing) from None
    except IsADirectoryError:
        raise FileProblem("is a directory, not a YAML file", file=path, hint=missing) from None
    except UnicodeDecodeError as error:
        raise FileProblem(
            f"not UTF-8 text (byte {error.start})", file=path, hint="save it as UTF-8 text"
        ) from None
    except OSError as error:
        raise FileProblem(f"cannot be read: {error.strerror}", file=path) from None


def _parse(text: str, path: Path | None) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        problem = " ".join(str(error.problem or error.context).split())
        raise RecipeError(
            f"not valid YAML: {problem}", file=path, line=line, hint="check indentation and quotes there"
        ) from None
    except YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", file=path) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _gather(tree: Any, path: tuple[str, ...], lines: _Lines) -> Any:
    """Turn the round-trip tree into plain values, noting the line of every key."""
    if isinstance(tree, dict):
        for key in tree:
            lines.of[(*path, str(key))] = tree.lc.key(key)[0] + 1  # type: ignore[attr-defined]
        return {str(key): _gather(value, (*path, str(key)), lines) for key, value in tree.items()}
    if isinstance(tree, list):
        for index in range(len(tree)):
            lines.of[(*path, str(index))] = tree.lc.item(index)[0] + 1  # type: ignore[attr-defined]
        return [_gather(value, (*path, str(index)), lines) for index, value in enumerate(tree)]
    return _plain(tree)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, (list, tuple)) else value


def _rename_aliases(values: dict[str, Any], lines: _Lines) -> None:
    for alias in [key for key in values if key in ALIASES and ALIASES[key] != key]:
        value, target = values.pop(alias), tuple(ALIASES[alias].split("."))
        file, line = lines.place((alias,))
        if _find(values, target) is not None:
            raise RecipeError(
                f"{alias} and {ALIASES[alias]} say the same thing twice",
                file=file,
                line=line,
                hint=f"keep {ALIASES[alias]}",
            )
        if (place := lines.of.pop((alias,), None)) is not None:
            lines.of[target] = place
        _set(values, target, value, lines)


def _anchor(values: dict[str, Any], base: Path) -> None:
    """Make relative paths absolute, so that a recipe means the same wherever it is run from."""
    data = values.get("data")
    if isinstance(data, dict):
        for key in ("train", "validation", "test"):
            if key in data:
                data[key] = _anchor_sources(data[key], base)
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("id"), str):
        model["id"] = _anchor_model(model["id"], base)
    if isinstance(model, dict) and isinstance(template := model.get("chat_template"), str):
        # A name stays a name; a file or folder beside the recipe is found from anywhere.
        there = os.path.exists(base / template)  # noqa: PTH110 - see _anchor_model
        model["chat_template"] = str(base / template) if there else template
    method = values.get("method")
    if isinstance(method, dict) and isinstance(method.get("init_from"), str):
        method["init_from"] = _anchor_sources(method["init_from"], base)


def _anchor_sources(value: Any, base: Path) -> Any:
    if isinstance(value, str):
        return value if value.startswith("hub:") else str(base / _at_home(value))
    if isinstance(value, list):
        return [_anchor_sources(v, base) for v in value]
    if isinstance(value, dict):
        return {k: _anchor_sources(v, base) for k, v in value.items()}
    return value


def _at_home(name: str) -> Path:
    """``~`` and ``~user`` as folders; a user that is not there leaves the name as it stands."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _anchor_model(name: str, base: Path) -> str:
    """A directory that exists is one; ``org/name`` that does not is a Hub id."""
    path = base / _at_home(name)
    # os.path takes a name that no file system would for one that is not there.
    if name.startswith(("/", "./", "../", "~")) or os.path.isdir(path):  # noqa: PTH112
        return str(path.resolve())
    return name


def _apply(values: dict[str, Any], overrides: Sequence[str], lines: _Lines) -> None:
    for word in overrides:
        if word.startswith("~"):
            path = tuple(word[1:].split("."))
            if not _drop(values, path):
                raise RecipeError(f"~{'.'.join(path)}: the recipe has no such key", file=COMMAND_LINE)
            continue
        match = OVERRIDE.match(word)
        if match is None:
            raise RecipeError(
                f"{word!r} is not a setting",
                file=COMMAND_LINE,
                hint="write key.sub=value, for example training.epochs=2, or ~key to drop one",
            )
        dotted = ALIASES.get(match["key"], match["key"]).replace("-", "_")
        path = tuple(dotted.split("."))
        value = _plain(_parse(match["value"], None)) if match["value"].strip() else None
        if path[:1] == ("data",) and path[1:2] and path[1] in ("train", "validation", "test"):
            value = _anchor_sources(value, Path.cwd())
        if path == ("model", "id") and isinstance(value, str):
            value = _anchor_model(value, Path.cwd())
        if path == ("method", "init_from"):
            value = _anchor_sources(value, Path.cwd())
        if path[:2] == ("method", "name") and isinstance(values.get("method"), dict):
            values["method"] = {"name": value}
        lines.of[path] = COMMAND_LINE
        _set(values, path, value, lines)


def _find(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def _drop(values: Any, path: tuple[str, ...]) -> bool:
    parent = _find(values, path[:-1])
    return isinstance(parent, dict) and parent.pop(path[-1], None) is not None


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any, lines: _Lines) -> None:
    node: Any = values
    for depth, key in enumerate(path[:-1]):
        if isinstance(node, list):
            node = node[_index(node, key, path)]
            continue
        if not isinstance(node.get(key), (dict, list)):
            node[key] = {}
            lines.of.setdefault(path[: depth + 1], lines.of.get(path, COMMAND_LINE))
        node = node[key]
    if isinstance(node, list):
        node[_index(node, path[-1], path)] = value
    else:
        node[path[-1]] = value


def _index(node: list[Any], key: str, path: tuple[str, ...]) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise RecipeError(
            f"{'.'.join(path)}: {key} is not one of the {len(node)} entries there", file=COMMAND_LINE
        )
    return int(key)


def _validate(record: type[R], values: Any, lines: _Lines) -> R:
    if record is Recipe and isinstance(values, dict) and isinstance(values.get("method"), dict):
        values["method"].setdefault("name", "lora")
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise explain_fault(record, error.errors(include_url=False)[0], lines.place) from None


def export_from(**values: object) -> ExportChoice:
    """An export choice from words of the command line. Errors: RecipeError with the nearest type."""
    return _validate(ExportChoice, values, _Lines(None))

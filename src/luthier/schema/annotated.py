"""YAML with what stands around its values: the lines of keys when reading, comments when writing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from luthier.schema.load import _gather, _Lines, _parse, _text


def read_with_lines(path: Path, *, missing: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """The document of a YAML file as plain values, and the line of every key by its path.

    missing: the way out where there is no such file. Errors: FileProblem, RecipeError.
    """
    lines = _Lines(path)
    values = _gather(_parse(_text(path, missing), path), (), lines)
    return values, {key: line for key, line in lines.of.items() if isinstance(line, int)}


def write_with_comments(
    values: dict[str, Any], comments: dict[tuple[str, ...], str], *, head: str = "", tail: str = ""
) -> str:
    """YAML with a comment behind the keys that have one, and lines of comment before and after it all."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    def annotate(part: dict[str, Any], path: tuple[str, ...]) -> CommentedMap:
        made = CommentedMap()
        for key, value in part.items():
            made[key] = annotate(value, (*path, key)) if isinstance(value, dict) else value
            if (*path, key) in comments:
                made.yaml_add_eol_comment(comments[*path, key], key)
        return made

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(annotate(values, ()), stream)
    return _block(head) + stream.getvalue() + _block(tail)


def _block(text: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())

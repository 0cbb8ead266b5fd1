"""Conversations with images: references kept beside the words, and the words alone for what reads text."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from luthier.data.columns import Missing, value_at
from luthier.data.images import COLUMNS, PARTS, image_column, part_reference, references
from luthier.data.messages import HOLDS_IMAGES, RowProblem
from luthier.data.read import RawRow
from luthier.data.shapes import Shape, to_chat
from luthier.data.splits import prompt_key
from luthier.errors import DataError
from luthier.schema.protocols import ChatRow
from luthier.schema.rows import ImageReference, VisionRow

_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def demand_words_alone(first: Sequence[RawRow], columns: Mapping[str, str]) -> None:
    """Raise DataError where the first rows of a file have images in a column, unseen by a model of text.

    columns: those that the recipe names; then they are what is asked for, and nothing else is missed.
    """
    for row in () if columns else first:
        name = image_column(list(row.value), row.value)
        if name is not None and any(map(_names_image, references(row.value[name]))):
            raise DataError(
                f"the column {name} holds an image, which a model of text cannot see",
                file=row.file,
                line=row.line,
                hint="tune a model that sees (task: chat, and `vision: {}` in the recipe), or name the "
                "columns of text with data.columns: then images are left out",
            )


def _names_image(reference: Any) -> bool:
    if isinstance(reference, bytes):
        return True
    path = PurePosixPath(str(reference).partition("?")[0].lower())
    return str(reference).startswith("data:image/") or path.suffix in _FILES


def chat_or_view(row: RawRow, shape: Shape, *, system: str | None = None) -> tuple[ChatRow, VisionRow | None]:
    """A row as a conversation of text; of one with images the words, each image by its name, and the row.

    Raises RowProblem as ``to_chat`` does, and for an image part that names no image.
    """
    try:
        return to_chat(row, shape, system=system), None
    except RowProblem as problem:
        if problem.code != HOLDS_IMAGES:
            raise
    found = vision_row(row, shape, system=system)
    return text_view(found), found


def vision_row(
    row: RawRow, shape: Shape, *, system: str | None = None, given: list[Any] | None = None
) -> VisionRow:
    """A conversation with images. An image part without a reference takes the next of the row's image column.

    given: gets what the row holds for each image, in order. Raises RowProblem.
    """
    beside = iter(
        [one for name in row.value if name.lower() in COLUMNS for one in references(row.value[name])]
    )
    images: list[ImageReference] = []
    raw: list[Any] = [] if given is None else given
    contents: dict[int, list[dict[str, Any]]] = {}
    turns: list[Any] = []
    for number, turn in enumerate(turns_of(row.value, shape)):
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if isinstance(content, list) and any(_is_image(part) for part in content):
            before = len(images)
            parts = contents[number] = _parts(content, number, images, raw, beside, row)
            names = iter(images[before:])
            words = "".join(part["text"] if part["type"] == "text" else _name(next(names)) for part in parts)
            turns.append({**turn, "content": words})
        else:
            turns.append(turn)
    plain = RawRow({**row.value, "messages": turns}, row.file, row.line)
    chat = to_chat(plain, Shape(shape.name, {**shape.columns, "messages": "messages"}), system=system)
    added = len(chat.messages) - len(turns)  # a system prompt that stands beside the messages
    messages = [
        {**message, "content": contents.get(number - added, message["content"])}
        for number, message in enumerate(chat.messages)
    ]
    key = prompt_key(chat)
    return VisionRow(messages, tuple(images), row.file, row.line, chat.id, key, chat.tools, chat.group)


def text_view(row: VisionRow) -> ChatRow:
    """The words of a row, each image by its name in brackets: to be shown, counted and compared."""
    messages = []
    for message in row.messages:
        content = message["content"]
        if isinstance(content, list):
            content = "".join(
                part["text"] if part["type"] == "text" else _name(row.images[part["image"]])
                for part in content
            )
        messages.append({**message, "content": content})
    return ChatRow(messages, row.file, row.line, row.id, row.tools, row.group)


def turns_of(value: dict[str, Any], shape: Shape) -> list[Any]:
    """The messages of a row as they are written; none where there are none."""
    try:
        turns = value_at(value, shape.columns.get("messages", ""))
    except Missing:
        return []
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except ValueError:
            return []
    return turns if isinstance(turns, list) else []


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in PARTS


def _parts(  # noqa: PLR0917 (private, called once)
    content: list[Any],
    number: int,
    images: list[ImageReference],
    raw: list[Any],
    beside: Iterator[Any],
    row: RawRow,
) -> list[dict[str, Any]]:
    """The parts of one message, its images added to those of the row."""
    parts: list[dict[str, Any]] = []
    for part in content:
        if not _is_image(part):
            parts.append({"type": "text", "text": str(part.get("text", ""))})
            continue
        given = next(iter(references(part_reference(part))), None) or next(beside, None)
        if given is None:
            raise RowProblem(
                "image-without-reference",
                f"message {number + 1} has an image part that names no image",
                file=row.file,
                line=row.line,
                hint='write {"type": "image", "image": "photos/1.png"}, or add an `images` column',
            )
        parts.append({"type": "image", "image": len(images)})
        images.append(reference_of(given))
        raw.append(given)
    return parts


def reference_of(given: str | bytes) -> ImageReference:
    """What an image is called: its path, its address, or the digest of its bytes."""
    if isinstance(given, bytes):
        return ImageReference("bytes", hashlib.sha256(given).hexdigest()[:24])
    if given.startswith("data:"):
        head, _, packed = given.partition(",")
        try:
            raw = base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError):
            raw = packed.encode("utf-8", "surrogatepass")
        kind = head.removeprefix("data:").partition(";")[0]
        return ImageReference("bytes", hashlib.sha256(raw).hexdigest()[:24], kind or None)
    if "://" in given and not given.startswith("file://"):
        return ImageReference("url", given)
    return ImageReference("path", given.removeprefix("file://"))


def _name(image: ImageReference) -> str:
    return f"[image {image.value}]"

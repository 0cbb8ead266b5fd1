"""Images in rows: kept as references (paths, addresses, bytes), and those that are not there found."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("image", "images", "picture", "photo", "img")
"""Columns that may hold images."""
PARTS = ("image", "image_url", "input_image")
"""Types of message parts that are images."""
_SIGNS = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
}
_ENDS = {"png": b"IEND\xaeB`\x82", "jpeg": b"\xff\xd9", "gif": b";"}
"""What stands at the end of a whole file."""
_TAIL = 4_096
_FIRST = 16


def image_column(names: list[str], value: dict[str, Any]) -> str | None:
    """The column that holds images; None where there is none."""
    for name in names:
        if name.lower() in COLUMNS and references(value.get(name)):
            return name
    return None


def references(value: Any) -> list[Any]:
    """Images of a cell: paths, addresses, bytes or ``{"bytes", "path"}`` as `datasets` writes them."""
    if isinstance(value, list):
        return [one for part in value for one in references(part)]
    if isinstance(value, dict):
        if value.get("bytes"):
            return [value["bytes"]]
        inner = value.get("path") or value.get("url") or value.get("image")
        return references(inner)
    return [value] if isinstance(value, (str, bytes)) and value else []


def part_reference(part: dict[str, Any]) -> Any:
    """What an image part of a message points to, in the forms of OpenAI and of chat templates."""
    value = part.get("image", part.get("image_url", part.get("path", part.get("url"))))
    if isinstance(value, dict):
        value = value.get("url") or value.get("bytes") or value.get("path")
    return value


def image_problem(
    row: dict[str, Any], file: str, base: str, turns: list[Any] | None = None
) -> tuple[str, str, str | None] | None:
    """Code, detail and sample of the first image of a row that is missing or broken.

    file: the row's file, whose folder relative paths start from (base is the folder that file starts
    from). turns: the row's messages. Addresses of the web are not asked for.
    """
    for reference in all_references(row, turns):
        problem = reference_problem(reference, file, base)
        if problem:
            said = reference if isinstance(reference, str) else f"{len(reference)} bytes"
            return problem, "", said[:120]
    return None


def reference_problem(reference: Any, file: str, base: str) -> str | None:
    """``missing-image`` or ``broken-image``; None for a whole image and for one that is not looked at."""
    content = _content(reference, file, Path(base))
    if content is None or (content and whole(content)):
        return None
    return "broken-image" if content else "missing-image"


def all_references(row: dict[str, Any], turns: list[Any] | None = None) -> list[Any]:
    """All images of a row, in its columns and its messages."""
    found: list[Any] = []
    for name, value in row.items():
        if name.lower() in COLUMNS:
            found += references(value)
    for message in turns or ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") in PARTS:
                found += references(part_reference(part))
    return found


def _content(reference: Any, file: str, base: Path) -> bytes | None:
    """Beginning and end of an image; empty where it is missing, None where it is not looked at."""
    if isinstance(reference, bytes):
        return reference
    if reference.startswith("data:"):
        try:
            return base64.b64decode(reference.partition(",")[2], validate=True) or b"?"
        except (binascii.Error, ValueError):
            return b"?"
    if "://" in reference and not reference.startswith("file://"):
        return None
    path = Path(reference.removeprefix("file://"))
    if not path.is_absolute():
        path = base / Path(file).parent / path
    try:
        with path.open("rb") as image:
            head = image.read(_FIRST)
            size = image.seek(0, 2)
            image.seek(max(0, size - _TAIL))
            return (head + image.read()) or b"?"
    except (OSError, ValueError):
        return b""


def whole(content: bytes) -> bool:
    """Whether an image begins and ends as its kind does (its pixels are not decoded)."""
    kind = next((kind for sign, kind in _SIGNS.items() if content.startswith(sign)), None)
    if kind is None:
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return True
        return content[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1")
    end = _ENDS.get(kind)
    return end is None or end in content[-_TAIL:]


def media_type(content: bytes) -> str:
    """Media type by the first bytes."""
    kind = next((kind for sign, kind in _SIGNS.items() if content.startswith(sign)), None)
    if kind is None and content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        kind = "webp"
    return f"image/{kind}" if kind else "application/octet-stream"


def image_parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The image parts of a conversation, in order."""
    return [
        part
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part.get("type") == "image"
    ]

"""Rows with images as a model that sees is shown them: images found and measured, tokens laid out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import warnings
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from luthier.data.image_tokens import ImageTokens, image_tokens
from luthier.data.images import image_column, image_parts, media_type, references, whole
from luthier.data.messages import RowProblem, row_id
from luthier.data.read import RawRow
from luthier.data.shapes import Shape, to_chat
from luthier.data.tokenizer import FileTokenizer, tokenizer_files
from luthier.data.vision import reference_of, vision_row
from luthier.errors import DataError, FileProblem, ToolchainError, Unsupported
from luthier.files import cache_dir, replaced
from luthier.schema.protocols import ChatRow, Message

MOST_PIXELS = 89_000_000
"""Pixels of an image above which it is refused, as Pillow warns of it: decoded it takes 270 MB."""
_PLACE = re.compile(r"<image>")


def seen_chat(row: RawRow, shape: Shape, *, base: Path, system: str | None = None) -> ChatRow:
    """A row as a conversation whose image parts are ``{"type": "image", "image": path, "width", "height"}``.

    Images stand in the messages, or in a column beside a prompt or beside messages (then at ``<image>`` in
    the text, else before the first question). base: folder that the row's file starts from. Raises
    RowProblem with file and line, for images that are missing, broken, too large or none too.
    """
    given: list[Any] = []
    if shape.name in ("messages", "sharegpt"):
        messages, tools, group = _of_messages(row, shape, system, given)
    else:
        chat = to_chat(row, shape, system=system)
        messages, tools, group = list(chat.messages), chat.tools, chat.group
    column = image_column(list(row.value), row.value)
    if not given and column is not None:
        given = references(row.value[column])
        messages = _with_images(messages, len(given), row)
    pictures = [_picture(one, row, base) for one in given]
    named = [_filled(message, [part for part, _ in pictures]) for message in messages]
    # Rows are told apart by what they say of their images, not by where the folder lies today.
    asked = [_filled(message, [name for _, name in pictures]) for message in messages]
    return ChatRow(named, row.file, row.line, row_id(asked, tools), tools, group)


def _of_messages(
    row: RawRow, shape: Shape, system: str | None, given: list[Any]
) -> tuple[list[Message], Any, str | None]:
    """Messages with image parts that count the row's images, which go into ``given``."""
    found = vision_row(row, shape, system=system, given=given)
    return list(found.messages), found.tools, found.group


def _with_images(messages: list[Message], count: int, row: RawRow) -> list[Message]:
    """Messages of text with the images of the row beside them put where they belong."""
    marked = sum(len(_PLACE.findall(str(m["content"]))) for m in messages if m["role"] == "user")
    if marked not in (0, count):
        raise RowProblem(
            "images-miscounted",
            f"the text has {marked} times <image> and the row {count} images",
            file=row.file,
            line=row.line,
            hint="write <image> once for each, or not at all: then they stand before the first question",
        )
    numbers = iter(range(count))
    placed: list[Message] = []
    for message in messages:
        content = message["content"]
        if message["role"] != "user" or (not marked and placed and placed[-1].get("role") == "user"):
            placed.append(message)
            continue
        parts: list[dict[str, Any]] = []
        if marked:
            for index, piece in enumerate(_PLACE.split(str(content))):
                parts += [{"type": "image", "image": next(numbers)}] if index else []
                parts += [{"type": "text", "text": piece}] if piece else []
        else:
            parts = [{"type": "image", "image": number} for number in numbers]
            parts.append({"type": "text", "text": content})
        placed.append({**message, "content": parts} if any("image" in part for part in parts) else message)
    return placed


def _filled(message: Message, pictures: Sequence[dict[str, Any]]) -> Message:
    content = message["content"]
    if not isinstance(content, list):
        return message
    parts = [pictures[part["image"]] if part["type"] == "image" else part for part in content]
    return {**message, "content": parts}


def _picture(given: Any, row: RawRow, base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image part of one reference, and what names it in digests."""

    def problem(code: str, said: str, hint: str) -> RowProblem:
        return RowProblem(code, said, file=row.file, line=row.line, hint=hint)

    reference = reference_of(given)
    if reference.kind == "url":
        raise problem(
            "image-address",
            f"the image {reference.value[:80]} lies on the web, and nothing is fetched unasked",
            "download the images and name their files",
        )
    if reference.kind == "bytes":
        try:
            path = keep_bytes(_bytes(given))
        except (binascii.Error, ValueError):
            raise problem("broken-image", "the image in the row is not base64", "write it again") from None
        shown = "the image in the row"
    else:
        path = base / Path(row.file).parent / reference.value
        shown = f"the image {reference.value}"
    if not path.is_file():
        raise problem("missing-image", f"{shown} is not there", "paths start from the folder of the file")
    try:
        width, height = measure(path)
    except DataError as error:
        raise problem("broken-image", f"{shown} {error.message}", error.hint or "") from None
    size = path.stat()
    part = {"type": "image", "image": str(path), "width": width, "height": height}
    stamp = {"stamp": f"{size.st_size}-{size.st_mtime_ns}"} if reference.kind == "path" else {}
    return {**part, **stamp}, {"type": "image", "image": reference.value, "bytes": size.st_size}


def _bytes(given: Any) -> bytes:
    if isinstance(given, bytes):
        return given
    return base64.b64decode(str(given).partition(",")[2], validate=True)


def keep_bytes(content: bytes) -> Path:
    """Bytes of an image as a file of the cache, named by their digest."""
    kind = media_type(content).rpartition("/")[2]
    path = cache_dir() / "images" / f"{hashlib.sha256(content).hexdigest()[:32]}.{kind}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as part:
            part.write_bytes(content)
    return path


def measure(path: Path) -> tuple[int, int]:
    """Width and height of an image file, its pixels not decoded.

    Errors: DataError for a file that is no image, is cut short or is too large, ToolchainError without
    Pillow. The words of a DataError go on from the image's name.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ToolchainError(
            "images are read with Pillow, which is not installed", hint="pip install 'luthier[vision]'"
        ) from None
    too_large = DataError(
        f"has more pixels than the {MOST_PIXELS // 10**6} million that are read", hint="make it smaller"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise too_large from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        hint = "give PNG, JPEG, WebP, GIF, BMP or TIFF"
        raise DataError("is not an image that can be read", hint=hint) from None
    if width * height > MOST_PIXELS:
        raise too_large
    with path.open("rb") as file:
        head = file.read(16)
        size = file.seek(0, 2)
        file.seek(max(0, size - 4_096))
        if not whole(head + file.read()):
            raise DataError("is cut short", hint="download or copy it again")
    return width, height


def load_seeing(
    directory: Path,
    *,
    max_pixels: int | None = None,
    now: datetime | None = None,
    template: str | None = None,
) -> SeeingTokenizer:
    """The tokenizer of a saved model that sees. Errors as `image_tokens` and `load_tokenizer`."""
    layout = image_tokens(directory, max_pixels=max_pixels)
    fast, config = tokenizer_files(directory)
    found = SeeingTokenizer(directory, fast, config, now=now, template=template)
    return found.laid_out(layout, max_pixels)


class SeeingTokenizer(FileTokenizer):
    """A `FileTokenizer` whose chats may hold images: they are rendered with all their tokens."""

    images: ImageTokens
    max_pixels: int | None

    def laid_out(self, images: ImageTokens, max_pixels: int | None) -> SeeingTokenizer:
        """Take a layout of images. Errors: FileProblem where it lacks the tokens of images."""
        self.images, self.max_pixels = images, max_pixels
        if self._id(images.soft) is None:
            raise FileProblem(
                f"the tokenizer has no token {images.soft}, which images need", file=self.directory
            )
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reload, (self.directory, self.max_pixels, self._now, self._asked)

    @cached_property
    def soft_id(self) -> int:
        """The token whose places the vision tower fills."""
        found = self._id(self.images.soft)
        assert found is not None
        return found

    @cached_property
    def untrained_ids(self) -> frozenset[int]:
        """Tokens that only images bring: they never carry loss."""
        found = (self._id(token) for token in (self.images.soft, *self.images.around))
        return frozenset(index for index in found if index is not None)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{super().digest}\n{self.images}".encode()).hexdigest()

    def patches(self, messages: Sequence[Message]) -> int:
        """Patches that the vision tower reads for a conversation."""
        return sum(self.images.patches(part["width"], part["height"]) for part in image_parts(messages))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The chat template applied to messages, every image as the tokens that it becomes.

        Errors as `FileTokenizer.render`; DataError where the text itself holds tokens of images,
        Unsupported where the template does not write them.
        """
        pictures = image_parts(messages)
        text = super().render(
            [_as_parts(message) for message in messages],
            tools=tools,
            add_generation_prompt=add_generation_prompt,
        )
        pieces = text.split(self.images.marker)
        if len(pieces) == 1 and pictures:
            raise Unsupported(
                f"the chat template writes no {self.images.marker} for images",
                file=self.directory,
                hint="take a model whose template knows images",
            )
        if len(pieces) - 1 != len(pictures) or (
            self.images.soft != self.images.marker and self.images.soft in text
        ):
            raise DataError(
                f"the text holds {self.images.marker} or {self.images.soft}, which stand for images",
                hint="write the token otherwise, or leave the row out",
            )
        found = pieces[0]
        for picture, piece in zip(pictures, pieces[1:], strict=True):
            found += self.images.text(picture["width"], picture["height"]) + piece
        return found


def _reload(
    directory: Path, max_pixels: int | None, now: datetime | None, template: str | None
) -> SeeingTokenizer:
    return load_seeing(directory, max_pixels=max_pixels, now=now, template=template)


def _as_parts(message: Message) -> Message:
    """Content as a list of parts: what templates of models that see are written for."""
    content = message.get("content")
    if message.get("role") == "text" or content is None:
        return message
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    plain = [{"type": "image"} if part.get("type") == "image" else part for part in content]
    return {**message, "content": plain}

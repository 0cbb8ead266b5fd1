"""Files opened, decompressed, their encoding told."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from luthier.data.sources import Source
from luthier.errors import FileProblem, Unsupported

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@contextmanager
def as_file_problem(source: Source) -> Iterator[None]:
    """What the system says of a file that cannot be read, as FileProblem."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FileProblem(
            f"cannot be read: {reason}",
            file=source.shown,
            hint="check the file's permissions, and that it was downloaded or compressed to its end",
        ) from error


@contextmanager
def open_binary(source: Source) -> Iterator[IO[bytes]]:
    """Open a file, decompressed."""
    compression = compression_of(source)
    with source.path.open("rb", buffering=1 << 20) as plain:
        if compression == ".gz":
            with gzip.open(plain, "rb") as packed:
                yield io.BufferedReader(packed, 1 << 20)
        elif compression == ".zst":
            yield io.BufferedReader(_Zstd(plain, source.shown), 1 << 20)
        else:
            yield plain


def compression_of(source: Source) -> str | None:
    """``.gz`` or ``.zst``, by what the file is and not only by its name: downloads lose or keep suffixes."""
    with source.path.open("rb") as plain:
        magic = plain.read(4)
    if source.compression == ".gz" or magic.startswith(_GZIP):
        return ".gz"
    return ".zst" if source.compression == ".zst" or magic == _ZSTD else None


class _Zstd(io.RawIOBase):
    """A zstd file, all frames of it, that says where it ends too early (the library's reader does not)."""

    def __init__(self, packed: IO[bytes], shown: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise Unsupported(
                "reading .zst needs the zstandard package",
                file=shown,
                hint="pip install 'luthier[data]', or decompress the file",
            ) from error
        self._packed, self._library = packed, zstandard
        self._frame: Any = zstandard.ZstdDecompressor().decompressobj()
        self._ready, self._place, self._begun = b"", 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._place == len(self._ready):
            raw = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._library.ZstdDecompressor().decompressobj(), False
            raw = raw or self._packed.read(1 << 17)
            if not raw:
                if self._begun:
                    raise EOFError("the compressed data end too early")
                return 0
            self._begun, self._place = True, 0
            try:
                self._ready = self._frame.decompress(raw)
            except self._library.ZstdError as error:
                raise OSError(str(error)) from error
        count = min(len(buffer), len(self._ready) - self._place)
        buffer[:count] = self._ready[self._place : self._place + count]
        self._place += count
        return count


def told_encoding(head: bytes) -> str | None:
    """Encoding told by a byte order mark, or by the zero bytes of ASCII in UTF-16."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return name
    if len(head) >= 2 and not head[1] and head[0]:
        return "utf-16-le"
    return "utf-16-be" if len(head) >= 2 and not head[0] and head[1] else None

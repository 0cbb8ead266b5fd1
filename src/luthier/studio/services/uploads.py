"""Files that arrive over the network: checked before the first byte, resumable, whole or not there.

A file is written under a random name and takes its place only when all of it has come and is on the disk.
Names are shown and never used as paths. What has arrived of a broken transfer stays, and is found again by
name, size and the sender's mark (the browser's date of the file).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from luthier.data.sources import COMPRESSIONS, FORMATS
from luthier.errors import LuthierError
from luthier.files import UNFINISHED, file_sha256, write_text
from luthier.words import readable

LARGEST = 64 * 10**9
"""Bytes that one file may have."""
KEPT_FREE = 1 << 30
"""Bytes that stay free on the disk."""
AT_ONCE = 1 << 20
"""Bytes gathered before they are written."""
KEEP_SECONDS = 7 * 86_400
"""How long a broken transfer waits to be continued."""
_RANGE = re.compile(r"bytes (?:(?P<first>[0-9]+)-(?P<last>[0-9]+)|\*)/(?P<total>[0-9]+)")
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"SQLite format 3": "a database",
    b"\x1f\x8b": "compressed (.gz)",
    b"\x28\xb5\x2f\xfd": "compressed (.zst)",
    b"PAR1": "a Parquet table",
}
_BEGINNINGS = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", "parquet": b"PAR1", "arrow": b"ARROW1"}
_MARKS = (b"\xff\xfe", b"\xfe\xff")


class UploadRefused(LuthierError):
    """A file that is not taken. status: HTTP's word for why."""

    def __init__(self, status: int, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status, self.code = status, code


@dataclass(frozen=True, slots=True)
class Span:
    """Which bytes of how many a request brings; ``first`` is None where it only asks what is there."""

    first: int | None
    last: int | None
    total: int

    @property
    def count(self) -> int:
        return 0 if self.first is None or self.last is None else self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Received:
    """What has arrived of a file."""

    name: str
    suffix: str
    total: int
    bytes: int
    sha256: str | None = None
    """Of the whole file, once it is there."""
    path: Path | None = None
    """Where the whole file lies until somebody takes it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file of which a part has arrived."""

    name: str
    total: int
    bytes: int
    mark: str


def read_span(header: str | None, length: str | None) -> Span:
    """The bytes that a request brings, by its Content-Range, else by its Content-Length.

    Errors: UploadRefused (400 for a range that cannot be, 411 where nothing says how long it is).
    """
    size = int(length) if length is not None and length.isascii() and length.isdecimal() else None
    if header is None:
        if size is None:
            raise UploadRefused(411, "length-required", "the request does not say how long the file is")
        return Span(0, size - 1, size) if size else Span(None, None, 0)
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        raise UploadRefused(
            400, "bad-range", f"{header[:80]!r} is not a range", hint="write bytes FIRST-LAST/TOTAL"
        )
    total = int(match["total"])
    if match["first"] is None:
        return Span(None, None, total)
    span = Span(first := int(match["first"]), last := int(match["last"]), total)
    if not first <= last < total:
        raise UploadRefused(400, "bad-range", f"bytes {match[0][6:]} cannot be")
    if size is not None and size != span.count:
        raise UploadRefused(
            400, "bad-range", f"the range names {span.count:,} bytes and the request has {size:,}"
        )
    return span


def suffix_of(name: str) -> str:
    """The kind of file that a name stands for: ``.jsonl``, ``.csv.gz``. Errors: UploadRefused (415, 400)."""
    if not name.strip() or len(name) > 255 or any(ord(letter) < 32 for letter in name):
        raise UploadRefused(400, "bad-name", "a file needs a name of up to 255 letters")
    parts = [part.lower() for part in Path(name.replace("\\", "/")).suffixes[-2:]]
    packed = parts.pop() if parts and parts[-1] in COMPRESSIONS else ""
    if not parts or parts[-1] not in FORMATS:
        raise UploadRefused(
            415,
            "unknown-kind",
            f"{name[-60:]!r} is not a kind of file that holds rows",
            hint=f"send {', '.join(FORMATS)}, or .gz or .zst of each",
        )
    return parts[-1] + packed


def sniff(head: bytes, suffix: str) -> None:
    """Refuse a file that is not what its name says, by its first bytes. Errors: UploadRefused (415)."""

    def lies(found: str) -> UploadRefused:
        return UploadRefused(415, "not-that-kind", f"the file is called {suffix} and is {found}")

    packed = next((one for one in COMPRESSIONS if suffix.endswith(one)), None)
    kind = FORMATS[suffix.removesuffix(packed or "")]
    expected = _BEGINNINGS.get(packed or kind)
    if expected is not None:
        if not head.startswith(expected) and not (kind == "arrow" and head.startswith(b"FEA1")):
            raise lies("something else")
        return
    for beginning, what in _FOREIGN.items():
        if head.startswith(beginning):
            raise lies(what)
    # UTF-16 holds zero bytes as well: it begins with its mark, or has every other byte zero.
    if b"\0" in head and not head.startswith(_MARKS) and b"\0\0\0" in head:
        raise lies("no text")


class Uploads:
    """The files on their way into one folder."""

    def __init__(self, folder: Path, *, largest: int = LARGEST, kept_free: int = KEPT_FREE) -> None:
        self.folder, self.largest, self.kept_free = folder, largest, kept_free
        self._busy: set[str] = set()

    def state(self, name: str, total: int, mark: str = "") -> Received:
        """What has arrived of a file, nothing or part of it. Errors: UploadRefused as for the file itself."""
        suffix = suffix_of(name)
        known = self._known(_key(name, total, mark))
        size = known.stat().st_size if known is not None else 0
        return Received(name, suffix, total, size)

    async def receive(self, name: str, span: Span, mark: str, chunks: AsyncIterator[bytes]) -> Received:
        """Take a piece of a file; with its last byte the file is checked, synced and handed over.

        Errors: UploadRefused (400, 409 with what is there, 413, 415, 507). A sender that goes away leaves
        what came, to be continued.
        """
        suffix = suffix_of(name)
        self._check_size(span.total)
        key = _key(name, span.total, mark)
        if span.first is None and span.total:
            return self.state(name, span.total, mark)
        if key in self._busy:
            raise UploadRefused(409, "in-progress", "this file is being sent by another request")
        self._busy.add(key)
        try:
            part = self._known(key) or self._begin(key, name, span.total, mark)
            there = part.stat().st_size
            if span.first != there and span.total:
                raise UploadRefused(
                    409, "wrong-offset", f"{there:,} bytes are here, and the request begins at {span.first:,}"
                )
            digest = await self._write(part, span, suffix, chunks, fresh=there == 0)
            if part.stat().st_size < span.total:
                return Received(name, suffix, span.total, part.stat().st_size)
            return await asyncio.to_thread(self._finish, part, key, name, suffix, digest)
        finally:
            self._busy.discard(key)

    def waiting(self) -> list[Waiting]:
        """Transfers that broke off (or go on just now), by name."""
        found = []
        for note in self.folder.glob(".upload-*.json") if self.folder.is_dir() else ():
            known = self._read(note)
            part = None if known is None else self.folder / known["part"]
            if known is not None and part is not None and part.is_file():
                size, total = part.stat().st_size, int(known["total"])
                found.append(Waiting(known["name"], total, size, known.get("mark", "")))
        return sorted(found, key=lambda one: one.name)

    def drop(self, name: str, total: int, mark: str = "") -> None:
        """Forget what has arrived of a file."""
        key = _key(name, total, mark)
        if (part := self._known(key)) is not None:
            part.unlink(missing_ok=True)
        self._note(key).unlink(missing_ok=True)

    def sweep(self, *, now: float | None = None) -> int:
        """Remove transfers that nobody went on with, and return how many."""
        gone = 0
        for note in self.folder.glob(".upload-*.json") if self.folder.is_dir() else ():
            known = self._read(note)
            part = None if known is None else self.folder / known["part"]
            newest = max(path.stat().st_mtime for path in (note, part) if path is not None and path.exists())
            if (now or time.time()) - newest > KEEP_SECONDS:
                for path in (part, note):
                    if path is not None:
                        path.unlink(missing_ok=True)
                gone += 1
        return gone

    def _check_size(self, total: int) -> None:
        if total > self.largest:
            raise UploadRefused(
                413,
                "too-large",
                f"the file has {readable(total)}, and {readable(self.largest)} is the most",
                hint="train on it where it lies: name its path instead of sending it",
            )
        if not total:
            raise UploadRefused(400, "empty-file", "the file is empty")

    def _begin(self, key: str, name: str, total: int, mark: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sweep()
        free = shutil.disk_usage(self.folder).free
        if total + self.kept_free > free:
            raise UploadRefused(
                507,
                "no-space",
                f"the file has {readable(total)} and {readable(free)} are free "
                f"({readable(self.kept_free)} are kept free)",
                hint="free some space, or keep the data on a larger disk (LUTHIER_DATASETS)",
            )
        part = self.folder / f"{UNFINISHED}{secrets.token_hex(16)}.part"
        part.touch(mode=0o600)
        write_text(
            self._note(key), json.dumps({"part": part.name, "name": name, "total": total, "mark": mark})
        )
        return part

    async def _write(
        self, part: Path, span: Span, suffix: str, chunks: AsyncIterator[bytes], *, fresh: bool
    ) -> Any:
        """Append the request's bytes. Returns the SHA-256 so far where they are the file from its start."""
        digest = hashlib.sha256() if fresh else None
        waiting, size, left = list[bytes](), 0, span.count
        sniffed = not fresh
        with part.open("ab", buffering=0) as file:
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    # What lies about its length is not kept, nor is what came before it.
                    file.truncate(span.first or 0)
                    raise UploadRefused(400, "too-many-bytes", "the request holds more than its range says")
                waiting.append(chunk)
                size += len(chunk)
                if not sniffed and (size >= 64 or left == 0):
                    self._sniff_or_drop(b"".join(waiting)[:4096], suffix, part)
                    sniffed = True
                if size >= AT_ONCE:
                    await asyncio.to_thread(_append, file, waiting, digest)
                    waiting, size = [], 0
            await asyncio.to_thread(_append, file, waiting, digest)
        return digest

    def _sniff_or_drop(self, head: bytes, suffix: str, part: Path) -> None:
        try:
            sniff(head, suffix)
        except UploadRefused:
            part.unlink(missing_ok=True)
            raise

    def _finish(self, part: Path, key: str, name: str, suffix: str, digest: Any) -> Received:
        with part.open("rb+") as file:
            head = file.read(4096)
            os.fsync(file.fileno())
        self._sniff_or_drop(head, suffix, part)
        found = digest.hexdigest() if digest is not None else file_sha256(part)
        whole = part.with_suffix(".whole")
        part.rename(whole)
        self._note(key).unlink(missing_ok=True)
        return Received(name, suffix, size := whole.stat().st_size, size, found, whole)

    def _note(self, key: str) -> Path:
        return self.folder / f".upload-{key}.json"

    def _known(self, key: str) -> Path | None:
        known = self._read(self._note(key))
        part = None if known is None else self.folder / known["part"]
        return part if part is not None and part.is_file() else None

    @staticmethod
    def _read(note: Path) -> dict[str, str] | None:
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "/" not in str(found.get("part", "/")) else None


def _append(file: IO[bytes], chunks: list[bytes], digest: Any) -> None:
    for chunk in chunks:
        file.write(chunk)
        if digest is not None:
            digest.update(chunk)


def _key(name: str, total: int, mark: str) -> str:
    return hashlib.sha256(f"{name}\0{total}\0{mark}".encode("utf-8", "replace")).hexdigest()[:32]


def as_values(received: Received) -> dict[str, Any]:
    """What has arrived as plain values, paths left out."""
    values = asdict(received)
    values.pop("path")
    return values

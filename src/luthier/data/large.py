"""Data sets larger than memory: read twice in pieces by several processes, rendered rows kept on disk.

Rows, order, report and digests are those of ``load_splits`` in memory; a second start with equal files
and an equal recipe reads neither again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.again import Again, demand
from luthier.data.chunks import Chunk
from luthier.data.fit import NO_END, over_length_error, weighed
from luthier.data.infill import infill_of
from luthier.data.passes import Problems, Reading, Rendered, Rendering, chat_again, pieces_of, row_again
from luthier.data.pool import ordered
from luthier.data.scan import Scanner, Sources, Split, leakage, readings, source_bytes
from luthier.data.sinks import Sink
from luthier.data.sources import Source
from luthier.data.stats import digest, lengths_of
from luthier.data.store import SourceRows, StoredChats, StoredRows
from luthier.errors import DoesNotFit, Unsupported
from luthier.files import UNFINISHED, cache_dir, file_sha256, readable, write_text
from luthier.schema.data import DataReport
from luthier.schema.data_profile import LengthProfile
from luthier.schema.protocols import ChatRow, Splits, TextTokenizer, TokenRow
from luthier.schema.recipe import DataChoice, Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 2
"""Of the cache: raised whenever rendering or its files change."""
_REMEMBERED = 16 << 20
"""Bytes of a file from which on its digest is remembered."""


def load_large(
    recipe: Recipe,
    tokenizer: TextTokenizer,
    sources: Sources,
    *,
    limit: int | None,
    stream: bool,
    plain: bool,
    notes: Sequence[str],
) -> tuple[Splits, DataReport, LengthProfile]:
    """The splits of a recipe, rendered rows in the cache (or, with stream, read again each time).

    Errors as load_splits, and DoesNotFit where the disk has no room.
    """
    files = {file.shown: file for part in (sources.train, *sources.given.values()) for file in part.files}
    if stream:
        for file in files.values():
            demand(file)
    folder = cache_dir() / "rows" / _key(recipe, tokenizer, sources, files, limit, stream=stream, plain=plain)
    train, given = readings(recipe, sources, plain=plain)
    if not (folder / "loaded.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not stream:
            _demand_room(files.values(), folder.parent)
        made = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
        try:
            scanner = Scanner(recipe, sources, train, given)
            Maker(scanner, tokenizer, limit=limit, stream=stream, notes=notes, folder=made).make()
            try:
                made.rename(folder)
            except OSError:  # another process was first; its rows are these
                if not (folder / "loaded.json").is_file():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    os.utime(folder)
    return _open(folder, recipe, tokenizer, files=files, train=train, given=given, limit=limit, stream=stream)


def needed_bytes(files: Collection[Source]) -> int:
    """Disk that rendered rows take: about a token for three characters, each in 4 bytes and a bit, and
    some 80 bytes a row, half of them only while the rows are made.
    """
    return int(source_bytes(files) * 2)


def _demand_room(files: Collection[Source], folder: Path) -> None:
    needed, free = needed_bytes(files), shutil.disk_usage(folder).free
    if needed > free:
        raise DoesNotFit(
            f"rendered rows would take about {readable(needed)} and {readable(free)} are free",
            file=folder,
            hint="free space, set LUTHIER_CACHE to another disk, or set data.storage=stream",
        )


def _key(
    recipe: Recipe,
    tokenizer: TextTokenizer,
    sources: Sources,
    files: dict[str, Source],
    limit: int | None,
    *,
    stream: bool,
    plain: bool,
) -> str:
    """Digest of all that decides the rows: contents, names, the recipe's words on them, the tokenizer."""
    digests = content_digests([file.path for file in files.values()])
    aside = {"name", "storage", "processes", "packing", "train", "validation", "test"}
    data = recipe.data.model_dump(mode="json", exclude=aside)
    parts = {name: [file.shown for file in part.files] for name, part in sources.given.items()}
    dated = "strftime_now" in (getattr(tokenizer, "chat_template", None) or "")
    told = {
        "format": FORMAT,
        "files": [[name, digests[file.path]] for name, file in files.items()],
        "train": [file.shown for file in sources.train.files],
        "given": parts,
        "weights": sources.weights,
        "data": data,
        "seed": recipe.seed,
        "limit": limit,
        "stream": stream,
        "plain": plain,
        "tokenizer": getattr(tokenizer, "digest", None),
        "day": str(getattr(tokenizer, "now", None) or date.today()) if dated else None,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def content_digests(paths: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of files, remembered by size, time of change and inode: a second start reads none of them."""
    kept = cache_dir() / "rows" / "digests.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    found: dict[Path, str] = {}
    fresh = False
    for path in paths:
        stat = path.stat()
        if stat.st_size < _REMEMBERED:
            found[path] = file_sha256(path)
            continue
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        entry = known.get(str(path.resolve()))
        if not entry or entry[0] != mark:
            entry = [mark, file_sha256(path)]
            known[str(path.resolve())], fresh = entry, True
        found[path] = entry[1]
    if fresh:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(known))
    return found


def rendering(
    data: DataChoice,
    reading: Reading,
    tokenizer: TextTokenizer,
    limit: int | None,
    tests: frozenset[int],
) -> Rendering:
    """How rows of a recipe are rendered. tests: numbers of the splits whose rows stay conversations."""
    infill = infill_of(data.fim_rate, reading.seed, tokenizer, limit)
    return Rendering(reading, tokenizer, data.train_on, limit, data.over_length, tests, infill)


class Maker:
    """Both passes, into one cache folder."""

    def __init__(
        self,
        scanner: Scanner,
        tokenizer: TextTokenizer,
        *,
        limit: int | None,
        stream: bool,
        notes: Sequence[str],
        folder: Path,
    ) -> None:
        self.scanner, self.data = scanner, scanner.recipe.data
        self.tokenizer, self.limit = tokenizer, limit
        self.stream, self.notes, self.folder = stream, notes, folder

    def make(self) -> None:
        splits = self.scanner.splits()
        leaks = leakage(splits)
        sinks = {
            split.number: Sink(split, self.folder, self.tokenizer, stream=self.stream) for split in splits
        }
        groups: dict[int, list[Split]] = {}
        for split in splits:
            groups.setdefault(id(split.index), []).append(split)
        for members in groups.values():
            self._render(members, sinks)
        self._finish(splits, sinks, leaks)

    def _render(self, members: list[Split], sinks: dict[int, Sink]) -> None:
        """Second pass over the files of some splits that share them."""
        index, files = members[0].index, members[0].files
        tests = frozenset(number for number in sinks if number > 1)
        reading = self.scanner.given.get(members[0].name, self.scanner.train)
        how = rendering(self.data, reading, self.tokenizer, self.limit, tests)
        problems = Problems()
        numbers = {file.shown: number for number, file in enumerate(files)}
        starts = np.concatenate([[0], np.cumsum(index.counts)])
        sent: deque[tuple[int, int, NDArray[np.int64] | None, int]] = deque()

        def pieces() -> Iterator[tuple[Chunk, bytes]]:
            for number, chunk in enumerate(pieces_of(files, problems)):
                begin, end = int(starts[number]), int(starts[number + 1])
                lines = _starts(chunk) if self.stream else None
                first = chunk.first if chunk.lines is not None else chunk.rows[0].line
                sent.append((numbers[chunk.file], begin, lines, first))
                yield chunk, index.places[begin:end].tobytes()

        for one in ordered("luthier.data.passes:render_job", how, pieces(), count=self.scanner.count):
            rendered: Rendered = one
            problems.add(rendered.problems, rendered.broken)
            file, begin, lines, first = sent.popleft()
            if not problems.count:
                for number, part in rendered.parts.items():
                    sinks[number].add(part, file=file, begin=begin, lines=lines, first=first)
                for number, tests_of in rendered.tests.items():
                    sinks[number].add_tests(tests_of, file=file, lines=lines, first=first)
        problems.demand_none()

    def _finish(
        self,
        splits: list[Split],
        sinks: dict[int, Sink],
        leaks: tuple[dict[str, int], dict[str, int]],
    ) -> None:
        """The account of all, and the orders, beside the rows."""
        most = getattr(self.tokenizer, "max_length", None)
        reports, token_digests = [], []
        for split in splits:
            sink = sinks[split.number]
            sink.close()
            if sink.over and self.data.over_length == "error":
                assert sink.longest is not None
                raise over_length_error(sink.over, sink.rows, sink.longest, self.limit, most)
            reports.append(sink.report())
            if split.number < 2:
                token_digests.append(sink.token_digest())
        by_name = {split.name: sinks[split.number] for split in splits}
        train = by_name["train"]
        leaked, asked = leaks
        notes = [
            *self.notes,
            *(
                f"{count} of the {name} rows stand in the training rows too: scores on them prove nothing"
                for name, count in leaked.items()
                if count
            ),
            *_end_notes(train, self.tokenizer),
        ]
        shape = next(iter(self.scanner.train.shapes.values()))
        report = DataReport(
            format=shape.name,
            columns=shape.columns,
            splits=tuple(reports),
            leakage=leaked,
            prompt_leakage=asked,
            tokenizer_digest=getattr(self.tokenizer, "digest", None),
            digest=digest(
                [
                    *(f"{one.name}={one.digest}" for one in reports),
                    *token_digests,
                    *weighed(self.scanner.sources.weights),
                ]
            ),
            notes=tuple(notes),
        )
        tests = [sink for name, sink in by_name.items() if sink.split.number > 1]
        prompts = sum((sink.prompts for sink in tests), Counter[int]())
        answers = sum((sink.answers for sink in tests), Counter[int]())
        profile = LengthProfile(
            train=lengths_of(train.uncut),
            trained_tokens=train.trained_uncut,
            validation=lengths_of(by_name["validation"].uncut) if "validation" in by_name else None,
            prompts=lengths_of(prompts) if prompts else None,
            answers=lengths_of(answers) if answers else None,
        )
        if train.split.times is not None:
            np.save(self.folder / "order.npy", train.order())
        names = {split.name: split.number for split in splits}
        loaded = {
            "report": report.model_dump(mode="json"),
            "lengths": profile.model_dump(mode="json"),
            "splits": names,
        }
        write_text(self.folder / "loaded.json", json.dumps(loaded, ensure_ascii=False))


def _starts(chunk: Chunk) -> NDArray[np.int64]:
    """Where each line of a chunk begins in its file; that of its first row comes first."""
    if chunk.lines is not None:
        ends = np.flatnonzero(np.frombuffer(chunk.lines, dtype=np.uint8) == 10)
        return np.concatenate([[0], ends + 1]) + chunk.offset
    first = chunk.rows[0].line
    starts = np.zeros(chunk.rows[-1].line - first + 1, dtype=np.int64)
    for row in chunk.rows:
        if row.offset is None:
            raise Unsupported(
                "rows cannot be read again one by one: the file is no UTF-8, or its lines end with CR alone",
                file=chunk.file,
                hint="convert it to UTF-8 with LF at the line ends, or set data.storage=cache",
            )
        starts[row.line - first] = row.offset
    return starts


def _end_notes(train: Sink, tokenizer: TextTokenizer) -> list[str]:
    ends = list(tokenizer.eos_ids)
    if any(index in ends for ids in train.ends for index in ids.tolist()):
        return []
    return [NO_END]


def _open(
    folder: Path,
    recipe: Recipe,
    tokenizer: TextTokenizer,
    *,
    files: dict[str, Source],
    train: Reading,
    given: dict[str, Reading],
    limit: int | None,
    stream: bool,
) -> tuple[Splits, DataReport, LengthProfile]:
    loaded = json.loads((folder / "loaded.json").read_text(encoding="utf-8"))
    report = DataReport.model_validate(loaded["report"])
    order = np.load(folder / "order.npy") if (folder / "order.npy").is_file() else None
    rows: dict[str, Any] = {}
    readers: dict[tuple[str, ...], Again] = {}
    for name, number in loaded["splits"].items():
        named = [files[file] for file in report.split(name).files]
        shown = [file.shown for file in named]
        own = order if name == "train" else None
        if not stream:
            path = folder / f"{number}.arrow"
            rows[name] = StoredRows(path, shown, own) if number < 2 else StoredChats(path, shown)
            continue
        how = rendering(recipe.data, given.get(name, train), tokenizer, limit, frozenset())
        with np.load(folder / f"{number}.npz") as kept:
            places = {key: kept[key] for key in kept.files}
        reader = readers.setdefault(tuple(shown), Again(named))
        if number < 2:
            rows[name] = SourceRows[TokenRow](reader, places, row_again(how), own)
        else:
            places.pop("length")
            rows[name] = SourceRows[ChatRow](reader, places, chat_again(how))
    tests = {name: rows[name] for name, number in loaded["splits"].items() if number > 1}
    profile = LengthProfile.model_validate(loaded["lengths"])
    return Splits(rows["train"], rows.get("validation", []), tests), report, profile

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
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.again import Again, demand
from luthier.data.chunks import Chunk
from luthier.data.fit import NO_END, NOT_CHOSEN, UNWEIGHTED, over_length_error, times_seen, weighed
from luthier.data.passes import (
    LEFT_OUT,
    Index,
    Problems,
    Reading,
    Rendered,
    Rendering,
    chat_again,
    pieces_of,
    row_again,
    shapes_of,
)
from luthier.data.pool import ordered, processes
from luthier.data.sinks import Sink, Split
from luthier.data.sources import Resolved, Source
from luthier.data.splits import allot, choose_places
from luthier.data.stats import digest, lengths
from luthier.data.store import SourceRows, StoredChats, StoredRows
from luthier.errors import DataError, DoesNotFit, Unsupported
from luthier.files import UNFINISHED, cache_dir, file_sha256, readable, write_text
from luthier.schema.data import DataReport
from luthier.schema.data_profile import LengthProfile
from luthier.schema.protocols import ChatRow, Splits, TextTokenizer, TokenRow
from luthier.schema.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
"""Of the cache: raised whenever rendering or its files change."""
_REMEMBERED = 16 << 20
"""Bytes of a file from which on its digest is remembered."""
PIECE_BYTES = 4 << 20
"""Files of fewer bytes start no more than one process."""


@dataclass(frozen=True)
class Sources:
    """The files of a recipe, resolved."""

    train: Resolved
    given: dict[str, Resolved]
    """Split -> the files named for it."""
    weights: dict[str, float]


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


def readings(recipe: Recipe, sources: Sources, *, plain: bool = False) -> tuple[Reading, dict[str, Reading]]:
    """How the training files are read, and those of each split that has its own."""
    data = recipe.data
    train = Reading(shapes_of(sources.train.files, data), data.system, recipe.seed, plain)
    given = {
        name: Reading(shapes_of(part.files, data), data.system, recipe.seed, plain)
        for name, part in sources.given.items()
    }
    return train, given


def source_bytes(files: Any) -> int:
    """Bytes of files, compressed ones counted four times over."""
    return sum(file.path.stat().st_size * (4 if _is_packed(file) else 1) for file in files)


def _is_packed(file: Source) -> bool:
    return file.compression is not None or file.kind == "parquet"


def needed_bytes(files: Any) -> int:
    """Disk that rendered rows take: about a token for three characters, each in 4 bytes and a bit."""
    return int(source_bytes(files) * 1.5)


def _demand_room(files: Any, folder: Path) -> None:
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


class Scanner:
    """The first pass over a recipe's files: every row into its split."""

    def __init__(self, recipe: Recipe, sources: Sources, train: Reading, given: dict[str, Reading]) -> None:
        self.recipe, self.sources, self.train, self.given = recipe, sources, train, given
        self.count = min(recipe.data.processes or processes(), 1 + source_bytes(self._files()) // PIECE_BYTES)

    def _files(self) -> list[Source]:
        return [f for part in (self.sources.train, *self.sources.given.values()) for f in part.files]

    def splits(self) -> list[Split]:
        """First pass: every row into its split."""
        data, seed = self.recipe.data, self.recipe.seed
        files = self.sources.train.files
        index = self._scan(files, self.train)
        shares = {} if data.test else {"test": data.test_share}
        if not data.validation:
            shares["validation"] = data.validation_share
        places = _cut(index, shares, file=files[0].shown)
        wanted = [name for name, share in shares.items() if share > 0]
        names = ["train", "validation", *(n for n in (*wanted, *data.test) if n != "validation")]
        number = {name: place for place, name in enumerate(names)}
        splits = [
            Split(name, number[name], files, part > 0, index=index, rows=np.flatnonzero(places == part))
            for part, name in enumerate(["train", *wanted])
        ]
        self._choose(splits[0], seed)
        for name, reading in self.given.items():
            own = self.sources.given[name].files
            found = self._scan(own, reading)
            splits.append(Split(name, number[name], own, cut=False, index=found, rows=np.arange(len(found))))
        for split in splits[1:]:
            assert split.rows is not None
            split.read = len(split.rows)
        self.leakage = _leakage(splits)
        return splits

    def _choose(self, train: Split, seed: int) -> None:
        """max_rows and weights."""
        assert train.rows is not None
        assert train.index is not None
        train.read = len(train.rows)
        most = self.recipe.data.max_rows
        if most is not None and most < len(train.rows):
            chosen = choose_places(_hex(train.index.ids[train.rows]), most, seed=seed)
            train.dropped[NOT_CHOSEN] = len(train.rows) - most
            train.rows = train.rows[chosen]
        if self.sources.weights:
            train.weights = self.sources.weights
            names = [file.shown for file in train.files]
            files = [names[number] for number in train.index.files[train.rows].tolist()]
            times = np.array(
                times_seen(files, _hex(train.index.ids[train.rows]), self.sources.weights, seed=seed)
            )
            if (times == 0).any():
                train.dropped[UNWEIGHTED] = int((times == 0).sum())
            train.times = np.zeros(len(train.index), dtype=np.int64)
            train.times[train.rows] = times
            train.rows = train.rows[times > 0]

    def _scan(self, files: tuple[Source, ...], reading: Reading) -> Index:
        problems = Problems()
        numbers = {file.shown: number for number, file in enumerate(files)}
        sent: deque[int] = deque()

        def pieces() -> Iterator[Chunk]:
            for chunk in pieces_of(files, problems):
                sent.append(numbers[chunk.file])
                yield chunk

        found, of_files = [], []
        for one in ordered("luthier.data.passes:scan_job", reading, pieces(), count=self.count):
            problems.add(one.problems, one.broken)
            found.append(one)
            of_files.append(np.full(len(one.prompts), sent.popleft(), dtype=np.int32))
        problems.demand_none()
        prompts, by_prompt, by_id = (
            np.concatenate([getattr(one, name) for one in found] or [np.zeros(0, np.uint64)])
            for name in ("prompts", "by_prompt", "by_id")
        )
        ids = np.frombuffer(b"".join(one.ids for one in found), dtype="V12")
        files_of_rows = np.concatenate(of_files or [np.zeros(0, np.int32)])
        counts = [len(one.prompts) for one in found]
        lines = np.concatenate([one.lines for one in found] or [np.zeros(0, np.int64)])
        index = Index(ids, prompts, by_prompt, by_id, counts, files_of_rows, lines)
        if not len(index):
            raise DataError(
                "the data set is empty: no row was read",
                file=files[0].shown,
                hint="give a file with at least a few rows",
            )
        return index


class Maker(Scanner):
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
        super().__init__(scanner.recipe, scanner.sources, scanner.train, scanner.given)
        self.tokenizer, self.limit = tokenizer, limit
        self.stream, self.notes, self.folder = stream, notes, folder

    def make(self) -> None:
        splits = self.splits()
        sinks = {
            split.number: Sink(split, self.folder, self.tokenizer, stream=self.stream) for split in splits
        }
        groups: dict[int, list[Split]] = {}
        for split in splits:
            groups.setdefault(id(split.index), []).append(split)
        for members in groups.values():
            self._render(members, sinks)
        self._finish(splits, sinks)

    def _render(self, members: list[Split], sinks: dict[int, Sink]) -> None:
        """Second pass over the files of some splits that share them."""
        index, files = members[0].index, members[0].files
        assert index is not None
        places = np.full(len(index), LEFT_OUT, dtype=np.uint8)
        for split in members:
            assert split.rows is not None
            places[split.rows] = split.number
        tests = frozenset(number for number in sinks if number > 1)
        how = self.rendering(self.given.get(members[0].name, self.train), tests)
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
                yield chunk, places[begin:end].tobytes()

        for one in ordered("luthier.data.passes:render_job", how, pieces(), count=self.count):
            rendered: Rendered = one
            problems.add(rendered.problems, rendered.broken)
            file, begin, lines, first = sent.popleft()
            if not problems.count:
                for number, part in rendered.parts.items():
                    sinks[number].add(part, file=file, begin=begin, lines=lines, first=first)
        problems.demand_none()

    def rendering(self, reading: Reading, tests: frozenset[int]) -> Rendering:
        data = self.recipe.data
        return Rendering(reading, self.tokenizer, data.train_on, self.limit, data.over_length, tests)

    def _finish(self, splits: list[Split], sinks: dict[int, Sink]) -> None:
        """The account of all, and the orders, beside the rows."""
        most = getattr(self.tokenizer, "max_length", None)
        reports, token_digests = [], []
        for split in splits:
            sink = sinks[split.number]
            sink.close()
            if sink.over and self.recipe.data.over_length == "error":
                assert sink.longest is not None
                raise over_length_error(sink.over, sink.rows, sink.longest, self.limit, most)
            reports.append(sink.report())
            if split.number < 2:
                token_digests.append(sink.token_digest())
        by_name = {split.name: sinks[split.number] for split in splits}
        train = by_name["train"]
        leakage, asked = self.leakage
        notes = [
            *self.notes,
            *(
                f"{count} of the {name} rows stand in the training rows too: scores on them prove nothing"
                for name, count in leakage.items()
                if count
            ),
            *_end_notes(train, self.tokenizer),
        ]
        shape = self.train.shapes[next(iter(self.train.shapes))]
        report = DataReport(
            format=shape.name,
            columns=shape.columns,
            splits=tuple(reports),
            leakage=leakage,
            prompt_leakage=asked,
            tokenizer_digest=getattr(self.tokenizer, "digest", None),
            digest=digest(
                [
                    *(f"{one.name}={one.digest}" for one in reports),
                    *token_digests,
                    *weighed(self.sources.weights),
                ]
            ),
            notes=tuple(notes),
        )
        tests = [sink for name, sink in by_name.items() if sink.split.number > 1]
        prompts = [prompt for sink in tests for prompt, _ in sink.asked]
        answers = [answer for sink in tests for _, answer in sink.asked]
        profile = LengthProfile(
            train=lengths(train.uncut_sizes()),
            trained_tokens=train.trained_tokens(),
            validation=lengths(by_name["validation"].uncut_sizes()) if "validation" in by_name else None,
            prompts=lengths(prompts) if prompts else None,
            answers=lengths(answers) if answers else None,
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


def _hex(ids: NDArray[np.void]) -> list[str]:
    text = ids.tobytes().hex()
    return [text[start : start + 24] for start in range(0, len(text), 24)]


def _cut(index: Index, shares: dict[str, float], *, file: str) -> NDArray[np.uint8]:
    """Split number of each row: 0 train, then the shares above 0 in their order. As ``splits.cut``."""
    by_prompt = len(np.unique(index.prompts)) * 2 >= len(index)
    ranks = index.by_prompt if by_prompt else index.by_id
    _, groups, sizes = np.unique(ranks, return_inverse=True, return_counts=True)
    wanted = [name for name, share in shares.items() if share > 0]
    of_group = np.zeros(len(sizes), dtype=np.uint8)
    for group, name in allot(sizes.tolist(), shares, rows=len(index), file=file).items():
        of_group[group] = 1 + wanted.index(name)
    return of_group[groups]


def _leakage(splits: list[Split]) -> tuple[dict[str, int], dict[str, int]]:
    """Held-out rows whose content, and whose prompt only, stands in train."""
    train = splits[0]
    assert train.index is not None
    held = [split for split in splits if split is not train]
    mask = np.ones(len(train.index), dtype=bool)
    for split in held:
        if split.index is train.index:
            assert split.rows is not None
            mask[split.rows] = False
    ids, prompts = train.index.ids[mask], train.index.prompts[mask]
    whole, asked = {}, {}
    for split in held:
        assert split.index is not None
        same = np.isin(_numbers(split.index.ids[split.rows]), _numbers(ids))
        whole[split.name] = int(same.sum())
        asked[split.name] = int((np.isin(split.index.prompts[split.rows], prompts) & ~same).sum())
    return whole, asked


def _numbers(ids: NDArray[np.void]) -> NDArray[np.uint64]:
    """First 8 of the 12 bytes of each digest."""
    flat = np.frombuffer(ids.tobytes(), dtype=np.uint8).reshape(-1, 12)
    return np.ascontiguousarray(flat[:, :8]).view(np.uint64).ravel()


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
        data = recipe.data
        reading = given.get(name, train)
        how = Rendering(reading, tokenizer, data.train_on, limit, data.over_length, frozenset())
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

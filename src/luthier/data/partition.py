"""Files into train, validation and test files: seeded, by label shares, and nothing on two sides."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from luthier.data.columns import Missing, as_text, value_at
from luthier.data.kinds import LABELLED, Kind, detect_kind
from luthier.data.messages import RowProblem, content_digest, half_letter
from luthier.data.near import near_groups
from luthier.data.read import RawRow, read_file
from luthier.data.shapes import Shape, detect, several, to_chat
from luthier.data.sources import resolve
from luthier.data.splits import prompt_key
from luthier.errors import DataError, LuthierError, UsageError, did_you_mean
from luthier.schema.data import FilePart, FileSplitReport

_LOOKED_AT = 50
_LABEL_LETTERS = 60
_MOST_LABELS = 500
_INSTRUCTION, _FEW_ROWS = 0.1, 10
"""A prompt that stands in more than this share of the rows, and in more than a few, is an instruction."""
EQUAL, PROMPT, NEAR, GROUP = "equal", "equal prompt", "nearly equal", "one group"


@dataclass(frozen=True, slots=True)
class Parting:
    """What is asked of a split."""

    shares: dict[str, float]
    """Name of a part beside train -> its share of all rows."""
    seed: int = 17
    stratify: str | None = None
    """Column whose shares are kept; labels are found where rows have some."""
    group: str | None = None
    """Column (or path) of what has to stay together: a person, a document, a shop."""
    near: bool = True
    """Whether nearly equal rows stay together too."""


@dataclass(frozen=True, slots=True)
class _Row:
    raw: RawRow
    id: str
    prompt: str
    """Digest of what is asked; the same as id where rows ask nothing."""
    text: str
    label: tuple[str, ...]
    group: str | None


def split_files(
    sources: tuple[str, ...],
    out: Path | None,
    parting: Parting,
    *,
    base: Path,
    overwrite: bool = False,
) -> FileSplitReport:
    """Part rows into ``train.jsonl`` and one file for each share, in the folder out.

    out: None for a dry run. Equal rows, rows with equal prompts, nearly equal rows and rows of one group
    stand on one side, whatever the shares. The outcome depends on seed and content, not on the order of
    the rows. Raises DataError for unreadable rows and where groups are too few, UsageError for a
    column that is not there and for files that stand in the way.
    """
    _check(parting)
    resolved = resolve(sources, base=base)
    problems: list[LuthierError] = []
    raw = list(chain.from_iterable(read_file(file, on_problem=problems.append) for file in resolved.files))
    if problems:
        raise several(problems)
    if not raw:
        raise DataError("the data set is empty: no row was read", file=resolved.files[0].shown)
    rows = _described(raw, parting)
    groups, together = _groups(rows, near=parting.near)
    strata, kept_by = _strata(rows, groups, parting.stratify)
    place = _assign(groups, strata, parting, rows)
    names = ["train", *parting.shares]
    paths: dict[str, str] = {}
    if out is not None:
        read_from = [file.path for file in resolved.files]
        paths = _write(rows, place, names, out, sources=read_from, overwrite=overwrite)
    report = FileSplitReport(
        files=tuple(file.shown for file in resolved.files),
        read=len(rows),
        parts=tuple(
            FilePart(
                name=name,
                rows=sum(one == name for one in place),
                groups=len({groups[index] for index, one in enumerate(place) if one == name}),
                labels=_labels(rows, place, name) if kept_by else {},
                path=paths.get(name),
            )
            for name in names
        ),
        seed=parting.seed,
        stratified_by=kept_by,
        grouped_by=parting.group,
        together=together,
        notes=resolved.notes,
    )
    if out is not None:
        (out / "split.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return report


def _check(parting: Parting) -> None:
    for name, share in parting.shares.items():
        if not 0 < share < 1:
            raise UsageError(
                f"the share of {name} is {share:g}", hint="shares lie between 0 and 1, like --test 0.1"
            )
    if sum(parting.shares.values()) >= 1:
        raise UsageError("nothing is left for train", hint="the shares must add up to less than 1")


def _described(raw: Sequence[RawRow], parting: Parting) -> list[_Row]:
    """Each row with what it is compared and counted by, in the shape of its file."""
    names = list(dict.fromkeys(chain.from_iterable(row.value for row in raw)))
    for column in (parting.stratify, parting.group):
        if column is not None and column.split(".")[0].split("[")[0] not in names:
            raise UsageError(
                f"the rows have no column {column!r}",
                hint=did_you_mean(column, names) or f"their columns are {', '.join(names)}",
            )
    rows: list[_Row] = []
    start = 0
    while start < len(raw):
        end = start
        while end < len(raw) and raw[end].file == raw[start].file:
            end += 1
        part = raw[start:end]
        shape = _shape(part[:_LOOKED_AT])
        rows += [_describe(row, shape, parting) for row in part]
        start = end
    return rows


def _shape(first: Sequence[RawRow]) -> Shape | Kind | None:
    try:
        return detect(first)
    except DataError:
        names = list(dict.fromkeys(chain.from_iterable(row.value for row in first)))
        return detect_kind(names, first[0].value)


def _describe(row: RawRow, shape: Shape | Kind | None, parting: Parting) -> _Row:
    try:
        content = content_digest(row.value)
    except UnicodeEncodeError:
        raise half_letter(row.file, row.line) from None
    prompt = content
    label: tuple[str, ...] = ()
    text = "\n".join(str(one) for one in row.value.values() if isinstance(one, str))
    if isinstance(shape, Shape):
        try:
            chat = to_chat(row, shape)
        except RowProblem:
            chat = None  # a split parts rows; `check` judges them
        if chat is not None:
            content, prompt = chat.id, prompt_key(chat)
            text = "\n".join(str(m["content"]) for m in chat.messages if m["role"] != "system")
            answers = [str(m["content"]) for m in chat.messages if m["role"] == "assistant"]
            label = tuple(answers[-1:])
    elif shape is not None:
        texts = [_text(row, column) for column in shape.texts]
        text = "\n".join(texts)
        # Pairs are asked for by their first text: a query never stands on both sides.
        prompt = content_digest([shape.name, texts[:1] if shape.label is None else texts])
        if shape.name in LABELLED and shape.label is not None:
            label = _label(row, shape.label)
    if parting.stratify is not None:
        label = _label(row, parting.stratify)
    return _Row(row, content, prompt, text, label, _group(row, parting.group))


def _text(row: RawRow, column: str) -> str:
    value = row.value.get(column)
    return "" if value is None else as_text(value)


def _label(row: RawRow, column: str) -> tuple[str, ...]:
    try:
        value = value_at(row.value, column)
    except Missing:
        return ("",)
    return tuple(sorted(map(str, value))) if isinstance(value, list) else (str(value),)


def _group(row: RawRow, column: str | None) -> str | None:
    """The group's name; rows without one stand alone."""
    if column is None:
        return None
    try:
        return as_text(value_at(row.value, column))
    except Missing:
        return None


def _groups(rows: Sequence[_Row], *, near: bool) -> tuple[list[int], dict[str, int]]:
    """For each row the number of its group, and why rows stand together."""
    parent = list(range(len(rows)))
    together: Counter[str] = Counter()

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(one: int, other: int, reason: str) -> None:
        first, second = sorted((find(one), find(other)))
        if first != second:
            parent[second] = first
            together[reason] += 1

    def by(reason: str, keys: Sequence[str | None]) -> None:
        first: dict[str, int] = {}
        for index, key in enumerate(keys):
            if key is not None:
                join(first.setdefault(key, index), index, reason)

    by(EQUAL, [row.id for row in rows])
    asked = Counter(row.prompt for row in rows)
    # A prompt of very many rows is an instruction; it binds nothing, or all would be one group.
    most = max(_FEW_ROWS, _INSTRUCTION * len(rows))
    by(PROMPT, [row.prompt if asked[row.prompt] <= most else None for row in rows])
    if near:
        for one, other in near_groups([row.text for row in rows]):
            join(one, other, NEAR)
    by(GROUP, [row.group for row in rows])
    return [find(index) for index in range(len(rows))], dict(together)


def _strata(
    rows: Sequence[_Row], groups: Sequence[int], column: str | None
) -> tuple[dict[int, str], str | None]:
    """Group -> stratum: the rarest label among its rows, so that rare labels reach every part."""
    counts = Counter(chain.from_iterable(row.label for row in rows))
    short = max(map(len, counts), default=0) <= _LABEL_LETTERS
    few = 1 < len(counts) <= min(_MOST_LABELS, len(rows) // 4)
    labelled = column is not None or (few and short)
    if not labelled:
        return dict.fromkeys(groups, ""), None
    strata: dict[int, str] = {}
    for row, group in zip(rows, groups, strict=True):
        mine = min(row.label, key=lambda name: (counts[name], name), default="")
        known = strata.get(group)
        if known is None or (counts[mine], mine) < (counts[known], known):
            strata[group] = mine
    return strata, column or "label"


def _assign(
    groups: Sequence[int], strata: dict[int, str], parting: Parting, rows: Sequence[_Row]
) -> list[str]:
    """The part of each row. In each stratum groups are drawn by hash until a part has its share."""
    sizes = Counter(groups)
    if len(sizes) < len(parting.shares) + 1:
        raise DataError(
            f"{len(rows)} rows in {len(sizes)} groups that stay together are too few for "
            f"{len(parting.shares) + 1} parts",
            file=rows[0].raw.file,
            hint="give more rows, ask for fewer parts, or group by another column",
        )
    names = _hashes(groups, rows, parting.seed)
    wanted = {name: share * len(rows) for name, share in parting.shares.items()}
    taken: Counter[str] = Counter()
    place: dict[int, str] = {}
    by_stratum: dict[str, list[int]] = {}
    for group in sizes:
        by_stratum.setdefault(strata[group], []).append(group)
    # Rare strata first; what one cannot give exactly, the next ones even out.
    owed: dict[str, float] = dict.fromkeys(parting.shares, 0.0)
    for stratum in sorted(by_stratum, key=lambda one: (sum(sizes[g] for g in by_stratum[one]), one)):
        members = sorted(by_stratum[stratum], key=lambda group: names[group])
        total = sum(sizes[group] for group in members)
        due = {name: share * total + owed[name] for name, share in parting.shares.items()}
        got: Counter[str] = Counter()
        for group in members:
            name = _neediest(due, got, sizes[group], wanted, taken)
            if name is not None:
                place[group] = name
                got[name] += sizes[group]
                taken[name] += sizes[group]
        owed = {name: due[name] - got[name] for name in due}
    _nobody_empty(parting, place, sizes, names)
    return [place.get(group, "train") for group in groups]


def _neediest(
    due: dict[str, float],
    got: Counter[str],
    size: int,
    wanted: dict[str, float],
    taken: Counter[str],
) -> str | None:
    """The part whose share of this stratum is furthest from full and takes the group without spilling."""
    fitting = [
        name
        for name in due
        if got[name] + size <= due[name] + 0.5 + 1e-9 and taken[name] + size <= wanted[name] + 0.5 + 1e-9
    ]
    return max(fitting, key=lambda name: (due[name] - got[name]) / wanted[name], default=None)


def _nobody_empty(
    parting: Parting, place: dict[int, str], sizes: Counter[int], names: dict[int, bytes]
) -> None:
    """A part that no group was small enough for gets the smallest one."""
    for name in parting.shares:
        if name not in place.values():
            free = [group for group in sizes if group not in place]
            place[min(free, key=lambda group: (sizes[group], names[group]))] = name


def _hashes(groups: Sequence[int], rows: Sequence[_Row], seed: int) -> dict[int, bytes]:
    """Group -> a hash by seed and content, so the file's order does not matter."""
    least: dict[int, str] = {}
    for group, row in zip(groups, rows, strict=True):
        least[group] = min(least.get(group, row.id), row.id)
    return {
        group: hashlib.sha256(f"luthier split {seed}/{identity}".encode()).digest()
        for group, identity in least.items()
    }


def _labels(rows: Sequence[_Row], place: Sequence[str], name: str) -> dict[str, int]:
    counts = Counter(
        chain.from_iterable(row.label for row, one in zip(rows, place, strict=True) if one == name)
    )
    return dict(counts.most_common())


def _write(
    rows: Sequence[_Row],
    place: Sequence[str],
    names: Sequence[str],
    out: Path,
    *,
    sources: Sequence[Path],
    overwrite: bool,
) -> dict[str, str]:
    """Write the parts, each in the order of the source. Nothing is written where a file is in the way."""
    targets = {name: out / f"{name}.jsonl" for name in names}
    for target in targets.values():
        if target.resolve() in {source.resolve() for source in sources}:
            raise UsageError("a part cannot replace its source", file=target, hint="name another folder")
        if target.exists() and not overwrite:
            raise UsageError(
                "this file is there already", file=target, hint="name another folder, or add --overwrite"
            )
    out.mkdir(parents=True, exist_ok=True)
    for name, target in targets.items():
        unfinished = target.with_name(target.name + ".part")
        with unfinished.open("w", encoding="utf-8") as stream:
            for row, one in zip(rows, place, strict=True):
                if one == name:
                    stream.write(json.dumps(row.raw.value, ensure_ascii=False, default=str) + "\n")
        unfinished.replace(target)
    return {name: str(target) for name, target in targets.items()}

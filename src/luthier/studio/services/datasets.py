"""Data sets of the studio: what was uploaded or named, how its rows are read, and what was found in them.

Each is a folder of ``uploads`` with the file itself (unless it stays where it lies), ``dataset.json``, and
what a child process found (`inspection`). Everything that needs a tokenizer happens in that child.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from luthier.catalog.purposes import spec_of
from luthier.data.sources import Source, source_of
from luthier.errors import DataError, FileProblem, LuthierError, UsageError
from luthier.files import file_sha256, write_text
from luthier.schema.base import Record
from luthier.schema.recipe import DataChoice, Purpose, TrainOn
from luthier.schema.rows import RowPurpose
from luthier.studio.problems import NotFound

if TYPE_CHECKING:
    from luthier.data.read import RawRow
    from luthier.studio.services.uploads import Received

PAGE = 50
"""Rows on one page of the preview."""
PAGES = 400
"""Pages that can be leafed through: rows further on are not read again for a look."""
LOOKED_AT = 50
CELL = 400
"""Letters of one value that the preview shows."""
_ID = re.compile(r"[0-9a-f]{16}")
PURPOSES: tuple[RowPurpose, ...] = (*get_args(Purpose), "preference")
FORMATS = ("messages", "sharegpt", "alpaca", "prompt-completion", "input-output", "text")


class Dataset(Record):
    """One data set and how its rows are read."""

    id: str
    """First 16 digits of the SHA-256 of the file, so that a file sent twice is one data set."""
    name: str
    """As its owner calls it; shown, never used as a path."""
    file: str
    """Absolute path of the rows."""
    own: bool
    """Whether the file was uploaded and goes with the data set; else it stays where it lies."""
    bytes: int
    sha256: str
    created: float
    """Seconds since the epoch."""
    purpose: RowPurpose = "chat"
    """What the rows are to train."""
    format: str | None = None
    """Shape of conversations; detected when not given."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column, path or template, where the detected one is not meant."""
    system: str | None = None
    label_delimiter: str | None = None
    train_on: TrainOn = "assistant"
    held_out: str | None = None
    """Another data set that is to be judged on: what stands in both is found."""

    @property
    def task(self) -> Purpose:
        """The recipe's task: a chat is tuned on preferences."""
        return "chat" if self.purpose == "preference" else self.purpose

    @property
    def typed(self) -> bool:
        """Whether the rows are labels, pairs or preferences rather than conversations or texts."""
        return self.purpose not in ("chat", "text-generation")

    def choice(self) -> DataChoice:
        """The data set as the part of a recipe that names it."""
        values = {"train": (self.file,), "format": self.format, "columns": self.columns,
                  "system": self.system, "label_delimiter": self.label_delimiter}  # fmt: skip
        if not self.typed:
            values["train_on"] = self.train_on
        return DataChoice.model_validate({key: value for key, value in values.items() if value})


# -- the shelf -----------------------------------------------------------------------------------


def shelf(folder: Path) -> list[Dataset]:
    """All data sets, newest first. One that cannot be read is left out."""
    found = []
    for path in folder.glob("*/dataset.json") if folder.is_dir() else ():
        try:
            found.append(Dataset.model_validate_json(path.read_bytes()))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda one: -one.created)


def dataset(folder: Path, name: str) -> Dataset:
    """One data set. Errors: NotFound, FileProblem where its record is broken."""
    path = folder / name / "dataset.json"
    if not _ID.fullmatch(name) or not path.is_file():
        raise NotFound(f"there is no data set {name[:40]!r}", hint="Datasets lists those that are there")
    try:
        return Dataset.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise FileProblem(
            f"cannot be read: {str(error).splitlines()[0]}", file=path, hint="remove it"
        ) from None


def take(folder: Path, received: Received) -> Dataset:
    """Make a data set of a file that has arrived whole; the one that is there, where it was sent before."""
    assert received.path is not None
    assert received.sha256 is not None
    place = folder / received.sha256[:16]
    if (place / "dataset.json").is_file():
        received.path.unlink()
        return dataset(folder, place.name)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"rows{received.suffix}"
    received.path.replace(path)
    made = Dataset(
        id=place.name, name=display_name(received.name), file=str(path.absolute()), own=True,
        bytes=received.bytes, sha256=received.sha256, created=time.time(),
    )  # fmt: skip
    return save(folder, _guessed(made))


def name_local(folder: Path, path: str, roots: Sequence[Path]) -> Dataset:
    """Make a data set of a file that stays where it lies, under one of the folders that are allowed.

    Errors: UsageError for a path outside of them (links are followed first), FileProblem.
    """
    try:
        given = Path(path).expanduser()
        if not given.is_absolute():
            given = next((root / given for root in roots if (root / given).exists()), given)
        real = given.resolve()
    except (OSError, RuntimeError, ValueError):  # no file system has such a name
        raise UsageError("that is not a path", hint="name one file with its suffix") from None
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise UsageError(
            "that path is not under a folder that the studio may read",
            hint=f"folders: {allowed}; start the studio with --data-root to allow another, or upload it",
        )
    if not real.is_file():
        raise FileProblem("there is no such file", file=real, hint="name one file with its suffix")
    source_of(real, real.name)
    digest = file_sha256(real)
    if (folder / digest[:16] / "dataset.json").is_file():
        return dataset(folder, digest[:16])
    made = Dataset(
        id=digest[:16], name=display_name(real.name), file=str(real), own=False, bytes=real.stat().st_size,
        sha256=digest, created=time.time(),
    )  # fmt: skip
    (folder / made.id).mkdir(parents=True, exist_ok=True)
    return save(folder, _guessed(made))


def save(folder: Path, made: Dataset) -> Dataset:
    """Write a data set's record."""
    write_text(folder / made.id / "dataset.json", made.model_dump_json(indent=1) + "\n")
    return made


def remove(folder: Path, name: str) -> int:
    """Remove a data set, and its file where it was uploaded. Returns the bytes freed."""
    known = dataset(folder, name)
    shutil.rmtree(folder / known.id)
    return known.bytes if known.own else 0


def display_name(name: str) -> str:
    """The last part of a name, without letters that steer terminals or hide."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:200] or "rows"


def used_by(known: Sequence[Dataset], runs: Path) -> dict[str, list[str]]:
    """Data set -> runs whose frozen recipe names its file."""
    found: dict[str, list[str]] = {one.id: [] for one in known}
    for path in sorted(runs.glob("*/recipe.yaml")) if runs.is_dir() else ():
        text = path.read_text(encoding="utf-8", errors="replace")
        for one in known:
            if one.file in text:
                found[one.id].append(path.parent.name)
    return found


# -- reading rows --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One row as its file holds it."""

    line: int
    cells: dict[str, str]
    """Column -> value, cut."""
    problem: str | None = None
    """Why it cannot be read, where it cannot."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the preview."""

    number: int
    rows: list[ShownRow]
    columns: list[str]
    more: bool


def source(known: Dataset) -> Source:
    """The file of a data set. Errors: FileProblem where it is gone."""
    path = Path(known.file)
    if not path.is_file():
        raise FileProblem("the file is gone", file=known.file, hint="upload it again, or remove the data set")
    return source_of(path, known.name)


def preview(known: Dataset, number: int = 1) -> Page:
    """Rows of one page (from 1) as the file holds them; broken ones stand among them with the reason."""
    from luthier.data.read import read_file

    if not 1 <= number <= PAGES:
        raise NotFound(
            f"the preview shows pages 1 to {PAGES}", hint="check the data to see all that is wrong"
        )
    problems: list[LuthierError] = []
    shown: list[ShownRow] = []
    columns: dict[str, None] = {}
    first, last = (number - 1) * PAGE, number * PAGE

    def both() -> Iterator[RawRow | LuthierError]:
        for row in read_file(source(known), on_problem=problems.append):
            while problems:
                yield problems.pop(0)
            yield row
        yield from problems

    place = 0
    for place, one in enumerate(both()):
        if place < first:
            continue
        if place >= last:
            break
        if isinstance(one, LuthierError):
            shown.append(ShownRow(one.line or 0, {}, one.message))
        else:
            columns.update(dict.fromkeys(one.value))
            shown.append(ShownRow(one.line, {name: cell(value) for name, value in one.value.items()}))
    return Page(number, shown, list(columns), more=place >= last and number < PAGES)


def cell(value: Any) -> str:
    """A value as the preview shows it: texts as they are, the rest as JSON, cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= CELL else text[:CELL] + " …"


def first_rows(known: Dataset, count: int = LOOKED_AT) -> list[RawRow]:
    """The first rows that can be read. Errors: DataError where there is none."""
    from luthier.data.read import read_file

    problems: list[LuthierError] = []
    rows = list(islice(read_file(source(known), on_problem=problems.append), count))
    if not rows:
        raise DataError(
            problems[0].message if problems else "the file holds no row",
            file=known.name,
            line=problems[0].line if problems else None,
            hint=problems[0].hint if problems else "upload a file with at least a few rows",
        )
    return rows


# -- mapping -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """One turn or text of a mapped row."""

    role: str
    text: str
    trained: bool = False


@dataclass(frozen=True, slots=True)
class MappedRow:
    """One row as training reads it, or why it cannot."""

    line: int
    turns: list[Said]
    problem: str | None = None
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Mapping:
    """How the rows of a data set are read."""

    purpose: RowPurpose
    read_as: str
    """Shape or kind that was told; empty where none fits."""
    columns: list[str]
    """What the file has."""
    roles: list[tuple[str, str, str]]
    """(role, column or template in use or nothing, what it is for)."""
    sample: list[MappedRow] = field(default_factory=list)
    problem: str | None = None
    fix: str | None = None


ROLE_WORDS = {
    "messages": "a list of turns",
    "system": "system prompt",
    "prompt": "what is asked",
    "input": "context beside the prompt",
    "completion": "the answer to learn",
    "text": "the text",
    "tools": "tools that may be called",
    "group": "rows that stay on one side of a split",
    "pair": "a second text, read with the first",
    "label": "the one label",
    "labels": "a list of labels, or several 0/1 columns",
    "query": "what is searched for",
    "positive": "what answers it",
    "negative": "what does not",
    "first": "one text of a pair",
    "second": "the other text",
    "score": "how much they agree, a number",
    "chosen": "the better answer",
    "rejected": "the worse answer",
}


def roles_of(purpose: RowPurpose) -> tuple[str, ...]:
    """The roles that columns can have for a purpose."""
    if purpose in ("chat", "text-generation"):
        from luthier.data.shapes import ROLES

        return ("text", "group") if purpose == "text-generation" else ROLES
    from luthier.data.layouts import roles_for

    return roles_for(purpose)


def mapping(known: Dataset, *, count: int = 3) -> Mapping:
    """How a data set's rows are read now, with the first ones mapped. Never raises for a wrong mapping."""
    rows = first_rows(known)
    names = list(dict.fromkeys(chain.from_iterable(row.value for row in rows)))
    problem: LuthierError | None = None
    told, columns, sample = "", dict(known.columns), list[MappedRow]()
    try:
        told, columns, sample = _mapped(known, rows, count)
    except LuthierError as error:
        problem = error
    roles = [(role, columns.get(role, ""), ROLE_WORDS[role]) for role in roles_of(known.purpose)]
    return Mapping(
        known.purpose, told, names, roles, sample,
        None if problem is None else problem.message, None if problem is None else problem.hint,
    )  # fmt: skip


def _mapped(known: Dataset, rows: list[RawRow], count: int) -> tuple[str, dict[str, str], list[MappedRow]]:
    """(what the rows are read as, role -> column, the first rows mapped)."""
    if known.typed:
        from luthier.data.layouts import tell
        from luthier.data.typed import row_maker

        layout = tell(known.purpose, rows, columns=known.columns, delimiter=known.label_delimiter)
        make = row_maker(layout, known.system)
        return layout.kind, dict(layout.columns), [_typed(row, make) for row in rows[:count]]
    from luthier.data.shapes import detect
    from luthier.data.vision import chat_or_view

    shape = detect(rows, format=known.format, columns=known.columns)

    def chat(row: RawRow) -> MappedRow:
        try:
            found, _ = chat_or_view(row, shape, system=known.system)
        except LuthierError as error:
            return MappedRow(row.line, [], error.message, error.hint)
        return MappedRow(row.line, _turns(found.messages, known.train_on))

    return shape.name, dict(shape.columns), [chat(row) for row in rows[:count]]


def _turns(messages: Sequence[dict[str, Any]], train_on: TrainOn) -> list[Said]:
    """Turns of a conversation, those marked that carry loss."""
    answers = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
    asked = max((number for number, one in enumerate(messages) if one["role"] == "user"), default=-1)
    trained = {
        "assistant": set(answers),
        "last": set(answers[-1:]),
        "completion": {number for number in answers if number > asked} or set(answers[-1:]),
        "all": set(range(len(messages))),
    }[train_on]
    return [
        Said(str(one["role"]), _words(one), number in trained or one["role"] == "text")
        for number, one in enumerate(messages)
    ]


def _words(message: dict[str, Any]) -> str:
    text = str(message.get("content") or "")
    if thought := message.get("reasoning_content"):
        text = f"<think>{thought}</think>\n{text}"
    if calls := message.get("tool_calls"):
        text += json.dumps([call.get("function") for call in calls], ensure_ascii=False)
    return text


def _typed(row: RawRow, make: Any) -> MappedRow:
    from luthier.schema.rows import LabelRow, PairRow, PreferenceRow, RankingRow

    try:
        made = make(row)
    except LuthierError as error:
        return MappedRow(row.line, [], error.message, error.hint)
    match made:
        case LabelRow():
            pair = [Said("second text", made.pair)] if made.pair is not None else []
            labels = ", ".join(made.labels) or "none"
            return MappedRow(row.line, [Said("text", made.text), *pair, Said("label", labels, trained=True)])
        case PairRow():
            score = Said("score", f"{made.score:g}", trained=True)
            return MappedRow(row.line, [Said("first", made.first), Said("second", made.second), score])
        case RankingRow():
            texts = [Said("positive", one, trained=True) for one in made.positives[:3]]
            against = [Said("negative", one) for one in made.negatives[:3]]
            return MappedRow(row.line, [Said("query", made.query), *texts, *against])
        case PreferenceRow():
            asked = [Said(str(one["role"]), _words(one)) for one in made.prompt]
            better = [Said("chosen", _words(one), trained=True) for one in made.chosen]
            worse = [Said("rejected", _words(one)) for one in made.rejected]
            return MappedRow(row.line, [*asked, *better, *worse])
    raise AssertionError(type(made).__name__)


def remap(known: Dataset, values: dict[str, Any]) -> Dataset:
    """A data set read another way.

    values: name, purpose, format, system, label_delimiter, train_on, held_out, and columns (role ->
    expression; empty ones are detected again). Errors: UsageError for a value that cannot be.
    """
    given = {key: value for key, value in values.items() if value is not None}
    purpose = given.get("purpose", known.purpose)
    if purpose not in PURPOSES:
        raise UsageError(f"{str(purpose)[:40]!r} is not a purpose", hint=f"one of {', '.join(PURPOSES)}")
    if "columns" in given:
        allowed = set(roles_of(purpose))
        given["columns"] = {
            role: text.strip() for role, text in given["columns"].items() if role in allowed and text.strip()
        }
    elif purpose != known.purpose:
        given["columns"] = {}
    if "name" in given:
        given["name"] = display_name(str(given["name"])) if str(given["name"]).strip() else known.name
    for key in ("format", "system", "label_delimiter", "held_out"):
        if key in given and not given[key]:
            given[key] = None
    if given.get("format") not in (None, *FORMATS):
        raise UsageError(
            f"{str(given['format'])[:40]!r} is not a format", hint=f"one of {', '.join(FORMATS)}"
        )
    if given.get("train_on", "assistant") not in get_args(TrainOn):
        raise UsageError("that is nothing to train on", hint=f"one of {', '.join(get_args(TrainOn))}")
    if given.get("held_out") is not None and not _ID.fullmatch(given["held_out"]):
        raise UsageError("the held-out rows are not a data set")
    return Dataset.model_validate({**known.model_dump(), **given})


_KINDS: dict[str, RowPurpose] = {
    "multi-class": "multi-class-classification",
    "labelled-pair": "multi-class-classification",
    "multi-label": "multi-label-classification",
    "preference": "preference",
    "triplet": "similarity",
    "scored-pair": "similarity",
    "pair": "similarity",
}


def _guessed(made: Dataset) -> Dataset:
    """The data set with the purpose that its columns speak of; a chat where nothing can be told."""
    from luthier.data.kinds import detect_kind
    from luthier.data.shapes import detect

    try:
        rows = first_rows(made)
    except LuthierError:
        return made
    try:
        shape = detect(rows)
        return made.model_copy(update={"purpose": "text-generation" if shape.name == "text" else "chat"})
    except LuthierError:
        names = list(dict.fromkeys(chain.from_iterable(row.value for row in rows)))
        kind = detect_kind(names, rows[0].value)
        purpose = _KINDS.get(kind.name) if kind is not None else None
        return made if purpose is None else made.model_copy(update={"purpose": purpose})


def rows_kind(known: Dataset) -> Literal["chats", "labels", "pairs", "preferences"]:
    """What one row is called."""
    return "preferences" if known.purpose == "preference" else spec_of(known.task).rows

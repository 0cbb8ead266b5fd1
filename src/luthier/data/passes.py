"""What is done with one piece of a large file, in a process of its own.

The first pass takes short digests of each row, which decide the splits; the second renders each row for
its split.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.chunks import Chunk, chunks, parse
from luthier.data.fit import Longest, fit, is_text, uncut_sizes
from luthier.data.infill import Infill
from luthier.data.messages import RowProblem
from luthier.data.pool import packed, restored
from luthier.data.read import RawRow, read_file
from luthier.data.render import prompt_of, render_row, render_rows
from luthier.data.shapes import MOST_SHOWN, Shape, detect, several, to_chat
from luthier.data.sources import Source
from luthier.data.splits import prompt_key, rank
from luthier.data.vision import demand_words_alone
from luthier.errors import LuthierError
from luthier.schema.protocols import ChatRow, TextTokenizer, TokenRow
from luthier.schema.recipe import DataChoice, TrainOn

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEFT_OUT = 255
"""Split number of a row that belongs to none."""
_LOOKED_AT = 50


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read the rows of some files; the same in every process."""

    shapes: dict[str, Shape]
    """File -> shape of its rows."""
    system: str | None
    seed: int
    plain: bool = False
    """Whether prompt and completion are joined as text: the model has no chat template."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """How to render them."""

    reading: Reading
    tokenizer: TextTokenizer
    train_on: TrainOn
    limit: int | None
    over_length: str
    tests: frozenset[int]
    """Split numbers whose rows stay conversations."""
    infill: Infill | None = None
    """Which texts are turned round to fill a gap."""

    def turned(self, row: ChatRow) -> ChatRow:
        """A training row as it is rendered."""
        return row if self.infill is None else self.infill(row, self.tokenizer)


@dataclass(slots=True)
class Scanned:
    """What the first pass keeps of the rows of one piece."""

    ids: NDArray[Any]
    """[rows] S12."""
    lines: NDArray[np.int64]
    prompts: NDArray[np.uint64]
    """First 8 bytes of the digest of each prompt."""
    by_prompt: NDArray[np.uint64]
    """Where each row stands in the queue for the held-out splits: by group or else prompt ..."""
    by_id: NDArray[np.uint64]
    """... or by group or else content."""
    problems: list[tuple[Any, ...]]
    broken: int


@dataclass(slots=True)
class Part:
    """Rendered rows of one split in one piece, side by side: arrays pass between processes at once."""

    ids: NDArray[np.int32]
    """Tokens of all rows, one after the other, and which are trained."""
    trained: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    """Tokens of each."""
    lines: NDArray[np.int64]
    digests: NDArray[Any]
    """[rows] S12."""
    rows: NDArray[np.int32]
    """Which row of the piece each stands for (a text may give several) ..."""
    piece: NDArray[np.int32]
    """... and which piece of that row it is."""
    uncut: NDArray[np.int32]
    """Tokens of all rows before any was cut or dropped (of a text: of its pieces), ..."""
    uncut_rows: NDArray[np.int32]
    """... and the row of the piece that each belongs to."""
    all_rows: NDArray[np.int32]
    """All rows by number within the piece, ..."""
    trained_uncut: NDArray[np.int32]
    """... and their trained tokens before any cut."""
    dropped_rows: NDArray[np.int32]
    dropped: Counter[str]
    truncated: int = 0
    over: int = 0
    longest: Longest | None = None


@dataclass(slots=True)
class Tests:
    """Test rows of one split in one piece."""

    chats: list[tuple[str, int, str, str | None]]
    """JSON, line, digest, group."""
    prompts: NDArray[np.int32]
    """Tokens of the prompt of each conversation, ..."""
    answers: NDArray[np.int32]
    """... and of its answer."""


@dataclass(slots=True)
class Rendered:
    """One piece after the second pass."""

    parts: dict[int, Part]
    tests: dict[int, Tests]
    problems: list[tuple[Any, ...]]
    broken: int


class Problems:
    """The first few broken rows and how many there are."""

    def __init__(self) -> None:
        self.first: list[LuthierError] = []
        self.count = 0

    def __call__(self, problem: LuthierError) -> None:
        if self.count < MOST_SHOWN:
            self.first.append(problem)
        self.count += 1

    def add(self, values: list[tuple[Any, ...]], count: int) -> None:
        """Problems that a process has packed."""
        room = MOST_SHOWN - len(self.first)
        self.first += [restored(one) for one in values[: max(0, room)]]
        self.count += count

    def demand_none(self) -> None:
        """Raise one DataError for all."""
        if self.count:
            raise several(self.first, self.count)


def shapes_of(files: tuple[Source, ...], data: DataChoice) -> dict[str, Shape]:
    """The shape of each file that has rows, by its first ones. Raises DataError where it cannot be told."""
    found: dict[str, Shape] = {}
    for file in files:
        first = list(islice(read_file(file, on_problem=lambda _: None), _LOOKED_AT))
        if first:
            demand_words_alone(first, data.columns)
            found[file.shown] = detect(first, format=data.format, columns=data.columns)
    return found


def pieces_of(files: tuple[Source, ...], report: Callable[[LuthierError], None]) -> Iterator[Chunk]:
    """All files in pieces, in order."""
    for file in files:
        yield from chunks(file, report)


def scan_job(reading: Reading) -> Callable[[Chunk], Scanned]:
    """First pass over one piece."""

    def scan(chunk: Chunk) -> Scanned:
        problems = Problems()
        ids: list[bytes] = []
        prompts: list[int] = []
        by_prompt: list[int] = []
        by_id: list[int] = []
        lines: list[int] = []
        for row in chats_of(chunk, reading, problems):
            key = prompt_key(row)
            group = None if row.group is None else f"group {row.group}"
            ids.append(bytes.fromhex(row.id))
            lines.append(row.line)
            prompts.append(int(key[:16], 16))
            by_prompt.append(rank(group or key, seed=reading.seed))
            by_id.append(rank(group or row.id, seed=reading.seed))
        asked, first, second = (np.array(part, dtype=np.uint64) for part in (prompts, by_prompt, by_id))
        told = [packed(one) for one in problems.first]
        return Scanned(
            np.frombuffer(b"".join(ids), dtype="S12"),
            np.array(lines, dtype=np.int64),
            asked,
            first,
            second,
            told,
            problems.count,
        )

    return scan


def chats_of(chunk: Chunk, reading: Reading, problems: Callable[[LuthierError], None]) -> Iterator[ChatRow]:
    """Conversations of a piece."""
    for row in parse(chunk, problems):
        try:
            yield to_chat(row, reading.shapes[row.file], system=reading.system)
        except RowProblem as problem:
            problems(problem)


def render_job(how: Rendering) -> Callable[[tuple[Chunk, bytes]], Rendered]:
    """Second pass over one piece, with the split of each of its rows."""

    def render(piece: tuple[Chunk, bytes]) -> Rendered:
        chunk, places = piece
        problems = Problems()
        found = Rendered({}, {}, [], 0)
        rows: dict[int, list[tuple[int, ChatRow]]] = {}
        for number, row in enumerate(chats_of(chunk, how.reading, problems)):
            if places[number] != LEFT_OUT:
                ready = plain_chat(row) if how.reading.plain else row
                rows.setdefault(places[number], []).append((number, ready))
        for place, chosen in rows.items():
            if place in how.tests:
                found.tests[place] = _test_rows([row for _, row in chosen], how.tokenizer, problems)
            elif part := _train_rows(chosen, how, problems):
                found.parts[place] = part
        found.problems, found.broken = [packed(one) for one in problems.first], problems.count
        return found

    return render


def _train_rows(
    chosen: list[tuple[int, ChatRow]], how: Rendering, problems: Callable[[LuthierError], None]
) -> Part | None:
    """The rows rendered and cut; None where some cannot be."""
    broken: list[LuthierError] = []
    tokens = list(
        render_rows(
            [how.turned(row) for _, row in chosen], how.tokenizer, how.train_on, on_problem=broken.append
        )
    )
    broken += [untrained(row) for row in tokens if not row.trained.any()]
    if broken:
        for problem in broken:
            problems(problem)
        return None
    kept: list[TokenRow] = []
    places: list[tuple[int, int]] = []
    uncut: list[tuple[int, int]] = []
    dropped_rows: list[int] = []
    dropped: Counter[str] = Counter()
    truncated = over = 0
    longest: Longest | None = None
    for (number, chat), row in zip(chosen, tokens, strict=True):
        uncut += [(size, number) for size in uncut_sizes(chat, row, how.limit)]
        found = fit(chat, row, how.limit, how.over_length)
        if how.limit is not None and len(row.ids) > how.limit and not is_text(chat):
            over += 1
            if longest is None or len(row.ids) > longest.tokens:
                longest = Longest(len(row.ids), row.file, row.line)
        if found.dropped is not None:
            dropped[found.dropped] += 1
            dropped_rows.append(number)
        truncated += found.truncated
        kept += found.pieces
        places += [(number, piece) for piece in range(len(found.pieces))]
    own, pieces = np.array(places, dtype=np.int32).reshape(-1, 2).T.copy()
    sizes, of_sizes = np.array(uncut, dtype=np.int32).reshape(-1, 2).T.copy()
    return Part(
        ids=np.concatenate([np.zeros(0, np.int32), *(row.ids for row in kept)]),
        trained=np.concatenate([np.zeros(0, np.bool_), *(row.trained for row in kept)]),
        sizes=np.array([len(row.ids) for row in kept], dtype=np.int32),
        lines=np.array([row.line for row in kept], dtype=np.int64),
        digests=np.frombuffer(bytes.fromhex("".join(row.id for row in kept)), dtype="S12"),
        rows=own,
        piece=pieces,
        uncut=sizes,
        uncut_rows=of_sizes,
        all_rows=np.array([number for number, _ in chosen], dtype=np.int32),
        trained_uncut=np.array([np.count_nonzero(row.trained) for row in tokens], dtype=np.int32),
        dropped_rows=np.array(dropped_rows, dtype=np.int32),
        dropped=dropped,
        truncated=truncated,
        over=over,
        longest=longest,
    )


def _test_rows(
    rows: list[ChatRow], tokenizer: TextTokenizer, problems: Callable[[LuthierError], None]
) -> Tests:
    asked = [
        replace(row, messages=row.messages[: len(prompt_of(row)) + 1]) for row in rows if not is_text(row)
    ]
    tokens = list(render_rows(asked, tokenizer, "last", on_problem=problems))
    answers = np.array([np.count_nonzero(row.trained) for row in tokens], dtype=np.int32)
    return Tests(
        chats=[
            (json.dumps([row.messages, row.tools], ensure_ascii=False), row.line, row.id, row.group)
            for row in rows
        ],
        prompts=np.array([len(row.ids) for row in tokens], dtype=np.int32) - answers,
        answers=answers,
    )


def joins_texts(task: str, tokenizer: TextTokenizer) -> bool:
    """Whether prompt and answer are joined as text: plain text is trained, and there is no chat template."""
    return task == "text-generation" and not getattr(tokenizer, "has_chat_template", True)


def plain_chat(row: ChatRow) -> ChatRow:
    """A question and its answer for a model that knows no chat: the text of both, the answer trained."""
    if row.messages[0]["role"] == "text" or [m["role"] for m in row.messages] != ["user", "assistant"]:
        return row
    question, answer = row.messages
    return replace(row, messages=[{**question, "role": "text", "weight": 0}, answer])


def untrained(row: TokenRow) -> RowProblem:
    """The row would teach nothing."""
    return RowProblem(
        "nothing-trained",
        "no token of this row would be trained",
        file=row.file,
        line=row.line,
        hint="give an assistant turn a weight other than 0, or remove the row",
    )


def row_again(how: Rendering) -> Callable[[RawRow, int], TokenRow]:
    """A rendered row out of its raw row, as the second pass made it."""

    def make(raw: RawRow, piece: int) -> TokenRow:
        chat = _chat_again(raw, how.reading)
        row = render_row(how.turned(chat), how.tokenizer, how.train_on)
        return fit(chat, row, how.limit, how.over_length).pieces[piece]

    return make


def chat_again(how: Rendering) -> Callable[[RawRow, int], ChatRow]:
    """A conversation out of its raw row."""

    def make(raw: RawRow, _piece: int) -> ChatRow:
        return _chat_again(raw, how.reading)

    return make


def _chat_again(row: RawRow, reading: Reading) -> ChatRow:
    chat = to_chat(row, reading.shapes[row.file], system=reading.system)
    return plain_chat(chat) if reading.plain else chat

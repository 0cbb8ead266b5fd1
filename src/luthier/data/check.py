"""Everything that can be found wrong with data before a model is loaded, each with where and what to do.

Rows are looked at one by one (``looking``), in several processes where files are large; here is what only
all rows together show, kept in a few bytes a row.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from luthier.data.beir import Beir, beir_of, read_beir
from luthier.data.chunks import chunks
from luthier.data.findings import Findings
from luthier.data.kinds import Kind, detect_kind
from luthier.data.layouts import Layout, tell
from luthier.data.looking import Facts, How, Looked, Piece, facts_of, kind_facts, words_of
from luthier.data.messages import RowProblem
from luthier.data.near import NearIndex
from luthier.data.passes import joins_texts
from luthier.data.pool import ordered, processes, restored
from luthier.data.read import RawRow, read_file
from luthier.data.rows import ranks, rows_for
from luthier.data.samples import Samples
from luthier.data.seen import Seen
from luthier.data.shapes import Shape, detect
from luthier.data.sources import Resolved, resolve
from luthier.data.splits import prompt_key
from luthier.data.stats import lengths
from luthier.data.vision import chat_or_view
from luthier.errors import DataError, LuthierError, RecipeError, did_you_mean
from luthier.schema.data import CheckReport
from luthier.schema.protocols import TextTokenizer
from luthier.schema.recipe import DataChoice, TrainOn
from luthier.schema.rows import RowPurpose

NEAR_ROWS = 50_000
"""Rows that are compared for near duplicates; the message says so where there are more."""
_SEVERAL = 32 << 20
"""Bytes of data from which on several processes look at them."""
_LOOKED_AT = 50
_RARE_LABEL = 8
_MOST_LABELS = 2_000


OnRow = Callable[[RawRow, str | None], None]
"""Told of a usable row, and why a cleaned file leaves it out; None where it belongs there."""


@dataclass(slots=True)
class _Held:
    """What is known of the held-out rows."""

    ids: set[int] = field(default_factory=set)
    prompts: set[int] = field(default_factory=set)
    near: NearIndex = field(default_factory=NearIndex)
    labels: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Label -> where it stands."""

    def add(self, facts: Facts, text: str) -> None:
        self.ids.add(facts.id)
        if facts.key is not None:
            self.prompts.add(facts.key)
        if facts.classes:
            for label in facts.labels or ():
                self.labels.setdefault(label, []).append((facts.file, facts.line))
        self.near.add(text, len(self.ids))


@dataclass(slots=True)
class _State:
    """What is remembered from row to row."""

    findings: Findings
    held: _Held
    files: dict[str, int] = field(default_factory=dict)
    """File -> its number."""
    rows: Seen = field(default_factory=Seen)
    """Content -> number of its first row."""
    prompts: Seen = field(default_factory=Seen)
    """What is asked -> number of its first row."""
    places: array[int] = field(default_factory=lambda: array("Q"))
    """Number of a row -> its file and line."""
    marks: array[int] = field(default_factory=lambda: array("Q"))
    """Number of a row -> its content, or the number of its labels."""
    names: dict[str, int] = field(default_factory=dict)
    """Labels of a row -> their number."""
    near: NearIndex = field(default_factory=NearIndex)
    near_places: list[str] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    short_answers: Counter[str] = field(default_factory=Counter)
    sizes: array[int] = field(default_factory=lambda: array("L"))
    dropped: Counter[str] = field(default_factory=Counter)
    told: Callable[[LuthierError], None] | None = None
    kept: int = 0
    size: int = 0

    def place(self, number: int) -> str:
        """``file:line`` of a row."""
        value = self.places[number]
        return f"{list(self.files)[value >> 40]}:{value & ((1 << 40) - 1)}"

    def broken(self, problem: LuthierError) -> None:
        """A row that cannot be used."""
        code = getattr(problem, "code", "broken-row")
        self.dropped[code] += 1
        self.findings.problem(code, problem)
        if self.told is not None:
            self.told(problem)


def check(
    sources: tuple[str, ...],
    *,
    base: Path,
    held_out: tuple[str, ...] = (),
    tokenizer: TextTokenizer | None = None,
    sequence_length: int | None = None,
    train_on: TrainOn = "assistant",
    format: str | None = None,  # noqa: A002 - the recipe's own word
    columns: dict[str, str] | None = None,
    system: str | None = None,
    purpose: RowPurpose = "chat",
    label_delimiter: str | None = None,
    deep: bool = True,
    images: bool | None = None,
    refuse_long: bool = False,
    on_row: OnRow | None = None,
    on_problem: Callable[[LuthierError], None] | None = None,
) -> CheckReport:
    """Check files, folders and globs, relative to base.

    held_out: rows to be judged on, looked for among the training rows. tokenizer: counts tokens and
    tries the chat template. purpose: what the rows are to train; other than for a chat, ``columns`` has
    that task's roles. deep: whether texts are looked into, or only the structure. images: whether
    conversations may hold images (None: where no tokenizer is named; a model of text cannot see them).
    refuse_long: whether a training would stop at rows over the sequence length. on_row is told of every
    row that can be used, and whether it belongs into a cleaned file: it is no copy of an earlier row and
    does not stand in the held-out rows; on_problem of every row that cannot be used.
    Raises FileProblem for files that cannot be opened, RecipeError for a wrong column role; all that
    is wrong with rows is a finding. ``read = kept + sum(dropped)``.
    """
    started = time.monotonic()
    findings = Findings()
    beir = [found for one in sources if ranks(purpose) and (found := beir_of(one, base)) is not None]
    left = tuple(one for one in sources if not (ranks(purpose) and beir_of(one, base)))
    resolved = resolve(left, base=base) if left else Resolved(())
    for note in resolved.notes:
        findings.add("files", detail=note)
    typed = purpose not in ("chat", "text-generation")
    choice = DataChoice(train=sources, columns=columns or {}, system=system, label_delimiter=label_delimiter)
    held = (
        _held_typed(purpose, choice, held_out, base)
        if typed
        else _held_out(held_out, base, system, format, columns)
    )
    state = _State(findings, held, {file.shown: number for number, file in enumerate(resolved.files)})
    state.told = on_problem
    limit = sequence_length or getattr(tokenizer, "max_length", None)

    def told(first: Sequence[RawRow]) -> Shape | Kind | Layout | None:
        if typed:
            return _tell_typed(purpose, first, columns, label_delimiter, findings)
        return _tell(first, format, columns, findings)

    shapes = _shapes(resolved, told)
    how = How(
        shapes,
        system,
        deep,
        tokenizer,
        limit,
        train_on,
        plain=tokenizer is not None and joins_texts(purpose, tokenizer),
        keep_rows=on_row is not None,
        base=str(base),
        images=tokenizer is None if images is None else images,
        refuse_long=refuse_long,
    )
    large = sum(file.path.stat().st_size for file in resolved.files) > _SEVERAL
    count = processes() if large and on_row is None else 1
    for looked in ordered("luthier.data.looking:look_job", how, _pieces(resolved, state, deep), count=count):
        _merge(looked, state, on_row)
    kinds = list(dict.fromkeys(_kind_of(shape) for shape in shapes.values()))
    names = [file.shown for file in resolved.files]
    for folder in beir:
        kinds.append("beir")
        names += _take_beir(folder, state)
    if not kinds:
        findings.add("empty", place=(names[0], None))
    if len(kinds) > 1:
        findings.add("mixed-shapes", detail=", ".join(kinds))
    _conclude(state)
    findings.give_samples(Samples(resolved.files))
    bins: Counter[int] = Counter(1 << max(3, (size - 1).bit_length()) for size in state.sizes)
    return CheckReport(
        files=tuple(names),
        format=", ".join(kinds) or "unknown",
        read=state.kept + sum(state.dropped.values()),
        kept=state.kept,
        dropped=dict(state.dropped),
        findings=findings.all(),
        tokens=lengths(state.sizes) if state.sizes else None,
        histogram=tuple(sorted(bins.items())),
        seconds=round(time.monotonic() - started, 3),
        megabytes=round(state.size / 1e6, 3),
    )


def _shapes(
    resolved: Resolved, told: Callable[[Sequence[RawRow]], Shape | Kind | Layout | None]
) -> dict[str, Shape | Kind | Layout | None]:
    """What the rows of each file are, by the first ones that can be read."""
    found: dict[str, Shape | Kind | Layout | None] = {}
    for file in resolved.files:
        first = list(islice(read_file(file, on_problem=_skip), _LOOKED_AT))
        if first:
            found[file.shown] = told(first)
    return found


def _kind_of(shape: Shape | Kind | Layout | None) -> str:
    if shape is None:
        return "unknown"
    return shape.kind if isinstance(shape, Layout) else shape.name


def _pieces(resolved: Resolved, state: _State, deep: bool) -> Iterator[Piece]:
    number = 0
    for file in resolved.files:
        for chunk in chunks(file, state.broken):
            near = deep and (len(state.near_places) < NEAR_ROWS or bool(state.held.ids))
            yield Piece(chunk, near, number)
            number += 1


def _tell(
    first: Sequence[RawRow], form: str | None, columns: dict[str, str] | None, findings: Findings
) -> Shape | Kind | None:
    try:
        return detect(first, format=form, columns=columns)
    except DataError as problem:
        names = list(dict.fromkeys(chain.from_iterable(row.value for row in first)))
        kind = None if form or columns else detect_kind(names, first[0].value)
        if kind is None:
            findings.problem("unknown-shape", problem)
        return kind


def _tell_typed(
    purpose: RowPurpose,
    first: Sequence[RawRow],
    columns: dict[str, str] | None,
    delimiter: str | None,
    findings: Findings,
) -> Layout | None:
    try:
        return tell(purpose, first, columns=columns, delimiter=delimiter)
    except DataError as problem:
        findings.problem("unknown-shape", problem)
        return None


def _held_out(
    sources: tuple[str, ...], base: Path, system: str | None, form: str | None, columns: dict[str, str] | None
) -> _Held:
    """Digests of held-out rows, read in their own shape."""
    held = _Held()
    if not sources:
        return held
    for file in resolve(sources, base=base).files:
        rows = read_file(file, on_problem=_skip)
        first = list(islice(rows, _LOOKED_AT))
        if not first:
            continue
        shape = _shape_or_kind(first, form, columns)
        for row in chain(first, rows):
            try:
                if isinstance(shape, Kind):
                    facts, texts = kind_facts(row, shape)
                    held.add(facts, "\n".join(texts))
                    continue
                chat, _ = chat_or_view(row, shape, system=system)
            except RowProblem:
                continue
            held.ids.add(int(chat.id[:16], 16))
            held.prompts.add(int(prompt_key(chat)[:16], 16))
            held.near.add(words_of(chat), len(held.ids))
    return held


def _shape_or_kind(first: Sequence[RawRow], form: str | None, columns: dict[str, str] | None) -> Shape | Kind:
    """What held-out rows are: as the training rows, or in a shape of their own. Raises DataError."""
    try:
        return detect(first, format=form, columns=columns)
    except (DataError, RecipeError):
        pass
    try:
        return detect(first)
    except DataError:
        names = list(dict.fromkeys(chain.from_iterable(row.value for row in first)))
        kind = detect_kind(names, first[0].value)
        if kind is None:
            raise
        return kind


def _held_typed(purpose: RowPurpose, choice: DataChoice, sources: tuple[str, ...], base: Path) -> _Held:
    held = _Held()
    if not sources:
        return held
    rows = rows_for(purpose, choice, sources, base=base, split="test", on_problem=_skip).rows
    for row in rows:
        facts, texts = facts_of(row)
        held.add(facts, "\n".join(texts))
    return held


def _take_beir(folder: Beir, state: _State) -> tuple[str, ...]:
    """A BEIR folder's training judgements. The files that were read."""
    part = read_beir(folder, "train", state.broken)
    for note in part.notes:
        state.findings.add("files", detail=note)
    for row in part.rows:
        facts, texts = facts_of(row)
        facts.size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        _take(facts, state)
    state.kept += part.kept - len(part.rows)  # what is read and kept are judgements, several a query
    return part.files


def _skip(problem: LuthierError) -> None:
    """Broken held-out rows are found when the held-out file itself is checked."""


def _merge(looked: Looked, state: _State, on_row: OnRow | None) -> None:
    for one in looked.rows:
        if isinstance(one, tuple):
            state.broken(restored(one))
            continue
        reason = _take(one, state)
        if on_row is not None and one.row is not None:
            on_row(one.row, reason)


def _take(row: Facts, state: _State) -> str | None:
    """What a row shows beside the rows before it. The reason why a cleaned file leaves it out, or None."""
    findings, place = state.findings, (row.file, row.line)
    state.kept += 1
    state.size += row.size
    if row.language is not None:
        state.languages[row.language] += row.weight
    if row.short is not None and len(state.short_answers) <= _MOST_LABELS:
        state.short_answers[row.short] += 1
    if row.tokens is not None:
        state.sizes.append(row.tokens)
    for code, detail, sample in row.found:
        if code.startswith("!"):  # what a template says of a row brings its own words
            said = DataError(detail, file=row.file, line=row.line, hint=sample)
            findings.problem(code[1:], said)
        else:
            findings.add(code, detail=detail, place=place, sample=sample)
    number = len(state.places)
    file = state.files.setdefault(row.file, len(state.files))
    state.places.append(file << 40 | row.line)
    if row.labels is not None:
        return _take_labels(row, state, number)
    state.marks.append(row.id)
    first = state.rows.first(row.id, number)
    if first != number:
        same = f"the same as {state.place(first)}"
        findings.add("duplicate", place=place, sample=same)
        return same
    if row.key is not None:
        other = state.prompts.first(row.key, number)
        if state.marks[other] != row.id:
            findings.add("same-prompt", place=place, sample=f"the same prompt as {state.place(other)}")
    return _beside_others(row, state)


def _beside_others(row: Facts, state: _State) -> str | None:
    """Leakage, and near duplicates. The reason why a cleaned file leaves the row out, or None."""
    place = (row.file, row.line)
    leaked = _leaks(row, state)
    if leaked is not None:
        return leaked
    if len(state.near_places) < NEAR_ROWS:
        near = state.near.add_signature(row.signature, len(state.near_places))
        state.near_places.append(f"{row.file}:{row.line}")
        if near is not None:
            state.findings.add("near-duplicate", place=place, sample=f"near {state.near_places[near]}")
    return None


def _take_labels(row: Facts, state: _State, number: int) -> str | None:
    """A row with labels: equal texts may have others elsewhere."""
    place = (row.file, row.line)
    assert row.labels is not None
    if row.classes and len(state.labels) <= 50 * _MOST_LABELS:
        state.labels.update(row.labels)
    said = " ".join(row.labels) if len(row.labels) != 1 else row.labels[0]
    label = state.names.setdefault(said, len(state.names))
    state.marks.append(label)
    key = row.id if row.key is None else row.key
    first = state.prompts.first(key, number)
    if first != number:
        if state.marks[first] == label:
            same = f"the same as {state.place(first)}"
            state.findings.add("duplicate", place=place, sample=same)
            return same
        other = next(name for name, index in state.names.items() if index == state.marks[first])
        both = f"{said} here, {other} at {state.place(first)}"
        state.findings.add("conflicting-labels", place=place, sample=both)
        return f"the label is {both}"
    return _beside_others(row, state)


def _leaks(row: Facts, state: _State) -> str | None:
    held, place = state.held, (row.file, row.line)
    if row.id in held.ids:
        code, reason = "leakage", "stands in the held-out rows"
    elif row.key is not None and row.key in held.prompts:
        code, reason = "prompt-leakage", "its prompt stands in the held-out rows"
    elif held.ids and held.near.find_signature(row.signature) is not None:
        code, reason = "near-leakage", "is nearly the same as a held-out row"
    else:
        return None
    state.findings.add(code, place=place)
    return reason


def _conclude(state: _State) -> None:
    """What only all rows together show."""
    findings, total = state.findings, state.kept
    if len(state.near_places) >= NEAR_ROWS:
        findings.add("near-duplicate-limit", detail=f"only in the first {NEAR_ROWS:,}")
    known = sorted(count for name, count in state.languages.items() if name not in ("unknown", "latin"))
    looked_at = sum(state.languages.values())
    if len(known) > 1 and looked_at >= 20 and known[-2] >= 0.02 * looked_at:
        mix = ", ".join(f"{name} {count / looked_at:.0%}" for name, count in state.languages.most_common(6))
        findings.add("languages", detail=f"{mix} (guessed by script and small words)")
    labels, short = state.labels, state.short_answers
    if not labels and total >= 100 and 1 < len(short) <= total // 10 and sum(short.values()) > 0.9 * total:
        labels = short
    _balance(labels, findings)
    if state.labels:
        _unknown(state)


def _unknown(state: _State) -> None:
    """Labels of held-out rows that were never seen in training."""
    for label, places in state.held.labels.items():
        if label in state.labels:
            continue
        near = did_you_mean(label, state.labels, most=1)
        sample = f"{label!r}: {near}" if near else repr(label)
        for place in places:
            state.findings.add("unknown-label", place=place, sample=sample)


def _balance(labels: Counter[str], findings: Findings) -> None:
    total = sum(labels.values())
    if total < 2:
        return
    ranked = labels.most_common()
    if len(ranked) == 1:
        findings.add("one-label", detail=ranked[0][0])
        return
    parts = ranked if len(ranked) <= 6 else [*ranked[:3], ("...", len(ranked) - 6), *ranked[-3:]]
    shown = ", ".join(f"{name} {count}" for name, count in parts)
    findings.add("labels", detail=f"{len(ranked)} different ones: {shown}")
    rare = [name for name, count in ranked if count < _RARE_LABEL]
    if rare:
        count = sum(labels[name] for name in rare)
        detail = f"{len(rare)} have fewer than {_RARE_LABEL}"
        findings.add("rare-labels", detail=detail, count=count, sample=", ".join(rare))
    top, most = ranked[0]
    even = total / len(ranked)
    if (most > 0.3 * total and most > 3 * even) or (most > 0.75 * total):
        findings.add("label-balance", detail=f"{top!r} makes up {most / total:.0%}")

"""Everything that can be found wrong with data before a model is loaded, each with where and what to do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from pathlib import Path

from luthier.data.columns import as_text
from luthier.data.findings import Findings
from luthier.data.kinds import LABELLED, Kind, detect_kind
from luthier.data.languages import guess_language
from luthier.data.messages import RowProblem, content_digest, half_letter
from luthier.data.near import NearIndex
from luthier.data.patterns import control_characters, markers, mojibake, personal_data, secrets
from luthier.data.read import RawRow, read_file
from luthier.data.render import prompt_ids, prompt_of, render_rows
from luthier.data.shapes import Shape, by_file, detect, to_chat
from luthier.data.sources import resolve
from luthier.data.splits import prompt_key
from luthier.data.stats import lengths
from luthier.errors import DataError, LuthierError
from luthier.schema.data import CheckReport, Lengths
from luthier.schema.protocols import ChatRow, TextTokenizer
from luthier.schema.recipe import TrainOn

NEAR_ROWS = 50_000
"""Rows that are compared for near duplicates; the message says so where there are more."""
_LOOKED_AT = 50
_BOUNDARIES = 50
"""Rows whose prompt is rendered alone and compared with the row's beginning."""
_ALL_LANGUAGES, _SOME_LANGUAGES = 2_000, 20
"""The language of the first rows is guessed, then of every twentieth."""
_RARE_LABEL = 8
_LABEL_LETTERS = 60
_MOST_LABELS = 2_000
_REFUSALS = ("as an ai language model", "as a large language model", "i'm sorry, but as an ai")


@dataclass(slots=True)
class _Held:
    """What is known of the held-out rows."""

    ids: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    near: NearIndex = field(default_factory=NearIndex)


@dataclass(slots=True)
class _State:
    """What is remembered from row to row."""

    findings: Findings
    held: _Held
    places: dict[str, str] = field(default_factory=dict)
    """Content digest -> where it first stood."""
    answers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Prompt -> digest of the row that first had it, and where."""
    near: NearIndex = field(default_factory=NearIndex)
    near_places: list[str] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    short_answers: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    size: int = 0


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
    on_row: Callable[[RawRow, bool], None] | None = None,
) -> CheckReport:
    """Check files, folders and globs, relative to base.

    held_out: rows to be judged on, looked for among the training rows. tokenizer: counts tokens and
    tries the chat template. on_row is told of every row that can be used, and whether it belongs into
    a cleaned file: it is no copy of an earlier row and does not stand in the held-out rows.
    Raises FileProblem for files that cannot be opened, RecipeError for a wrong column role; all that
    is wrong with rows is a finding. ``read = kept + sum(dropped)``.
    """
    started = time.monotonic()
    findings = Findings()
    resolved = resolve(sources, base=base)
    for note in resolved.notes:
        findings.add("files", detail=note)
    dropped: Counter[str] = Counter()

    def broken(problem: LuthierError) -> None:
        code = getattr(problem, "code", "broken-row")
        dropped[code] += 1
        findings.problem(code, problem)

    state = _State(findings, _held_out(held_out, base, system))
    chats: list[ChatRow] = []
    kinds: list[str] = []
    for file in resolved.files:
        raw = read_file(file, on_problem=broken)
        first = list(islice(raw, _LOOKED_AT))
        if not first:
            continue
        shape = _tell(first, format, columns, findings)
        kinds.append(shape.name if shape else "unknown")
        if shape is None:
            dropped["unknown-shape"] += len(first) + sum(1 for _ in raw)
        elif isinstance(shape, Kind):
            for row in chain(first, raw):
                fit = _look_at_kind(row, shape, state, broken)
                if fit is not None and on_row is not None:
                    on_row(row, fit)
        else:
            for row in chain(first, raw):
                try:
                    chat = to_chat(row, shape, system=system)
                except RowProblem as problem:
                    broken(problem)
                    continue
                fit = _look(chat, state)
                if on_row is not None:
                    on_row(row, fit)
                if tokenizer is not None:
                    chats.append(chat)
    kinds = list(dict.fromkeys(kinds))
    if not kinds:
        findings.add("empty", place=(resolved.files[0].shown, None))
    if len(kinds) > 1:
        findings.add("mixed-shapes", detail=", ".join(kinds))
    _conclude(state)
    tokens: Lengths | None = None
    histogram: tuple[tuple[int, int], ...] = ()
    if tokenizer is not None and chats:
        tokens, histogram = _measure(chats, tokenizer, sequence_length, train_on, findings)
    return CheckReport(
        files=tuple(file.shown for file in resolved.files),
        format=", ".join(kinds) or "unknown",
        read=state.kept + sum(dropped.values()),
        kept=state.kept,
        dropped=dict(dropped),
        findings=findings.all(),
        tokens=tokens,
        histogram=histogram,
        seconds=round(time.monotonic() - started, 3),
        megabytes=round(state.size / 1e6, 3),
    )


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


def _held_out(sources: tuple[str, ...], base: Path, system: str | None) -> _Held:
    """Digests of held-out rows, read in their own shape."""
    held = _Held()
    if not sources:
        return held
    resolved = resolve(sources, base=base)
    rows = chain.from_iterable(read_file(file, on_problem=_skip) for file in resolved.files)
    for number, (shape, row) in enumerate(by_file(rows)):
        try:
            chat = to_chat(row, shape, system=system)
        except RowProblem:
            continue
        held.ids.add(chat.id)
        held.prompts.add(prompt_key(chat))
        held.near.add(_words_of(chat), number)
    return held


def _skip(problem: LuthierError) -> None:
    """Broken held-out rows are found when the held-out file itself is checked."""


def _look(row: ChatRow, state: _State) -> bool:
    """Find what is odd about one conversation. True where it belongs into a cleaned file."""
    findings, where = state.findings, f"{row.file}:{row.line}"
    state.kept += 1
    _patterns((row.file, row.line), [str(message["content"]) for message in row.messages], state)
    _order(row, findings)
    answer = next((m for m in reversed(row.messages) if m["role"] == "assistant"), None)
    if answer is not None:
        _answer(row, str(answer["content"]), state)
    first = state.places.setdefault(row.id, where)
    if first != where:
        findings.row("duplicate", row, sample=f"the same as {first}")
        return False
    key = prompt_key(row)
    if answer is not None:
        other, place = state.answers.setdefault(key, (row.id, where))
        if other != row.id:
            findings.row("same-prompt", row, sample=f"the same prompt as {place}")
    if _leaks(row, key, state):
        return False
    if len(state.near_places) < NEAR_ROWS:
        near = state.near.add(_words_of(row), len(state.near_places))
        state.near_places.append(where)
        if near is not None:
            findings.row("near-duplicate", row, sample=f"near {state.near_places[near]}")
    return True


def _leaks(row: ChatRow, key: str, state: _State) -> bool:
    held = state.held
    if row.id in held.ids:
        state.findings.row("leakage", row)
    elif key in held.prompts:
        state.findings.row("prompt-leakage", row)
    elif held.ids and held.near.find(_words_of(row)) is not None:
        state.findings.row("near-leakage", row)
    else:
        return False
    return True


def _words_of(row: ChatRow) -> str:
    return "\n".join(str(message["content"]) for message in row.messages if message["role"] != "system")


def _order(row: ChatRow, findings: Findings) -> None:
    roles = [message["role"] for message in row.messages]
    turns = [role for role in roles if role != "system"]
    if turns[0] == "text":
        return
    if turns[-1] in ("user", "tool"):
        findings.row("no-last-answer", row)
    if turns[0] == "assistant":
        findings.row("answer-first", row)
    if any(one == two and one in ("user", "assistant") for one, two in pairwise(turns)):
        findings.row("same-role-twice", row)


def _answer(row: ChatRow, answer: str, state: _State) -> None:
    question = next((str(m["content"]) for m in reversed(row.messages) if m["role"] == "user"), "").strip()
    if len(question) >= 20 and answer.lstrip().startswith(question):
        state.findings.row("answer-repeats-prompt", row, sample=answer)
    if answer.lower().lstrip().startswith(_REFUSALS):
        state.findings.row("refusal", row, sample=answer)
    if len(answer) <= _LABEL_LETTERS and len(state.short_answers) <= _MOST_LABELS:
        state.short_answers[answer] += 1


def _patterns(place: tuple[str, int], texts: Sequence[str], state: _State) -> None:
    """Look for patterns in the texts of one row."""
    findings = state.findings
    text = "\n".join(texts)
    state.size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    if state.kept <= _ALL_LANGUAGES or state.kept % _SOME_LANGUAGES == 0:
        state.languages[guess_language(text)] += 1
    for kind, piece in secrets(text):
        findings.add("secret", detail=kind, place=place, sample=piece)
    for kind, piece in personal_data(text):
        findings.add("personal-data", detail=kind, place=place, sample=piece)
    for piece in markers(text):
        findings.add("template-marker", place=place, sample=piece)
    broken = mojibake(text)
    if broken is not None:
        findings.add("mojibake", place=place, sample=broken)
    odd = control_characters(text)
    if odd is not None:
        findings.add("control-character", place=place, sample=repr(odd))


def _look_at_kind(
    row: RawRow, kind: Kind, state: _State, broken: Callable[[LuthierError], None]
) -> bool | None:
    """One row with labels, or a pair or triplet. True where it is no copy, None where it is broken."""
    columns = kind.texts if kind.label is None else (*kind.texts, kind.label)
    values = {column: row.value.get(column) for column in columns}
    for column, value in values.items():
        if value is None or (isinstance(value, str) and not value.strip()):
            code = "missing-label" if column == kind.label else "empty-text"
            hint = "fill it in, or remove the row"
            broken(RowProblem(code, f"the column {column} is empty", file=row.file, line=row.line, hint=hint))
            return None
    texts = [as_text(values[column]) for column in kind.texts]
    try:
        content = content_digest(texts)
    except UnicodeEncodeError:
        broken(half_letter(row.file, row.line))
        return None
    state.kept += 1
    place, where = (row.file, row.line), f"{row.file}:{row.line}"
    label = values[kind.label] if kind.label else None
    _patterns(place, texts, state)
    if kind.name in LABELLED:
        state.labels.update(map(str, label) if isinstance(label, list) else [str(label)])
    first, place_of_first = state.answers.setdefault(content, (str(label), where))
    if place_of_first != where and first == str(label):
        state.findings.add("duplicate", place=place, sample=f"the same as {place_of_first}")
    elif place_of_first != where:
        both = f"{label} here, {first} at {place_of_first}"
        state.findings.add("conflicting-labels", place=place, sample=both)
    return place_of_first == where


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


def _measure(
    chats: Sequence[ChatRow],
    tokenizer: TextTokenizer,
    sequence_length: int | None,
    train_on: TrainOn,
    findings: Findings,
) -> tuple[Lengths | None, tuple[tuple[int, int], ...]]:
    """Token lengths, rows over the limit, what the template refuses, and prompts that split otherwise."""
    problems: list[LuthierError] = []
    rendered = list(render_rows(chats, tokenizer, train_on, on_problem=problems.append))
    for problem in problems:
        findings.problem(getattr(problem, "code", "template-refuses"), problem)
    limit = sequence_length or getattr(tokenizer, "max_length", None)
    for row in rendered:
        if limit is not None and len(row.ids) > limit:
            lost = int(row.trained[limit:].sum())
            cut = f"{len(row.ids):,} tokens; truncation would cut {lost:,} trained ones"
            findings.add("over-length", detail=f"{limit:,} tokens", place=(row.file, row.line), sample=cut)
        if not row.trained.any():
            findings.add("nothing-trained", place=(row.file, row.line))
    if not problems:
        _boundaries(chats, tokenizer, findings)
    sizes = [len(row.ids) for row in rendered]
    bins: Counter[int] = Counter(1 << max(3, (size - 1).bit_length()) for size in sizes)
    return (lengths(sizes) if sizes else None), tuple(sorted(bins.items()))


def _boundaries(chats: Sequence[ChatRow], tokenizer: TextTokenizer, findings: Findings) -> None:
    """Where a prompt alone has other tokens than at the beginning of its row, training and use differ."""
    for row in chats[:_BOUNDARIES]:
        if row.messages[0]["role"] == "text":
            return
        asked = prompt_of(row)
        if not asked:
            continue
        answered = replace(row, messages=row.messages[: len(asked) + 1])
        ids = prompt_ids(asked, tokenizer, row.tools)
        if next(render_rows([answered], tokenizer)).ids[: len(ids)].tolist() != ids:
            findings.row("prompt-boundary", row, sample=tokenizer.decode(ids[-4:], skip_special=False))

"""What one row alone shows: its digests, its faults, its language. Done in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from luthier.data.chunks import Chunk, parse
from luthier.data.columns import as_text
from luthier.data.images import image_problem
from luthier.data.kinds import LABELLED, Kind
from luthier.data.languages import guess_language
from luthier.data.layouts import Layout
from luthier.data.messages import RowProblem, content_digest, half_letter
from luthier.data.near import NearIndex
from luthier.data.passes import plain_chat
from luthier.data.patterns import control_characters, markers, mojibake, personal_data, secrets
from luthier.data.pool import packed
from luthier.data.read import RawRow
from luthier.data.render import prompt_ids, prompt_of, render_rows
from luthier.data.shapes import Shape, to_chat
from luthier.data.splits import prompt_key
from luthier.data.typed import row_maker
from luthier.data.vision import chat_or_view, turns_of
from luthier.errors import LuthierError
from luthier.schema.protocols import ChatRow, TextTokenizer
from luthier.schema.recipe import TrainOn
from luthier.schema.rows import LabelRow, PairRow, PreferenceRow, RankingRow, TaskRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BOUNDARIES = 50
"""Rows whose prompt is rendered alone and compared with the row's beginning."""
_ALL_LANGUAGES, _SOME_LANGUAGES = 2_000, 20
"""The language of the first rows is guessed, then of every twentieth."""
_LABEL_LETTERS = 60
_REFUSALS = ("as an ai language model", "as a large language model", "i'm sorry, but as an ai")

Found = tuple[str, str, str | None]
"""Code, detail, sample."""


@dataclass(frozen=True, slots=True)
class How:
    """What to look for; the same in every process."""

    shapes: dict[str, Shape | Kind | Layout | None]
    """File -> what its rows are; None where that is not known."""
    system: str | None = None
    deep: bool = True
    """Whether texts are looked into: patterns, languages, near duplicates."""
    tokenizer: TextTokenizer | None = None
    limit: int | None = None
    train_on: TrainOn = "assistant"
    plain: bool = False
    """Whether prompt and answer are joined as text, without a chat template."""
    keep_rows: bool = False
    base: str = "/"
    refuse_long: bool = False
    """Whether rows over the limit stop a training."""
    images: bool = True
    """Whether conversations may hold images; where a model of text is named they may not."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows to look at: near, whether signatures are wanted; number, how many pieces came before."""

    chunk: Chunk
    near: bool
    number: int


@dataclass(slots=True)
class Facts:
    """What one usable row shows."""

    line: int
    file: str
    id: int
    """First 64 bits of the content digest."""
    key: int | None
    """The same of what is asked; None for plain texts."""
    size: int
    """Bytes of its texts."""
    found: list[Found] = field(default_factory=list)
    language: str | None = None
    weight: int = 1
    """Rows that its language stands for."""
    short: str | None = None
    """Its answer, where that may be a label."""
    labels: tuple[str, ...] | None = None
    """Its labels, where it is a row with labels or a score."""
    classes: bool = False
    """Whether its labels are classes, to be balanced."""
    signature: NDArray[np.uint32] | None = None
    tokens: int | None = None
    row: RawRow | None = None


@dataclass(slots=True)
class Looked:
    """One piece: facts and problems in the order of the rows."""

    rows: list[Facts | tuple[Any, ...]]


def look_job(how: How) -> Callable[[Piece], Looked]:
    """Look at one piece."""
    near = NearIndex()

    def look(piece: Piece) -> Looked:
        found: list[Facts | tuple[Any, ...]] = []
        chats: list[tuple[ChatRow, Facts]] = []

        def broken(problem: LuthierError) -> None:
            found.append(packed(problem))

        for row in parse(piece.chunk, broken):
            shape = how.shapes.get(row.file)
            if shape is None:
                found.append(packed(_unknown(row)))
                continue
            try:
                if isinstance(shape, Shape):
                    chat, pictured = _as_chat(row, shape, how)
                    facts = _chat(chat, how, weight=_weight(piece, len(found)))
                    facts.found += pictured
                    chats.append((chat, facts))
                    text = words_of(chat)
                else:
                    facts, text = _typed(row, shape, how, weight=_weight(piece, len(found)))
                facts.found += _images(row, shape, how)
            except RowProblem as problem:
                broken(problem)
                continue
            except UnicodeEncodeError:
                broken(half_letter(row.file, row.line))
                continue
            if how.deep and piece.near:
                facts.signature = near.signature(text)
            facts.row = row if how.keep_rows else None
            found.append(facts)
        if how.tokenizer is not None and chats:
            _measure(chats, how, how.tokenizer, first=piece.number == 0)
        return Looked(found)

    return look


def _weight(piece: Piece, row: int) -> int:
    """Rows that a row's language stands for: each of the first rows, later every twentieth; else 0."""
    if piece.number == 0 and row < _ALL_LANGUAGES:
        return 1
    return _SOME_LANGUAGES if row % _SOME_LANGUAGES == 0 else 0


def _unknown(row: RawRow) -> RowProblem:
    return RowProblem("unknown-shape", "cannot tell what the row is", file=row.file, line=row.line)


def words_of(row: ChatRow) -> str:
    """What near duplicates are told by."""
    return "\n".join(str(message["content"]) for message in row.messages if message["role"] != "system")


def _number(digest: str) -> int:
    return int(digest[:16], 16)


def _chat(row: ChatRow, how: How, *, weight: int) -> Facts:
    texts = [str(message["content"]) for message in row.messages]
    facts = Facts(row.line, row.file, _number(row.id), None, 0)
    _texts(texts, facts, how, weight=weight)
    sample = " / ".join(text[:60] for text in texts[-2:])
    facts.found += [(code, "", sample) for code in _order(row)]
    answer = next((m for m in reversed(row.messages) if m["role"] == "assistant"), None)
    if answer is not None:
        facts.key = _number(prompt_key(row))
        said = str(answer["content"])
        question = next(
            (str(m["content"]) for m in reversed(row.messages) if m["role"] == "user"), ""
        ).strip()
        if len(question) >= 20 and said.lstrip().startswith(question):
            facts.found.append(("answer-repeats-prompt", "", said))
        if said[:80].lower().lstrip().startswith(_REFUSALS):
            facts.found.append(("refusal", "", said))
        if len(said) <= _LABEL_LETTERS:
            facts.short = said
    return facts


def _order(row: ChatRow) -> list[str]:
    roles = [message["role"] for message in row.messages if message["role"] != "system"]
    if roles[0] == "text":
        return []
    found = []
    if roles[-1] in ("user", "tool"):
        found.append("no-last-answer")
    if roles[0] == "assistant":
        found.append("answer-first")
    if any(one == two and one in ("user", "assistant") for one, two in pairwise(roles)):
        found.append("same-role-twice")
    return found


def _texts(texts: Sequence[str], facts: Facts, how: How, *, weight: int) -> None:
    """Patterns, language and size of a row's texts."""
    text = "\n".join(texts)
    facts.size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    if not how.deep:
        return
    if weight:
        facts.language, facts.weight = guess_language(text), weight
    found = facts.found
    found += [("secret", kind, piece) for kind, piece in secrets(text)]
    found += [("personal-data", kind, piece) for kind, piece in personal_data(text)]
    found += [("template-marker", "", piece) for piece in markers(text)]
    broken = mojibake(text)
    if broken is not None:
        found.append(("mojibake", "", broken))
    odd = control_characters(text)
    if odd is not None:
        found.append(("control-character", "", repr(odd)))


def _typed(row: RawRow, shape: Kind | Layout, how: How, *, weight: int) -> tuple[Facts, str]:
    """One row with labels, or a pair, triplet or preference."""
    if isinstance(shape, Layout):
        made = row_maker(shape, how.system)(row)
        facts, texts = facts_of(made)
    else:
        facts, texts = kind_facts(row, shape)
    _texts(texts, facts, how, weight=weight)
    return facts, "\n".join(texts)


def facts_of(row: TaskRow) -> tuple[Facts, list[str]]:
    """Digests and labels of a typed row, and its texts."""
    texts, labels = _parts(row)
    id_, key = _number(row.id), _number(row.key)
    facts = Facts(row.line, row.file, id_, key, 0, labels=labels, classes=labels is not None)
    if isinstance(row, RankingRow) and row.echoes:
        facts.found.append(_echo(row.query))
    return facts, texts


def _echo(text: str) -> Found:
    return "positive-is-query", "", text


def _parts(row: TaskRow) -> tuple[list[str], tuple[str, ...] | None]:
    match row:
        case LabelRow():
            return [row.text, *([row.pair] if row.pair else [])], row.labels
        case PairRow():
            return [row.first, row.second], None
        case RankingRow():
            return [row.query, *row.documents], None
        case PreferenceRow():
            return [str(m["content"]) for m in (*row.prompt, *row.chosen, *row.rejected)], None


def kind_facts(row: RawRow, kind: Kind) -> tuple[Facts, list[str]]:
    """Digest and labels of a row told by its columns, and its texts. Raises RowProblem."""
    columns = kind.texts if kind.label is None else (*kind.texts, kind.label)
    values = {column: row.value.get(column) for column in columns}
    for column, value in values.items():
        if value is None or (isinstance(value, str) and not value.strip()):
            code = "missing-label" if column == kind.label else "empty-text"
            hint = "fill it in, or remove the row"
            raise RowProblem(code, f"the column {column} is empty", file=row.file, line=row.line, hint=hint)
    texts = [as_text(values[column]) for column in kind.texts]
    label = values[kind.label] if kind.label else None
    listed = tuple(map(str, label)) if isinstance(label, list) else (str(label),)
    digest = _number(content_digest(texts))
    labels = () if label is None else listed
    facts = Facts(row.line, row.file, digest, digest, 0, labels=labels, classes=kind.name in LABELLED)
    if kind.name in ("pair", "triplet") and texts[0].strip() == texts[1].strip():
        facts.found.append(_echo(texts[0]))
    return facts, texts


def _as_chat(row: RawRow, shape: Shape, how: How) -> tuple[ChatRow, list[Found]]:
    if not how.images:
        return to_chat(row, shape, system=how.system), []
    chat, vision = chat_or_view(row, shape, system=how.system)
    if vision is None:
        return chat, []
    return chat, [("images", "", ", ".join(image.value for image in vision.images))]


def _images(row: RawRow, shape: Shape | Kind | Layout, how: How) -> list[Found]:
    turns = None
    if isinstance(shape, Shape) and shape.name in ("messages", "sharegpt"):
        turns = turns_of(row.value, shape)
    problem = image_problem(row.value, row.file, how.base, turns)
    return [] if problem is None else [problem]


def _measure(
    chats: Sequence[tuple[ChatRow, Facts]], how: How, tokenizer: TextTokenizer, *, first: bool
) -> None:
    """Tokens of each row, rows over the limit, what the template refuses, prompts that split otherwise."""
    problems: list[LuthierError] = []
    if how.plain:
        chats = [(plain_chat(chat), facts) for chat, facts in chats]
    rows = {(chat.file, chat.line): facts for chat, facts in chats}
    rendered = render_rows([chat for chat, _ in chats], tokenizer, how.train_on, on_problem=problems.append)
    for row in rendered:
        facts = rows[row.file, row.line]
        facts.tokens = len(row.ids)
        # Plain texts are cut into pieces and lose nothing.
        if how.limit is not None and len(row.ids) > how.limit and facts.key is not None:
            lost = int(row.trained[how.limit :].sum())
            cut = f"{len(row.ids):,} tokens; truncation would cut {lost:,} trained ones"
            code = "over-length-refused" if how.refuse_long else "over-length"
            facts.found.append((code, f"{how.limit:,} tokens", cut))
        if not row.trained.any():
            facts.found.append(("nothing-trained", "", None))
    for problem in problems:
        facts = rows[problem.file or "", problem.line or 0]
        code = getattr(problem, "code", "template-refuses")
        facts.found.append((f"!{code}", problem.message, problem.hint))
    if first and not problems:
        _boundaries(chats[:_BOUNDARIES], tokenizer)


def _boundaries(chats: Sequence[tuple[ChatRow, Facts]], tokenizer: TextTokenizer) -> None:
    """Where a prompt alone has other tokens than at the beginning of its row, training and use differ."""
    for row, facts in chats:
        if row.messages[0]["role"] == "text":
            return
        asked = prompt_of(row)
        if not asked:
            continue
        last = row.messages[len(asked)]
        thought = last.get("reasoning_content") or last.get("thinking") or last.get("reasoning")
        if thought and str(thought).strip()[:40] not in tokenizer.render(row.messages, tools=row.tools):
            facts.found.append(("reasoning-left-out", "", str(thought)))
        answered = replace(row, messages=row.messages[: len(asked) + 1])
        ids = prompt_ids(asked, tokenizer, row.tools)
        if next(render_rows([answered], tokenizer)).ids[: len(ids)].tolist() != ids:
            facts.found.append(("prompt-boundary", "", tokenizer.decode(ids[-4:], skip_special=False)))

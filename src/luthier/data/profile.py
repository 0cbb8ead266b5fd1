"""What the advisor and the planner need to know of a data set, before a model is chosen."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.data.columns import as_text
from luthier.data.kinds import LABELLED, Kind, detect_kind
from luthier.data.languages import guess_language
from luthier.data.messages import RowProblem
from luthier.data.read import RawRow, read_rows
from luthier.data.render import render_rows
from luthier.data.shapes import by_file, detect
from luthier.data.stats import lengths, lengths_of
from luthier.data.vision import chat_or_view
from luthier.errors import DataError, LuthierError
from luthier.schema.data import DataProfile
from luthier.schema.protocols import ChatRow, TextTokenizer

CHARACTERS_PER_TOKEN = 3.5
"""Letters a token, where no tokenizer is given: English prose has 4 to 5, code and other scripts less."""
_WIDE_CHARACTERS_PER_TOKEN = 1.3
"""The same for scripts written without spaces between words (Chinese, Japanese, Korean, Thai)."""
_TOKENS_PER_MESSAGE = 5
"""What templates add: role, markers, line ends."""
_SAMPLE = 2_000
"""Rows looked at for tokens, languages and structure; their figures are scaled to all rows."""
_MOST_LABELS = 200
_LONGEST_LABEL = 60
_MOST_CLASSES = 10_000
"""Labels of rows with labels that are told apart; rows of still others are counted without them."""
_LOOKED_AT = 50


@dataclass(slots=True)
class Account:
    """Rows that were read and cannot be used, by reason."""

    dropped: Counter[str] = field(default_factory=Counter)

    def __call__(self, problem: LuthierError) -> None:
        self.dropped[getattr(problem, "code", "broken-row")] += 1


class _Seen:
    """What is kept of rows that pass by once: a sample of them, and sums."""

    def __init__(self) -> None:
        self.rows = self.bytes = 0
        self.turns: Counter[int] = Counter()
        self.labels: Counter[str] | None = Counter()
        """Last answers, while they may be labels."""
        self._sample: list[tuple[int, ChatRow]] = []
        self._draw = random.Random(0)

    def add(self, row: ChatRow) -> None:
        """Every row is as likely as any other to be in the sample (reservoir sampling)."""
        number = self.rows
        self.rows += 1
        self.bytes += sum(len(_text(message).encode("utf-8", "replace")) for message in row.messages)
        self.turns[len(row.messages)] += 1
        if self.labels is not None:
            self.labels.update(_answers(row)[-1:])
            if len(self.labels) > _MOST_LABELS or any(
                len(said) > _LONGEST_LABEL for said in _answers(row)[-1:]
            ):
                self.labels = None
        if number < _SAMPLE:
            self._sample.append((number, row))
        elif (place := self._draw.randrange(self.rows)) < _SAMPLE:
            self._sample[place] = (number, row)

    def sample(self) -> list[ChatRow]:
        """The rows that are looked into, in their order."""
        return [row for _, row in sorted(self._sample, key=lambda one: one[0])]


def profile(
    sources: tuple[str, ...],
    *,
    base: Path,
    tokenizer: TextTokenizer | None = None,
    format: str | None = None,  # noqa: A002 - the recipe's own word
    columns: dict[str, str] | None = None,
    system: str | None = None,
) -> DataProfile:
    """Describe files, folders and globs in one pass, with memory for a sample of the rows only.

    Rows that cannot be used are left out of the figures and counted: ``read = rows + sum(dropped)``.
    Errors as read_rows and map_rows. Token totals are exact with a tokenizer and few rows, else
    estimated; ``basis`` says how.
    """
    account = Account()
    rows = read_rows(sources, base=base, on_problem=account)
    first = list(islice(rows, _LOOKED_AT))
    kind = None if format or columns else _kind(first)
    if kind is not None:
        return profile_kind(chain(first, rows), kind, tokenizer, account=account)
    return profile_rows(
        chain(first, rows), tokenizer, format=format, columns=columns, system=system, account=account
    )


def _kind(first: Sequence[RawRow]) -> Kind | None:
    """What rows are that are no conversations; None where they are some, or nothing is known of them."""
    try:
        detect(first)
    except DataError:
        names = list(dict.fromkeys(chain.from_iterable(row.value for row in first)))
        return detect_kind(names, first[0].value) if first else None
    return None


def profile_kind(
    rows: Iterable[RawRow],
    kind: Kind,
    tokenizer: TextTokenizer | None = None,
    *,
    account: Account | None = None,
) -> DataProfile:
    """Describe rows with labels, pairs, triplets and the like: their texts, and their labels."""
    account = account or Account()
    labels: Counter[str] = Counter()

    def texts() -> Iterator[ChatRow]:
        for row in rows:
            parts = [row.value.get(name) for name in kind.texts]
            text = "\n".join(as_text(part) for part in parts if part is not None)
            if not text.strip():
                account.dropped["empty-text"] += 1
                continue
            label = row.value.get(kind.label) if kind.label else None
            if kind.name in LABELLED and label is not None:
                for one in map(str, label if isinstance(label, list) else [label]):
                    if one in labels or len(labels) < _MOST_CLASSES:
                        labels[one] += 1
            messages = [{"role": "text", "content": text}]
            yield ChatRow(messages, row.file, row.line, f"{row.file}:{row.line}")

    found = profile_chats(texts(), tokenizer, kind.name, account=account)
    none = lengths([0]).model_copy(update={"count": found.rows})
    known = dict(labels.most_common(_MOST_LABELS))
    return found.model_copy(update={"answer_tokens": none, "labels": known, "structure": {}})


def profile_rows(
    rows: Iterable[RawRow],
    tokenizer: TextTokenizer | None = None,
    *,
    format: str | None = None,  # noqa: A002 - the recipe's own word
    columns: dict[str, str] | None = None,
    system: str | None = None,
    account: Account | None = None,
) -> DataProfile:
    """Describe rows as read_rows gives them."""
    account = account or Account()
    stream = iter(rows)
    first = list(islice(stream, _LOOKED_AT))
    shape = detect(first, format=format, columns=columns)
    pictured = 0

    def chats() -> Iterator[ChatRow]:
        nonlocal pictured
        for own, row in by_file(chain(first, stream), format=format, columns=columns):
            try:
                chat, vision = chat_or_view(row, own, system=system)
            except RowProblem as problem:
                account(problem)
                continue
            pictured += vision is not None
            yield chat

    found = profile_chats(chats(), tokenizer, shape.name, account=account)
    if pictured:
        structure = {**found.structure, "images": round(pictured / found.rows, 4)}
        found = found.model_copy(update={"structure": structure})
    return found


def profile_chats(
    chats: Iterable[ChatRow],
    tokenizer: TextTokenizer | None,
    format: str,  # noqa: A002
    *,
    account: Account | None = None,
) -> DataProfile:
    """Describe conversations, each seen once. account: rows that were left out before."""
    account = account or Account()
    seen = _Seen()
    for row in chats:
        seen.add(row)
    if not seen.rows:
        raise DataError("no row can be used", hint="`luthier data check FILE` lists what is wrong")
    sample = seen.sample()
    totals, answers, basis = _tokens(sample, tokenizer)
    factor = seen.rows / len(sample)
    if factor > 1:
        basis += f"; from {len(sample):,} of {seen.rows:,} rows"
    whole, answered = lengths(totals), lengths(answers)
    return DataProfile(
        rows=seen.rows,
        read=seen.rows + sum(account.dropped.values()),
        dropped=dict(account.dropped),
        format=format,
        bytes=seen.bytes,
        tokens=whole.model_copy(update={"count": seen.rows, "total": round(whole.total * factor)}),
        answer_tokens=answered.model_copy(
            update={"count": seen.rows, "total": round(answered.total * factor)}
        ),
        turns=lengths_of(seen.turns),
        basis=basis,
        languages=_shares(Counter(guess_language(_prose(row)) for row in sample), len(sample)),
        structure=_structure(sample),
        labels=_labels(seen),
        sampled=len(sample),
    )


def _ignore(problem: LuthierError) -> None:
    """A row that the template refuses: `check` names it."""


def _tokens(sample: Sequence[ChatRow], tokenizer: TextTokenizer | None) -> tuple[list[int], list[int], str]:
    """Tokens of each row, of its answers, and how they were counted."""
    if tokenizer is not None:
        rendered = list(render_rows(sample, tokenizer, on_problem=_ignore))
        if rendered:
            basis = "counted with the model's own tokenizer and chat template"
            return [len(row.ids) for row in rendered], [int(row.trained.sum()) for row in rendered], basis
    totals, answers = [], []
    for row in sample:
        counts = [estimate_tokens(_text(message)) + _TOKENS_PER_MESSAGE for message in row.messages]
        total = sum(counts) + (estimate_tokens(json.dumps(row.tools)) if row.tools else 0)
        totals.append(total)
        answers.append(
            sum(c for c, m in zip(counts, row.messages, strict=True) if m["role"] in ("assistant", "text"))
        )
    basis = (
        f"estimated at {CHARACTERS_PER_TOKEN} characters a token ({_WIDE_CHARACTERS_PER_TOKEN} in scripts "
        f"without spaces) and {_TOKENS_PER_MESSAGE} tokens a message"
    )
    return totals, answers, basis


def estimate_tokens(text: str) -> int:
    """Tokens of a text by its letters, where no tokenizer is known."""
    wide = 0 if text.isascii() else sum(_is_wide(letter) for letter in text)
    return round(wide / _WIDE_CHARACTERS_PER_TOKEN + (len(text) - wide) / CHARACTERS_PER_TOKEN)


def _is_wide(letter: str) -> bool:
    code = ord(letter)
    return 0x0E00 <= code <= 0x0EFF or 0x1100 <= code <= 0x11FF or 0x2E80 <= code <= 0xD7AF or code >= 0x1F000


def _text(message: dict[str, Any]) -> str:
    text = str(message.get("content") or "") + str(message.get("reasoning_content") or "")
    calls = message.get("tool_calls")
    return text + json.dumps([call["function"] for call in calls], ensure_ascii=False) if calls else text


def _prose(row: ChatRow) -> str:
    return " ".join(message["content"] for message in row.messages if message["role"] != "tool")[:2_000]


def _answers(row: ChatRow) -> list[str]:
    return [message["content"] for message in row.messages if message["role"] == "assistant"]


def _structure(sample: Sequence[ChatRow]) -> dict[str, float]:
    """Kinds of rows -> share, the absent kinds left out."""
    found: Counter[str] = Counter()
    for row in sample:
        answers = _answers(row)
        last = answers[-1] if answers else ""
        roles = [message["role"] for message in row.messages]
        found["json-answers"] += _is_json(last)
        found["code-answers"] += "```" in last or last.lstrip().startswith(
            ("def ", "class ", "import ", "#include")
        )
        found["short-answers"] += bool(last) and len(last) <= 40
        found["tools"] += bool(row.tools) or any(message.get("tool_calls") for message in row.messages)
        found["system"] += "system" in roles
        found["multi-turn"] += roles.count("assistant") > 1
        found["thinking"] += any(
            message.get("reasoning_content") or "<think>" in message["content"] for message in row.messages
        )
    return _shares(found, len(sample))


def _is_json(text: str) -> bool:
    text = text.strip()
    if not text.startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


def _shares(counts: Counter[str], total: int) -> dict[str, float]:
    return {name: round(count / total, 4) for name, count in counts.most_common() if count}


def _labels(seen: _Seen) -> dict[str, int]:
    """Answers that repeat like labels: few different, short ones, over many rows."""
    if not seen.labels or len(seen.labels) > min(_MOST_LABELS, seen.rows // 4):
        return {}
    return dict(seen.labels.most_common())

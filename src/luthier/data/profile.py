"""What the advisor and the planner need to know of a data set, before a model is chosen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.data.columns import as_text
from luthier.data.kinds import LABELLED, Kind, detect_kind
from luthier.data.languages import guess_language
from luthier.data.read import RawRow, read_rows
from luthier.data.render import render_rows
from luthier.data.shapes import detect, map_rows
from luthier.data.splits import choose
from luthier.data.stats import lengths
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
_LOOKED_AT = 50


def profile(
    sources: tuple[str, ...],
    *,
    base: Path,
    tokenizer: TextTokenizer | None = None,
    format: str | None = None,  # noqa: A002 - the recipe's own word
    columns: dict[str, str] | None = None,
    system: str | None = None,
) -> DataProfile:
    """Describe files, folders and globs. Rows that cannot be used are left out of the figures.

    Errors as read_rows and map_rows. Token totals are exact with a tokenizer and few rows, else
    estimated; ``basis`` says how.
    """
    rows = read_rows(sources, base=base, on_problem=_ignore)
    first = list(islice(rows, _LOOKED_AT))
    kind = None if format or columns else _kind(first)
    if kind is not None:
        return profile_kind(chain(first, rows), kind, tokenizer)
    return profile_rows(chain(first, rows), tokenizer, format=format, columns=columns, system=system)


def _kind(first: Sequence[RawRow]) -> Kind | None:
    """What rows are that are no conversations; None where they are some, or nothing is known of them."""
    try:
        detect(first)
    except DataError:
        names = list(dict.fromkeys(chain.from_iterable(row.value for row in first)))
        return detect_kind(names, first[0].value) if first else None
    return None


def profile_kind(rows: Iterable[RawRow], kind: Kind, tokenizer: TextTokenizer | None = None) -> DataProfile:
    """Describe rows with labels, pairs, triplets and the like: their texts, and their labels."""
    texts: list[ChatRow] = []
    labels: Counter[str] = Counter()
    for row in rows:
        parts = [row.value.get(name) for name in kind.texts]
        text = "\n".join(as_text(part) for part in parts if part is not None)
        if not text.strip():
            continue
        messages = [{"role": "text", "content": text}]
        texts.append(ChatRow(messages, row.file, row.line, f"{row.file}:{row.line}"))
        label = row.value.get(kind.label) if kind.label else None
        if kind.name in LABELLED and label is not None:
            labels.update(map(str, label) if isinstance(label, list) else [str(label)])
    found = profile_chats(texts, tokenizer, kind.name)
    none = lengths([0] * len(texts))
    known = dict(labels.most_common(_MOST_LABELS))
    return found.model_copy(update={"answer_tokens": none, "labels": known, "structure": {}})


def profile_rows(
    rows: Iterable[RawRow],
    tokenizer: TextTokenizer | None = None,
    *,
    format: str | None = None,  # noqa: A002 - the recipe's own word
    columns: dict[str, str] | None = None,
    system: str | None = None,
) -> DataProfile:
    """Describe rows as read_rows gives them."""
    shape, mapped = map_rows(rows, format=format, columns=columns, system=system, on_problem=_ignore)
    return profile_chats(list(mapped), tokenizer, shape.name)


def profile_chats(
    chats: Sequence[ChatRow],
    tokenizer: TextTokenizer | None,
    format: str,  # noqa: A002
) -> DataProfile:
    """Describe conversations."""
    if not chats:
        raise DataError("no row can be used", hint="`luthier data check FILE` lists what is wrong")
    sample = choose(chats, _SAMPLE, seed=0) if len(chats) > _SAMPLE else list(chats)
    totals, answers, basis = _tokens(sample, tokenizer)
    factor = len(chats) / len(sample)
    if factor > 1:
        basis += f"; from {len(sample):,} of {len(chats):,} rows"
    whole, answered = lengths(totals), lengths(answers)
    return DataProfile(
        rows=len(chats),
        format=format,
        bytes=sum(
            len(_text(message).encode("utf-8", "replace")) for row in chats for message in row.messages
        ),
        tokens=whole.model_copy(update={"count": len(chats), "total": round(whole.total * factor)}),
        answer_tokens=answered.model_copy(
            update={"count": len(chats), "total": round(answered.total * factor)}
        ),
        turns=lengths([len(row.messages) for row in chats]),
        basis=basis,
        languages=_shares(Counter(guess_language(_prose(row)) for row in sample), len(sample)),
        structure=_structure(sample),
        labels=_labels(chats),
        sampled=len(sample),
    )


def _ignore(problem: LuthierError) -> None:
    """A profile describes what can be used; `check` names the rest."""


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


def _labels(chats: Sequence[ChatRow]) -> dict[str, int]:
    """Answers that repeat like labels: few different, short ones, over many rows."""
    counts = Counter(chain.from_iterable(_answers(row)[-1:] for row in chats))
    if not counts or len(counts) > min(_MOST_LABELS, len(chats) // 4) or max(map(len, counts)) > 60:
        return {}
    return dict(counts.most_common())

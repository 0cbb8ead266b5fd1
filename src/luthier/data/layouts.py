"""Which columns hold what, for rows with labels, pairs, rankings and preferences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from typing import Any

from luthier.data.columns import Missing, check_expression, value_at
from luthier.data.read import RawRow
from luthier.errors import DataError, RecipeError, did_you_mean
from luthier.schema.rows import RowPurpose

LABEL_ROLES = ("text", "pair", "label", "labels", "group")
RANKING_ROLES = ("query", "positive", "negative", "first", "second", "score", "group")
SIMILARITY_ROLES = (*RANKING_ROLES, "text", "label")
PREFERENCE_ROLES = ("prompt", "chosen", "rejected", "system", "tools", "group")
DELIMITERS = ("|", ";", ",")
"""What may part labels in one text, likeliest first."""
NO_LABEL = ("", "none", "null", "[]")

_TEXTS = (
    "text", "sentence", "content", "review", "utterance", "comment", "comment_text", "tweet", "message",
    "question", "query", "title", "document", "headline", "body", "abstract", "premise", "sentence1",
    "text1", "input",
)  # fmt: skip
_SECONDS = {
    "premise": ("hypothesis",),
    "sentence1": ("sentence2",),
    "text1": ("text2",),
    "question": ("passage", "context", "sentence", "document", "question2"),
    "query": ("passage", "document"),
}
_LABEL = (
    "label", "intent", "class", "sentiment", "category", "topic", "emotion", "target", "tag", "label_text",
)  # fmt: skip
_LABELS = ("labels", "tags", "classes", "categories", "topics", "emotions", "intents", *_LABEL)
_NAMES = ("id", "_id", "index", "idx", "uid", "line", "unnamed: 0", "")
_FIRSTS = ("anchor", "query", "question", "sentence1", "text1", "first")
_SECOND_TEXTS = ("sentence2", "text2", "second", "document", "passage", "text")
_POSITIVES = ("positive", "positives", "pos", "positive_passages", "answer", "document", "passage")
_POSITIVES_OF_PAIRS = ("sentence2", "text2", "second")
_NEGATIVES = ("negative", "negatives", "neg", "hard_negatives", "hard_negative", "negative_passages")
_NUMBERED = re.compile(r"(?:hard_)?neg(?:ative)?_?\d+")
_SCORES = ("score", "similarity", "similarity_score", "relevance", "label")
_PROMPTS = ("prompt", "question", "instruction", "query", "input")


@dataclass(frozen=True, slots=True)
class Layout:
    """Kind of rows and, for each role, a path, a template or (lists) several columns with commas."""

    kind: str
    columns: dict[str, str]
    delimiter: str | None = None
    """What parts several labels in one text."""
    notes: tuple[str, ...] = field(default=())


def roles_for(purpose: RowPurpose) -> tuple[str, ...]:
    """The keys that ``data.columns`` may have for a purpose."""
    if purpose in ("multi-class-classification", "multi-label-classification"):
        return LABEL_ROLES
    if purpose == "similarity":
        return SIMILARITY_ROLES
    return RANKING_ROLES if purpose == "reranking" else PREFERENCE_ROLES


def tell(
    purpose: RowPurpose,
    rows: Sequence[RawRow],
    *,
    columns: dict[str, str] | None = None,
    delimiter: str | None = None,
) -> Layout:
    """Tell the layout by the first rows; columns (role -> path or template) win.

    Raises RecipeError for an unknown or unused role and DataError, with a mapping to start from, where
    a column is missing or nothing fits.
    """
    wanted = columns or {}
    names = list(dict.fromkeys(chain.from_iterable(row.value for row in rows)))
    known = roles_for(purpose)
    for role, expression in wanted.items():
        if role not in known:
            raise RecipeError(
                f"data.columns.{role} is not a role of the task {purpose}",
                hint=did_you_mean(role, known) or f"roles are {', '.join(known)}",
            )
        for part in parts_of(expression, names):
            check_expression(role, part, names)
    if known is LABEL_ROLES:
        layout = _labelled(purpose, names, rows, wanted, delimiter)
    elif known is PREFERENCE_ROLES:
        layout = _preference(names, wanted)
    else:
        labelled = known is SIMILARITY_ROLES and bool({"text", "label"} & set(wanted))
        layout = None if labelled else _ranking(names, rows, wanted)
        if layout is None and known is SIMILARITY_ROLES:
            layout = _alike(names, rows, wanted)
    if layout is None:
        raise DataError(
            f"cannot tell the {purpose} rows: their columns are {', '.join(names) or 'none'}",
            file=rows[0].file,
            line=rows[0].line,
            hint=_hint(purpose),
        )
    for role in wanted:
        if role not in layout.columns:
            raise RecipeError(
                f"data.columns.{role} is not used: the rows are read as {layout.kind}",
                hint=f"remove it; {layout.kind} uses {', '.join(layout.columns)}",
            )
    return layout


def parts_of(expression: str, names: Sequence[str]) -> list[str]:
    """``a, b`` as two columns, unless a column has that very name or it is a template."""
    if "," not in expression or "{" in expression or expression in names:
        return [expression]
    return [part.strip() for part in expression.split(",") if part.strip()]


def _hint(purpose: RowPurpose) -> str:
    example = {
        "multi-class-classification": "{text: YOUR_COLUMN, label: YOUR_COLUMN}",
        "multi-label-classification": "{text: YOUR_COLUMN, labels: YOUR_COLUMN} (a list, a text with "
        "delimiters, or several columns of 0 and 1: `labels: toxic, insult`)",
        "preference": "{prompt: YOUR_COLUMN, chosen: YOUR_COLUMN, rejected: YOUR_COLUMN}",
    }.get(
        purpose,
        "{query: YOUR_COLUMN, positive: YOUR_COLUMN, negative: YOUR_COLUMN} or "
        "{first: YOUR_COLUMN, second: YOUR_COLUMN, score: YOUR_COLUMN}"
        + (" or {text: YOUR_COLUMN, label: YOUR_COLUMN}" if purpose == "similarity" else ""),
    )
    return f"map them, for example data.columns: {example}"


def _first(lower: dict[str, str], words: Sequence[str], *, but: Sequence[str | None] = ()) -> str | None:
    return next((lower[word] for word in words if word in lower and lower[word] not in but), None)


def _labelled(
    purpose: RowPurpose,
    names: list[str],
    rows: Sequence[RawRow],
    wanted: dict[str, str],
    delimiter: str | None,
) -> Layout | None:
    lower = {name.lower(): name for name in names}
    many = purpose == "multi-label-classification"
    if "label" in wanted and "labels" in wanted:
        raise RecipeError("data.columns names both label and labels", hint="keep one of them")
    written = "labels" if "labels" in wanted else "label" if "label" in wanted else None
    text = wanted.get("text") or _first(lower, _TEXTS, but=(wanted.get(written or ""),))
    if text is None:
        return None
    columns = {"text": text}
    pair = wanted.get("pair") or _first(lower, _SECONDS.get(text.lower(), ()))
    if pair:
        columns["pair"] = pair
    if "group" in wanted:
        columns["group"] = wanted["group"]
    label = (
        wanted[written] if written else _first(lower, _LABELS if many else (*_LABEL, "labels"), but=(text,))
    )
    notes: list[str] = []
    if label is None and many:
        hot = _one_hot(names, rows, (text, pair))
        label = ", ".join(hot) if len(hot) > 1 else None
        notes += [f"columns of 0 and 1 are read as labels: {label}"] if label else []
    if label is None:
        return None
    columns[written or ("labels" if many else "label")] = label
    if many and delimiter is None and len(parts_of(label, names)) == 1:
        delimiter = _delimiter(label, rows)
        notes += [f"labels in {label} are parted at {delimiter!r}"] if delimiter else []
    return Layout(
        "multi-label" if many else "multi-class", columns, delimiter if many else None, tuple(notes)
    )


def _alike(names: list[str], rows: Sequence[RawRow], wanted: dict[str, str]) -> Layout | None:
    """Texts of a class each, of which those of one class are alike; a second text makes them no such rows."""
    found = _labelled("multi-class-classification", names, rows, wanted, None)
    if found is None or "pair" in found.columns:
        return None
    others = {name.lower() for name in names} - {one.lower() for one in found.columns.values()}
    if "text" not in wanted and others & {*_FIRSTS, *_SECOND_TEXTS, *_POSITIVES}:
        return None  # a query or a document beside it: what they mean together is not guessed
    note = f"texts with the same {found.columns['label']} are taken to be alike"
    return Layout("labelled", found.columns, notes=(*found.notes, note))


def _one_hot(names: Sequence[str], rows: Sequence[RawRow], but: Sequence[str | None]) -> list[str]:
    return [
        name
        for name in names
        if name not in but
        and name.lower() not in _NAMES
        and all(is_hot(row.value.get(name)) is not None for row in rows)
    ]


def is_hot(value: Any) -> bool | None:
    """Whether a cell says 1 or yes, False for 0 or no, None for anything else."""
    if isinstance(value, (bool, int, float)):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        return {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}.get(
            value.strip().lower()
        )
    return None


def _delimiter(label: str, rows: Sequence[RawRow]) -> str | None:
    texts = []
    for row in rows:
        try:
            value = value_at(row.value, label)
        except Missing:
            continue
        if isinstance(value, str) and not value.lstrip().startswith("["):
            texts.append(value)
    return next((mark for mark in DELIMITERS if any(mark in text for text in texts)), None)


def _ranking(names: list[str], rows: Sequence[RawRow], wanted: dict[str, str]) -> Layout | None:
    lower = {name.lower(): name for name in names}
    group = {"group": wanted["group"]} if "group" in wanted else {}
    scored = {"first", "second", "score"} & set(wanted)
    ranked = {"query", "positive", "negative"} & set(wanted)
    if scored and ranked:
        raise RecipeError(
            f"data.columns names both {' and '.join(sorted(scored | ranked))}",
            hint="scored pairs have first, second and score; rankings have query, positive and negative",
        )
    if not ranked:
        first = wanted.get("first") or _first(lower, _FIRSTS)
        second = wanted.get("second") or _first(lower, _SECOND_TEXTS, but=(first,))
        score = wanted.get("score") or _score(lower, rows)
        if first and second and score and not _first(lower, _NEGATIVES):
            return Layout("scored-pairs", {"first": first, "second": second, "score": score, **group})
        if scored:
            return None
    query = wanted.get("query") or _first(lower, _FIRSTS)
    positive = wanted.get("positive") or _first(lower, (*_POSITIVES, *_POSITIVES_OF_PAIRS), but=(query,))
    if query is None or positive is None:
        return None
    numbered = ", ".join(name for name in names if _NUMBERED.fullmatch(name.lower()))
    negative = wanted.get("negative") or _first(lower, _NEGATIVES) or numbered or None
    columns = {"query": query, "positive": positive}
    if negative:
        columns["negative"] = negative
    lists = any(isinstance(_at(row, name), list) for row in rows for name in (positive, negative) if name)
    if lists or (negative and len(parts_of(negative, names)) > 1):
        return Layout("query-positives-negatives", {**columns, **group})
    return Layout("triplets" if negative else "pairs", {**columns, **group})


def _at(row: RawRow, expression: str) -> Any:
    try:
        return value_at(row.value, expression)
    except Missing:
        return None


def _score(lower: dict[str, str], rows: Sequence[RawRow]) -> str | None:
    """A column of numbers; class names under ``label`` are no scores."""
    name = _first(lower, _SCORES)
    if name is None or all(as_number(row.value.get(name)) is None for row in rows):
        return None
    return name


def as_number(value: Any) -> float | None:
    """A finite number, also as CSV writes it."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or not isfinite(value):
        return None
    return float(value)


def _preference(names: list[str], wanted: dict[str, str]) -> Layout | None:
    lower = {name.lower(): name for name in names}
    chosen = wanted.get("chosen") or _first(lower, ("chosen", "preferred", "better"))
    rejected = wanted.get("rejected") or _first(lower, ("rejected", "dispreferred", "worse"))
    if chosen is None or rejected is None:
        return None
    columns = {"chosen": chosen, "rejected": rejected}
    prompt = wanted.get("prompt") or _first(lower, ("messages", *_PROMPTS))
    if prompt:
        columns["prompt"] = prompt
    for role in ("system", "tools", "group"):
        expression = wanted.get(role) or (lower.get(role) if role != "group" else None)
        if expression:
            columns[role] = expression
    return Layout("preference", columns)

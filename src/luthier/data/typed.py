"""One raw row into a typed row: a label, a scored pair, a ranking or a preference."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from luthier.data.columns import Missing, as_text, text_at, value_at
from luthier.data.layouts import NO_LABEL, Layout, as_number, is_hot, parts_of
from luthier.data.messages import RowProblem, content_digest, normalise_messages, normalise_tools
from luthier.data.read import RawRow
from luthier.schema.protocols import Message
from luthier.schema.rows import LabelRow, PairRow, PreferenceRow, RankingRow, TaskRow

_TURN = re.compile(r"\n\n(Human|Assistant): ?")


def row_maker(layout: Layout, system: str | None = None) -> Callable[[RawRow], TaskRow]:
    """One row into its typed row; raises RowProblem, and UnicodeEncodeError for half letters."""
    if layout.kind == "preference":
        return lambda row: _preference_row(row, layout, system)
    if layout.kind in ("multi-class", "multi-label", "labelled"):
        return lambda row: _label_row(row, layout)
    if layout.kind == "scored-pairs":
        return lambda row: _pair_row(row, layout)
    return lambda row: _ranking_row(row, layout)


def _problem(row: RawRow, code: str, message: str, hint: str | None = None) -> RowProblem:
    return RowProblem(code, message, file=row.file, line=row.line, hint=hint)


def _text(row: RawRow, role: str, expression: str) -> str:
    try:
        text = text_at(row.value, expression)
    except Missing as error:
        raise _problem(row, "missing-field", f"there is no {role} ({expression}): {error}") from None
    if not text.strip():
        raise _problem(row, "empty-text", f"the {role} ({expression}) is empty")
    return text


def _group(row: RawRow, layout: Layout) -> str | None:
    return _text(row, "group", layout.columns["group"]) if "group" in layout.columns else None


def _label_row(row: RawRow, layout: Layout) -> LabelRow:
    text = _text(row, "text", layout.columns["text"])
    pair = _text(row, "pair", layout.columns["pair"]) if "pair" in layout.columns else None
    expression = layout.columns.get("labels") or layout.columns["label"]
    labels = _labels_at(row, expression, layout)
    key = content_digest([text, pair])
    whole = content_digest([text, pair, sorted(labels)])
    return LabelRow(text, labels, row.file, row.line, whole, key, pair, _group(row, layout))


def _labels_at(row: RawRow, expression: str, layout: Layout) -> tuple[str, ...]:
    parts = parts_of(expression, list(row.value))
    if len(parts) > 1:
        cells = {part: is_hot(_value(row, part)) for part in parts}
        odd = next((part for part, hot in cells.items() if hot is None), None)
        if odd is not None:
            raise _problem(
                row,
                "bad-label",
                f"the column {odd} holds neither 0 nor 1: {_value(row, odd)!r}",
                "label columns hold 0 or 1 (true or false) in every row",
            )
        return tuple(part for part, hot in cells.items() if hot)
    value = _value(row, expression)
    many = layout.kind == "multi-label"
    if isinstance(value, str) and many:
        value = _split(value, layout.delimiter)
    if isinstance(value, (list, tuple)):
        labels = tuple(dict.fromkeys(_name(row, one) for one in value))
        if not many and len(labels) != 1:
            raise _problem(
                row,
                "several-labels" if labels else "missing-label",
                f"{expression} holds {len(labels)} labels, and one is wanted",
                "keep one label a row"
                if layout.kind == "labelled"
                else "set task: multi-label-classification, or keep one label a row",
            )
        return labels
    if value is None or (isinstance(value, str) and not value.strip()):
        raise _problem(row, "missing-label", f"there is no label ({expression})")
    return (_name(row, value),)


def _split(text: str, delimiter: str | None) -> Any:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            inner = text.strip().strip("[]")  # a Python list, as pandas writes it
            return [part.strip().strip("'\"") for part in inner.split(",") if part.strip()]
    if text.strip().lower() in NO_LABEL:
        return []
    return [part.strip() for part in text.split(delimiter) if part.strip()] if delimiter else [text.strip()]


def _name(row: RawRow, value: Any) -> str:
    """A label as text; 3.0, as tables with gaps hold it, is 3."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (str, int, float)):
        name = as_text(value).strip()
        if name:
            return name
    raise _problem(row, "bad-label", f"a label is {value!r}", "labels are texts or numbers")


def _value(row: RawRow, expression: str) -> Any:
    try:
        return value_at(row.value, expression) if "{" not in expression else text_at(row.value, expression)
    except Missing:
        return None


def _pair_row(row: RawRow, layout: Layout) -> PairRow:
    columns = layout.columns
    first, second = _text(row, "first", columns["first"]), _text(row, "second", columns["second"])
    value = _value(row, columns["score"])
    score = as_number(value)
    if score is None:
        raise _problem(
            row, "bad-score", f"the score ({columns['score']}) is no number: {value!r}",
            "write a number, 0 to 1 or 0 to 5 for example, the same way in every row",
        )  # fmt: skip
    key = content_digest(sorted([first, second]))
    whole = content_digest([first, second, score])
    return PairRow(first, second, score, row.file, row.line, whole, key, _group(row, layout))


def _ranking_row(row: RawRow, layout: Layout) -> RankingRow:
    columns = layout.columns
    query = _text(row, "query", columns["query"])
    positives = tuple(_texts_at(row, columns["positive"], required=True))
    found = (
        _texts_at(row, columns["negative"], required=layout.kind == "triplets")
        if "negative" in columns
        else []
    )
    negatives = tuple(found)
    both = next((text for text in negatives if text in positives), None)
    if both is not None:
        raise _problem(
            row, "negative-is-positive", f"a text is positive and negative at once: {both[:60]!r}",
            "keep it on one side",
        )  # fmt: skip
    whole = content_digest([query, sorted(positives), sorted(negatives)])
    return RankingRow(
        query, positives, negatives, row.file, row.line, whole, content_digest(query), _group(row, layout)
    )


def _texts_at(row: RawRow, expression: str, *, required: bool) -> list[str]:
    """Texts of one column (a text or a list) or of several."""
    texts: list[str] = []
    for part in parts_of(expression, list(row.value)):
        value = _value(row, part)
        for one in value if isinstance(value, list) else [value]:
            text = document_text(one)
            if text and text.strip():
                texts.append(text)
            elif isinstance(value, list):  # an empty cell is a gap of a table; an entry was meant
                raise _problem(
                    row, "empty-text", f"a text of the list {part} is empty", "fill it in, or take it out"
                )
    if required and not texts:
        raise _problem(row, "empty-text", f"there is no text in {expression}")
    return list(dict.fromkeys(texts))


def document_text(value: Any) -> str | None:
    """A text, or a document with title and text, which are joined by a space as BEIR does."""
    if isinstance(value, dict):
        parts = [value.get("title"), value.get("text", value.get("contents", value.get("content")))]
        return " ".join(part.strip() for part in parts if isinstance(part, str) and part.strip()) or None
    return None if value is None else as_text(value)


def _preference_row(row: RawRow, layout: Layout, system: str | None) -> PreferenceRow:
    columns = layout.columns
    chosen = _answers(row, "chosen", columns["chosen"])
    rejected = _answers(row, "rejected", columns["rejected"])
    prompt = _asked(row, columns["prompt"]) if "prompt" in columns else []
    if prompt and chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif not prompt:
        same = next(
            (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
            min(len(chosen), len(rejected)),
        )
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    if chosen == rejected:
        raise _problem(
            row, "no-preference", "the chosen and the rejected answer are the same", "remove the row"
        )
    if not prompt:
        raise _problem(
            row, "empty-prompt", "there is no prompt before the two answers", "add it, or remove the row"
        )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not any(m["role"] == "assistant" and (m["content"] or m.get("tool_calls")) for m in answer):
            raise _problem(
                row, "empty-answer", f"the {name} answer is empty", "fill it in, or remove the row"
            )
    first = (
        _text(row, "system", columns["system"]) if row.value.get(columns.get("system", "")) else None
    ) or system
    if first and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": first}, *prompt]
    tools = None
    if "tools" in columns:
        tools = normalise_tools(_value(row, columns["tools"]), file=row.file, line=row.line)
    return PreferenceRow(
        prompt,
        chosen,
        rejected,
        row.file,
        row.line,
        content_digest([prompt, chosen, rejected, tools]),
        content_digest(prompt),
        tools,
        _group(row, layout),
    )


def _asked(row: RawRow, expression: str) -> list[Message]:
    value = _value(row, expression)
    if isinstance(value, list):
        return normalise_messages(value, file=row.file, line=row.line)
    text = _text(row, "prompt", expression)
    return _transcript(text) or [{"role": "user", "content": text}]


def _answers(row: RawRow, role: str, expression: str) -> list[Message]:
    value = _value(row, expression)
    if isinstance(value, list):
        return normalise_messages(value, file=row.file, line=row.line)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return normalise_messages([value], file=row.file, line=row.line)
    text = _text(row, role, expression)
    return _transcript(text) or [{"role": "assistant", "content": text}]


def _transcript(text: str) -> list[Message]:
    r"""Turns of a text in the form ``\n\nHuman: ... \n\nAssistant: ...``; none where it is a plain text."""
    if not text.startswith("\n\nHuman:"):
        return []
    pieces = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]

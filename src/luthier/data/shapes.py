"""Rows of any sane shape into conversations: detection, column mapping, and what is wrong with a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Any

from luthier.data.columns import Missing, check_expression, text_at, value_at
from luthier.data.messages import (
    RowProblem,
    check_messages,
    half_letter,
    normalise_messages,
    normalise_tools,
    row_id,
)
from luthier.data.read import RawRow
from luthier.errors import DataError, LuthierError, RecipeError, did_you_mean
from luthier.schema.protocols import ChatRow, Message

ROLES = ("messages", "system", "prompt", "input", "completion", "text", "tools", "group")
ALIASES = {
    "conversations": "messages",
    "conversation": "messages",
    "user": "prompt",
    "instruction": "prompt",
    "question": "prompt",
    "context": "input",
    "assistant": "completion",
    "response": "completion",
    "output": "completion",
    "answer": "completion",
    "functions": "tools",
}
"""Other words for the roles of ``data.columns``."""

_ANSWERED = ("prompt", "input", "completion", "system", "tools", "group")
_USED = {
    "messages": ("messages", "system", "tools", "group"),
    "sharegpt": ("messages", "system", "tools", "group"),
    "text": ("text", "group"),
    **dict.fromkeys(("alpaca", "prompt-completion", "input-output"), _ANSWERED),
}
"""Roles that each shape uses: another one would be ignored, so it is refused."""
_LOOKED_AT = 50
_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("problem", "solution"),
    ("user", "assistant"),
)
_INSTRUCTIONS = ("output", "response", "completion", "answer")
_CONTEXTS = ("context", "passage", "choices", "options", "endings", "document", "hint", "article")
_TEXTS = ("text", "content", "document")
_NO_TEXT_BESIDE = ("_id", "label", "labels", "score", "code", "summary", "target")
MOST_SHOWN = 5
"""How many broken rows one error names."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows are read: the format's name and, for each role, a path or template."""

    name: str
    columns: dict[str, str] = field(default_factory=dict)


def detect(
    rows: Sequence[RawRow],
    *,
    format: str | None = None,  # noqa: A002 - the recipe's own word
    columns: dict[str, str] | None = None,
) -> Shape:
    """Tell the shape of rows by their first ones; ``columns`` (role -> path or template) wins.

    Raises RecipeError for an unknown role, DataError where a column is missing or no shape fits.
    """
    if not rows:
        raise DataError("there is no row to tell the shape from", hint="give a file with rows")
    wanted = _roles(columns or {})
    names = list(dict.fromkeys(chain.from_iterable(row.value for row in rows[:_LOOKED_AT])))
    for role, expression in wanted.items():
        check_expression(role, expression, names)
    guess = _by_columns(wanted) or (_by_format(format, names, rows) if format else _guess(names, rows))
    if guess is None:
        raise DataError(
            f"cannot tell what the rows are: their columns are {', '.join(names) or 'none'}",
            file=rows[0].file,
            line=rows[0].line,
            hint=_mapping_hint(names, rows[0].value),
        )
    used = _USED[guess.name]
    for written, role in zip(columns or {}, wanted, strict=True):
        if role not in used:
            raise RecipeError(
                f"data.columns.{written} is not used: the rows are read as {guess.name}",
                hint=f"remove it; {guess.name} uses {', '.join(used)}",
            )
    shape = Shape(guess.name, {**guess.columns, **wanted})
    if shape.name == "prompt-completion" and "input" in shape.columns:
        shape = Shape("alpaca", shape.columns)
    return shape


def _roles(columns: dict[str, str]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for written, expression in columns.items():
        role = ALIASES.get(written, written)
        if role not in ROLES:
            raise RecipeError(
                f"data.columns.{written} is not a role",
                hint=did_you_mean(written, (*ROLES, *ALIASES)) or f"roles are {', '.join(ROLES)}",
            )
        roles[role] = expression
    return roles


def _by_columns(wanted: dict[str, str]) -> Shape | None:
    if "messages" in wanted:
        return Shape("messages")
    if "prompt" in wanted and "completion" in wanted:
        return Shape("alpaca" if "input" in wanted else "prompt-completion")
    if "text" in wanted:
        return Shape("text")
    return None


def _by_format(name: str, names: list[str], rows: Sequence[RawRow]) -> Shape:
    if name in ("messages", "sharegpt"):
        found = _chat_column(names, rows)
        guess = Shape(name, {"messages": found[0]}) if found else None
    elif name == "alpaca":
        guess = _alpaca(names)
    elif name == "text":
        column = next((text for text in _TEXTS if text in names), None)
        guess = Shape("text", {"text": column}) if column else None
    else:
        guess = _pair(names)
    if guess is None:
        raise DataError(
            f"the rows are not in the format {name!r}: their columns are {', '.join(names) or 'none'}",
            file=rows[0].file,
            line=rows[0].line,
            hint=_mapping_hint(names, rows[0].value),
        )
    return Shape(name, {**_extras(names), **guess.columns})


def _guess(names: list[str], rows: Sequence[RawRow]) -> Shape | None:
    chat = _chat_column(names, rows)
    if chat:
        return Shape(chat[1], {**_extras(names), "messages": chat[0]})
    guess = _alpaca(names) or _pair(names)
    if guess and "input" not in guess.columns:
        # A passage or choices left out would train on questions that nobody can answer.
        left_out = [name for name in names if name.lower() in _CONTEXTS]
        answer = next((row.value.get(guess.columns["completion"]) for row in rows), None)
        several_answers = isinstance(answer, list) and all(isinstance(one, str) for one in answer)
        if left_out or several_answers:
            return None
    if guess:
        return Shape(guess.name, {**_extras(names), **guess.columns})
    text = next((name for name in names if name.lower() in _TEXTS), None)
    if text and not any(
        name.lower() in _NO_TEXT_BESIDE or name.lower() in _TEXTS[1:] for name in names if name != text
    ):
        return Shape("text", {"text": text})
    return None


def _chat_column(names: list[str], rows: Sequence[RawRow]) -> tuple[str, str] | None:
    lower = {name.lower(): name for name in names}
    for word in _CHATS:
        for row in rows[:_LOOKED_AT]:
            value = row.value.get(lower.get(word, word))
            if isinstance(value, list) and value and isinstance(value[0], dict):
                shape = "sharegpt" if "from" in value[0] and "role" not in value[0] else "messages"
                return lower.get(word, word), shape
    # An empty or broken list in every row looked at: say so row by row rather than "unknown shape".
    return (lower["messages"], "messages") if "messages" in lower else None


def _alpaca(names: list[str]) -> Shape | None:
    lower = {name.lower(): name for name in names}
    if "instruction" not in lower:
        return None
    answer = next((lower[name] for name in _INSTRUCTIONS if name in lower), None)
    if answer is None:
        return None
    columns = {"prompt": lower["instruction"], "completion": answer}
    context = next((lower[name] for name in ("input", "context") if name in lower), None)
    return Shape("alpaca", {**columns, "input": context} if context else columns)


def _pair(names: list[str]) -> Shape | None:
    lower = {name.lower(): name for name in names}
    for prompt, completion in _PAIRS:
        if prompt in lower and completion in lower:
            name = "input-output" if prompt == "input" else "prompt-completion"
            return Shape(name, {"prompt": lower[prompt], "completion": lower[completion]})
    return None


def _extras(names: list[str]) -> dict[str, str]:
    lower = {name.lower(): name for name in names}
    found = {"system": ("system", "system_prompt"), "tools": ("tools", "functions")}
    return {
        role: next(lower[word] for word in words if word in lower)
        for role, words in found.items()
        if any(word in lower for word in words)
    }


def _mapping_hint(names: list[str], value: dict[str, Any]) -> str:
    """A mapping to start from, in the rows' own names."""
    lower = {name.lower(): name for name in names}
    question = next(
        (lower[n] for n in ("question", "prompt", "query", "ctx", "text", "input") if n in lower), None
    )
    context = next((lower[n] for n in ("context", "passage", "document", "article") if n in lower), None)
    choices = next((n for n in names if isinstance(value.get(n), list) and n.lower() in _CONTEXTS), None)
    index = next(
        (n for n in names if n.lower() in ("answer", "label") and isinstance(value.get(n), int)), None
    )
    answer = f"{choices}[{index}]" if choices and index else None
    if "answers" in lower and isinstance(value.get(lower["answers"]), dict):
        answer = f"{lower['answers']}.text[0]"
    elif "answers" in lower and isinstance(value.get(lower["answers"]), list):
        answer = f"{lower['answers']}[0]"
    answer = answer or next(
        (
            lower[n]
            for n in ("answer", "output", "completion", "code", "caption", "label", "final")
            if n in lower
        ),
        None,
    )
    parts = [f"{{{name}}}" for name in (context, question, choices) if name]
    prompt = parts[0][1:-1] if len(parts) == 1 else '"' + "\\n\\n".join(parts) + '"'
    asked = prompt if parts else "YOUR_COLUMN"
    example = f"data.columns: {{prompt: {asked}, completion: {answer or 'YOUR_COLUMN'}}}"
    hint = f"map them, for example {example}"
    if {"label", "labels"} & set(lower):
        hint += "; rows with labels are for the classification tasks"
    elif {"anchor", "sentence1", "positive", "query-id"} & set(lower):
        hint += "; pairs and triplets of texts are for the similarity and reranking tasks"
    elif "image" in lower:
        hint = "rows with images are for models that see (the recipe's section `vision: {}`); " + hint
    elif question and len(names) == 1:
        hint = "for plain text set data.format: text; " + hint
    return hint


def to_chat(row: RawRow, shape: Shape, *, system: str | None = None) -> ChatRow:
    """One row as a conversation. Raises RowProblem, with file and line."""
    columns = shape.columns
    tools = group = None
    if shape.name == "text":
        text = _text(row, "text", columns["text"])
        if not text.strip():
            raise _problem(row, "empty-text", "the text is empty", "remove the row")
        messages: list[Message] = [{"role": "text", "content": text}]
    else:
        messages = _messages(row, shape)
        prompt = _optional(row, columns.get("system")) or system
        if prompt and messages and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": prompt})
        check_messages(messages, file=row.file, line=row.line)
        if "tools" in columns:
            value = row.value.get(columns["tools"])
            tools = normalise_tools(value, file=row.file, line=row.line)
    if "group" in columns:
        group = _text(row, "group", columns["group"])
    try:
        content = row_id(messages, tools)
    except UnicodeEncodeError:
        raise half_letter(row.file, row.line) from None
    return ChatRow(messages, row.file, row.line, content, tools, group)


def _messages(row: RawRow, shape: Shape) -> list[Message]:
    columns = shape.columns
    if shape.name in ("messages", "sharegpt"):
        try:
            value = value_at(row.value, columns["messages"])
        except Missing as error:
            raise _problem(
                row, "missing-field", f"there are no messages: {error}", "fill it in, or remove the row"
            ) from None
        return normalise_messages(value, file=row.file, line=row.line)
    prompt = _text(row, "prompt", columns["prompt"])
    extra = _optional(row, columns.get("input"))
    if extra and extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    completion = _text(row, "completion", columns["completion"])
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def _text(row: RawRow, role: str, expression: str) -> str:
    try:
        return text_at(row.value, expression)
    except Missing as error:
        raise _problem(
            row,
            "missing-field",
            f"there is no {role} ({expression}): {error}",
            "fill it in, or remove the row",
        ) from None


def _optional(row: RawRow, expression: str | None) -> str | None:
    if expression is None:
        return None
    try:
        return text_at(row.value, expression)
    except Missing:
        return None


def _problem(row: RawRow, code: str, message: str, hint: str) -> RowProblem:
    return RowProblem(code, message, file=row.file, line=row.line, hint=hint)


def map_rows(
    rows: Iterable[RawRow],
    *,
    format: str | None = None,  # noqa: A002 - the recipe's own word
    columns: dict[str, str] | None = None,
    system: str | None = None,
    on_problem: Callable[[LuthierError], None] | None = None,
    convert: Callable[..., ChatRow] | None = None,
) -> tuple[Shape, Iterator[ChatRow]]:
    """Detect the shape of a stream of rows and map them all.

    convert: what makes a conversation of a row in place of `to_chat`, asked as that is.

    on_problem is told of each row that cannot be used, which is then left out; without it all rows
    are read to the end and one DataError names the first several and the count.
    """
    stream = iter(rows)
    first = list(islice(stream, _LOOKED_AT))
    shape = detect(first, format=format, columns=columns)
    wanted = _Wanted(format, columns or {}, system, convert or to_chat)
    return shape, _mapped(chain(first, stream), wanted, on_problem)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the user said of the rows."""

    format: str | None
    columns: dict[str, str]
    system: str | None
    convert: Callable[..., ChatRow]


def _mapped(
    rows: Iterable[RawRow], wanted: _Wanted, on_problem: Callable[[LuthierError], None] | None
) -> Iterator[ChatRow]:
    problems: list[LuthierError] = []
    report = on_problem or problems.append
    for shape, row in by_file(rows, format=wanted.format, columns=wanted.columns):
        try:
            chat = wanted.convert(row, shape, system=wanted.system)
        except RowProblem as error:
            report(error)
            continue
        yield chat
    if problems:
        raise several(problems)


def by_file(
    rows: Iterable[RawRow],
    *,
    format: str | None = None,  # noqa: A002 - the recipe's own word
    columns: dict[str, str] | None = None,
) -> Iterator[tuple[Shape, RawRow]]:
    """Each row with the shape of its file: files of different shapes can be read together.

    Raises DataError at the first file whose shape cannot be told.
    """
    for _, group in groupby(rows, key=lambda row: row.file):
        first = list(islice(group, _LOOKED_AT))
        shape = detect(first, format=format, columns=columns)
        for row in chain(first, group):
            yield shape, row


def several(problems: Sequence[LuthierError], count: int | None = None) -> DataError:
    """One error that names the first several broken rows and how many there are (count, if more)."""
    first, count = problems[0], count or len(problems)
    if count == 1:
        return DataError(first.message, file=first.file, line=first.line, hint=first.hint)
    shown = "\n".join(f"  {problem}" for problem in problems[:MOST_SHOWN])
    more = count - MOST_SHOWN
    rest = f"\n  and {more} more" if more > 0 else ""
    hints = list(dict.fromkeys(problem.hint for problem in problems[:MOST_SHOWN] if problem.hint))
    return DataError(
        f"{count} rows cannot be used:\n{shown}{rest}",
        hint="; ".join([*hints, "`luthier data check FILE` lists them all"]),
    )

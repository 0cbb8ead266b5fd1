"""Rows into tokens with the exact mask of what is trained, through the model's own chat template."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from luthier.data.images import image_parts
from luthier.data.messages import RowProblem
from luthier.data.turns import Turn, find_turns
from luthier.errors import DataError, LuthierError
from luthier.schema.protocols import ChatRow, Message, TextTokenizer, TokenRow
from luthier.schema.recipe import TrainOn

_AT_ONCE = 256
"""Rows that are tokenised in one call, so the library can use all cores."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row's text with the characters that carry loss."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """[start, end) of each trained stretch, in order."""
    closed: bool
    """Whether the template itself ends the last trained turn with an end token; if not, one was added."""
    prefix_ids: tuple[int, ...] = ()
    """Tokens before the text (plain text only; templates write their own)."""


def render_row(row: ChatRow, tokenizer: TextTokenizer, train_on: TrainOn = "assistant") -> TokenRow:
    """Render one row. ids: [tokens] int32; trained: [tokens] bool.

    Raises RowProblem, with file and line, where the template refuses the row or loses a part of it,
    and Unsupported where the model has no chat template.
    """
    return _tokens([(row, render_text(row, tokenizer, train_on))], tokenizer)[0]


def render_rows(
    rows: Iterable[ChatRow],
    tokenizer: TextTokenizer,
    train_on: TrainOn = "assistant",
    *,
    on_problem: Callable[[LuthierError], None] | None = None,
) -> Iterator[TokenRow]:
    """Render rows in order. Rows that cannot be rendered are told to on_problem, or raised without it."""
    stream = iter(rows)
    while part := list(islice(stream, _AT_ONCE)):
        ready = []
        for row in part:
            try:
                ready.append((row, render_text(row, tokenizer, train_on)))
            except RowProblem as error:
                if on_problem is None:
                    raise
                on_problem(error)
        yield from _tokens(ready, tokenizer)


def prompt_ids(
    messages: Sequence[Message],
    tokenizer: TextTokenizer,
    tools: Sequence[dict[str, Any]] | None = None,
) -> list[int]:
    """Token ids to generate from: the chat up to its last turn, and the header of the answer."""
    if messages and messages[0]["role"] == "text":
        text = "".join(message["content"] for message in messages)
        return [*getattr(tokenizer, "prefix_ids", ()), *tokenizer.encode(text)]
    return tokenizer.encode(tokenizer.render(messages, tools=tools, add_generation_prompt=True))


def prompt_of(row: ChatRow) -> list[Message]:
    """The turns before the last assistant turn: what a model is asked in a test."""
    last = max(index for index, message in enumerate(row.messages) if message["role"] == "assistant")
    return row.messages[:last]


def render_text(row: ChatRow, tokenizer: TextTokenizer, train_on: TrainOn = "assistant") -> Rendered:
    """Text and trained stretches of a row. Errors as render_row."""
    if row.messages and row.messages[0]["role"] == "text":
        return _plain(row, tokenizer)
    try:
        text = tokenizer.render(row.messages, tools=row.tools)
        turns = find_turns(row.messages, row.tools, tokenizer, text)
    except DataError as error:
        raise RowProblem(
            "template-refuses", error.message, file=row.file, line=row.line, hint=error.hint
        ) from error
    _demand_tool_calls(row, text, turns)
    chosen = _chosen(row, turns, train_on)
    closed = True
    if chosen and not chosen[-1].closed and chosen[-1].message == len(row.messages) - 1:
        # A template that never ends an answer would teach a model never to stop.
        closed = False
        last = chosen[-1]
        ending = _ending(tokenizer)
        text = text[: last.end] + ending
        chosen[-1] = Turn(last.message, last.start, len(text), closed=True)
    spans = ((0, len(text)),) if train_on == "all" else tuple((turn.start, turn.end) for turn in chosen)
    return Rendered(text, spans, closed)


def _chosen(row: ChatRow, turns: list[Turn], train_on: TrainOn) -> list[Turn]:
    """Turns that carry loss. A turn of weight 0 (OpenAI's field) never does."""
    if train_on == "last":
        turns = turns[-1:]
    elif train_on == "completion":
        # The answer to the last question, with the tool calls on the way to it.
        asked = max((i for i, m in enumerate(row.messages) if m["role"] == "user"), default=-1)
        turns = [turn for turn in turns if turn.message > asked] or turns[-1:]
    return [
        turn
        for turn in turns
        if row.messages[turn.message].get("weight", 1) != 0
        and row.messages[turn.message].get("train") is not False
    ]


def _plain(row: ChatRow, tokenizer: TextTokenizer) -> Rendered:
    """Texts one after the other and the end token, without a template; weight 0 is not trained."""
    text, spans = "", []
    for message in row.messages:
        start = len(text)
        text += message["content"] + (_ending(tokenizer) if message is row.messages[-1] else "")
        if message.get("weight", 1) != 0:
            spans.append((start, len(text)))
    return Rendered(text, tuple(spans), closed=True, prefix_ids=getattr(tokenizer, "prefix_ids", ()))


def _ending(tokenizer: TextTokenizer) -> str:
    """Text of the token that ends a text: the tokenizer's own eos, or the first known end token."""
    named = getattr(tokenizer, "special_tokens", {}).get("eos_token")
    if named is not None:
        return str(named)
    if not tokenizer.eos_ids:
        raise DataError(
            "the tokenizer names no end token",
            hint="set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json",
        )
    return tokenizer.decode([min(tokenizer.eos_ids)], skip_special=False)


def _demand_tool_calls(row: ChatRow, text: str, turns: list[Turn]) -> None:
    """Refuse a template that says nothing of a turn's tool calls: an empty answer would be trained."""
    for turn in turns:
        written = text[turn.start : turn.end]
        wanted = Counter(
            call["function"]["name"] for call in row.messages[turn.message].get("tool_calls") or ()
        )
        if any(name not in written for name in wanted):
            raise RowProblem(
                "tool-calls-lost",
                f"the model's chat template does not write tool calls (message {turn.message + 1})",
                file=row.file,
                line=row.line,
                hint="choose a model whose template knows tools, or write the calls into the "
                "assistant's content as text",
            )
        if any(written.count(name) < count for name, count in wanted.items()):
            raise RowProblem(
                "tool-calls-lost",
                f"the model's chat template writes only one of the {wanted.total()} calls of message "
                f"{turn.message + 1}",
                file=row.file,
                line=row.line,
                hint="put each call into a turn of its own, followed by its result",
            )


def _tokens(ready: Sequence[tuple[ChatRow, Rendered]], tokenizer: TextTokenizer) -> list[TokenRow]:
    encoded = tokenizer.encode_offsets([rendered.text for _, rendered in ready])
    never = sorted(getattr(tokenizer, "untrained_ids", ()))
    rows = []
    for (row, rendered), (ids, offsets) in zip(ready, encoded, strict=True):
        trained = np.zeros(len(rendered.prefix_ids) + len(ids), dtype=np.bool_)
        for start, end in rendered.spans:
            first, last = _covering(offsets, start, end)
            trained[len(rendered.prefix_ids) + first : len(rendered.prefix_ids) + last] = True
        full = np.array([*rendered.prefix_ids, *ids], dtype=np.int32)
        if never:
            trained &= ~np.isin(full, never)
        images = tuple(part["image"] for part in image_parts(row.messages))
        rows.append(TokenRow(full, trained, row.file, row.line, row.id, images))
    return rows


def _covering(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Tokens [first, last) that hold any character of [start, end).

    A token across a border (a space of the template with the answer's first word) is trained: the
    model has to write it.
    """
    first = bisect_right(offsets, start, key=lambda pair: pair[1])
    last = bisect_left(offsets, end, lo=first, key=lambda pair: pair[0])
    return first, last

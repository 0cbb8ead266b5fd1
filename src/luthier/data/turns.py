"""Where each assistant turn stands in a rendered chat, to the character.

Templates are programs: they trim contents, drop reasoning of earlier turns, move tools to the last
question, close the last turn differently. So nothing is assumed of their text. The chat is rendered
twice, once as it is and once with private-use characters at the borders of every content; where
taking those out gives the plain rendering again, their places are the places of the contents. What
stands between two contents is then parted with the help of the prompt that the template itself
writes before a turn: what the model would be given is not trained, what it would have to write is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from luthier.errors import DataError
from luthier.schema.protocols import Message, TextTokenizer

_BASE = 0xF0000
"""First code point of the supplementary private use area: two marks a message, 32,767 messages."""
_MARK = re.compile("[\U000f0000-\U000ffffd]")

_OPEN_TAG = re.compile(r"[<\[][^<>\[\]\s]{0,40}$")


@dataclass(frozen=True, slots=True)
class Turn:
    """Characters [start, end) that the model has to write for one assistant message."""

    message: int
    """Index into the messages."""
    start: int
    end: int
    closed: bool
    """Whether an end token of the template stands in it."""


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat with its rendering."""

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None
    tokenizer: TextTokenizer
    text: str

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        return self.tokenizer.render(messages, tools=self.tools, add_generation_prompt=prompt)

    def try_render(self, messages: Sequence[Message], *, prompt: bool = False) -> str | None:
        """None where the template refuses these messages, as many do with a part of a chat."""
        try:
            return self.render(messages, prompt=prompt)
        except DataError:
            return None


@dataclass(frozen=True, slots=True)
class _Anchors:
    """Message -> place of the first and after the last character of its content; as far as known."""

    starts: dict[int, int]
    ends: dict[int, int]


def find_turns(
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None,
    tokenizer: TextTokenizer,
    text: str,
) -> list[Turn]:
    """Find the assistant turns in ``text``, which is ``tokenizer.render(messages, tools=tools)``.

    Raises DataError where the template leaves no trace of a turn.
    """
    chat = _Chat(messages, tools, tokenizer, text)
    anchors = _anchors(chat)
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _start(index, chat, anchors)
        end, closed = _end(index, chat, anchors, start)
        if turns and start < turns[-1].end:
            raise _lost(index)
        turns.append(Turn(index, start, end, closed))
    return turns


def _lost(index: int) -> DataError:
    return DataError(
        f"cannot tell the assistant's tokens: the chat template changes message {index + 1} too much",
        hint="train on everything with data.train_on: all, or choose a model with another template",
    )


def _anchors(chat: _Chat) -> _Anchors:
    """Places of contents. Fewer marks are tried where a template looks at contents and so reacts to them."""
    if _MARK.search(chat.text):
        raise DataError(
            "the text holds characters of the private use area U+F0000",
            hint="remove them; they have no meaning outside one font",
        )
    answers = {index for index, message in enumerate(chat.messages) if message["role"] == "assistant"}
    everything = set(range(len(chat.messages)))
    for opened, closed in ((everything, everything), (answers, answers), (set(), answers)):
        marked = [_marked(m, i, i in opened, i in closed) for i, m in enumerate(chat.messages)]
        rendered = chat.try_render(marked)
        if rendered is not None and _MARK.sub("", rendered) == chat.text:
            return _places(rendered)
    return _Anchors({}, {})


def _places(rendered: str) -> _Anchors:
    """Places in the text without marks."""
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for taken, match in enumerate(_MARK.finditer(rendered)):
        index, closes = divmod(ord(match[0]) - _BASE, 2)
        place = match.start() - taken
        if closes:
            ends[index] = place
        else:
            starts.setdefault(index, place)
    return _Anchors(starts, ends)


def _marked(message: Message, index: int, opens: bool, closes: bool) -> Message:
    """A copy with marks around the text of content, reasoning and names of called tools."""
    before = chr(_BASE + 2 * index) if opens else ""
    after = chr(_BASE + 2 * index + 1) if closes else ""
    if not before and not after:
        return message

    def mark(text: str) -> str:
        body = text.strip()
        if not body:
            return text
        # Inside the white space: many templates trim, and must do so to the marked text too.
        lead = text.index(body)
        return f"{text[:lead]}{before}{body}{after}{text[lead + len(body) :]}"

    copy = dict(message)
    for name in ("reasoning_content", "thinking", "reasoning", "content"):
        if isinstance(copy.get(name), str):
            copy[name] = mark(copy[name])
    if copy.get("tool_calls"):
        copy["tool_calls"] = [
            {**call, "function": {**call["function"], "name": mark(call["function"]["name"])}}
            for call in copy["tool_calls"]
        ]
    return copy


def _start(index: int, chat: _Chat, anchors: _Anchors) -> int:
    before = chat.messages[:index]
    prompt = chat.try_render(before, prompt=True) if before else None
    if prompt is not None and chat.text.startswith(prompt):
        return len(prompt)
    place = anchors.ends.get(index - 1)
    if prompt is not None and place is not None:
        # The chat's beginning is rendered differently now. Its end, from the last content on, is
        # what counts: as far as the full text agrees with it, the model is given that text.
        previous = _marked(before[-1], index - 1, opens=False, closes=True)
        part = chat.try_render([*before[:-1], previous], prompt=True) or ""
        mark = part.rfind(chr(_BASE + 2 * (index - 1) + 1))
        if mark >= 0:
            content = anchors.starts.get(index, len(chat.text))
            header = _header(before, chat)
            found = chat.text.rfind(header, place, content) if header else -1
            agreed = place + _whole_tags(chat.text[place:], part[mark + 1 :])
            # A prompt that goes on in words may share the first letters of the answer.
            agreed = min(agreed, content)
            return max(agreed, found + len(header)) if found >= 0 else agreed
    if index in anchors.starts:
        return anchors.starts[index]
    if prompt is not None:
        agreed = _agreement(chat.text, prompt)
        if agreed >= len(chat.render(before)):
            return agreed
    raise _lost(index)


def _agreement(one: str, other: str) -> int:
    """Length of the common beginning."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def _header(before: Sequence[Message], chat: _Chat) -> str:
    """What the template adds to a chat to ask for an answer."""
    asked, bare = chat.try_render(before, prompt=True) or "", chat.try_render(before) or ""
    return asked[len(bare) :] if bare and asked.startswith(bare) else ""


def _whole_tags(text: str, prompt: str) -> int:
    """Agreement of a text with a prompt; where they part within ``<think>``, that tag is not common."""
    agreed = _agreement(text, prompt)
    if agreed < len(prompt):
        tag = _OPEN_TAG.search(text[:agreed])
        agreed = tag.start() if tag else agreed
    return agreed


def _end(index: int, chat: _Chat, anchors: _Anchors, start: int) -> tuple[int, bool]:
    """Place after the turn, its end token included, and whether there is one."""
    ends, specials = _enders(chat.tokenizer)
    if chat.messages[index].get("tool_calls"):
        # Marks stand around names only, and some templates repeat them in the tool's answer.
        own = _own_end(index, chat, anchors)
        if own > anchors.starts.get(index, start):
            called = anchors.ends.get(index, own)
            first = ends.search(chat.text, called, max(called, own)) if called < own else None
            # Behind the last call's end nothing is the turn's: some templates open an empty one there.
            last = first.end() if first else _last(ends, chat.text, start, own)
            if last is None:
                # The chat's last call may be closed otherwise: then the end stands a little further.
                stop = next((anchors.starts[j] for j in anchors.starts if j > index), len(chat.text))
                further = ends.search(chat.text, own, max(own, stop))
                own = own if further else _before_openers(index, chat, start, own)
                last = further.end() if further else _last(specials, chat.text, start, own)
            if last is not None:
                return last, True
            return start + len(chat.text[start:own].rstrip()), False
    after = max(anchors.ends.get(index, start), start)
    if index not in anchors.ends and index not in anchors.starts:
        after = _unmarked_end(index, chat, start)
    later = (anchors.starts[j] for j in range(index + 1, len(chat.messages)) if j in anchors.starts)
    stop = max(next(later, len(chat.text)), after)
    found = ends.search(chat.text, after, stop)
    if found is not None:
        return found.end(), True
    # No end token that the model's files name: the template's own markers, as far as they are the turn's.
    last = _last(specials, chat.text, after, _own_end(index, chat, anchors))
    if last is None and _closes(index, chat, after, specials):
        found = specials.search(chat.text, after, stop)
        last = found.end() if found else None
    return (after, False) if last is None else (last, True)


def _before_openers(index: int, chat: _Chat, start: int, own: int) -> int:
    """Place before the next turn's header, where a template writes it with the call itself."""
    _, specials = _enders(chat.tokenizer)
    opened = specials.findall(_header(chat.messages[:index], chat))
    places = (chat.text.find(text, start, own) for text in opened)
    return min((place for place in places if place > start), default=own)


def _last(pattern: re.Pattern[str], text: str, start: int, stop: int) -> int | None:
    """Place after the last match in [start, stop)."""
    return max((match.end() for match in pattern.finditer(text, start, max(start, stop))), default=None)


def _own_end(index: int, chat: _Chat, anchors: _Anchors) -> int:
    """How far the full text is what the template writes when the chat ends with this turn."""
    if index == len(chat.messages) - 1:
        return len(chat.text)
    until = chat.try_render(chat.messages[: index + 1])
    if until is not None and chat.text.startswith(until):
        return len(until)
    place = anchors.ends.get(index - 1)
    if index == 0 or place is None:
        return _agreement(chat.text, until or "")
    previous = _marked(chat.messages[index - 1], index - 1, opens=False, closes=True)
    part = chat.try_render([*chat.messages[: index - 1], previous, chat.messages[index]]) or ""
    mark = part.rfind(chr(_BASE + 2 * (index - 1) + 1))
    return place + _agreement(chat.text[place:], part[mark + 1 :]) if mark >= 0 else 0


def _unmarked_end(index: int, chat: _Chat, start: int) -> int:
    """Place after the content of a turn that took no mark (empty, or rewritten by the template)."""
    content = str(chat.messages[index].get("content") or "").strip()
    place = chat.text.find(content, start) if content else start
    if place >= 0:
        return place + len(content)
    if index == len(chat.messages) - 1:
        return start
    until = chat.try_render(chat.messages[: index + 1])
    if until is not None and chat.text.startswith(until):
        return start
    raise _lost(index)


def _closes(index: int, chat: _Chat, after: int, specials: re.Pattern[str]) -> bool:
    """Whether the template ends this turn with a special token at all: the next header is none."""
    if index == len(chat.messages) - 1:
        return specials.search(chat.text, after) is not None
    last = _marked(chat.messages[index], index, opens=False, closes=True)
    until = chat.try_render([*chat.messages[:index], last]) or ""
    mark = until.rfind(chr(_BASE + 2 * index + 1))
    return mark >= 0 and specials.search(until, mark + 1) is not None


def _enders(tokenizer: TextTokenizer) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of the texts of all end tokens, and of all special tokens."""
    ends = frozenset(tokenizer.decode([index], skip_special=False) for index in tokenizer.eos_ids)
    specials: frozenset[str] = getattr(tokenizer, "special_texts", frozenset())
    return _pattern(ends), _pattern(ends | specials)


@lru_cache(maxsize=32)
def _pattern(texts: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted((text for text in texts if text.strip()), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

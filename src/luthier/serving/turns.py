"""What a chat template writes around each turn, found by asking it, for runtimes that cannot run Jinja."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.errors import LuthierError, Unsupported
from luthier.schema.protocols import Message

Render = Callable[[Sequence[Message], bool], str]
"""(messages, whether the answer's beginning follows) -> text."""

_WORDS = ("Rowan", "Alder", "Hazel", "Maple", "Aspen", "Cedar", "Linden")
"""Stand for the contents of turns: no template writes them by itself."""


@dataclass(frozen=True, slots=True)
class Turns:
    """A template as text around contents. Written so: start, then each turn, then ``answer``."""

    start: str
    """Before everything, the BOS token not included: runtimes add it as the model file says."""
    system: tuple[str, str] | None
    """Before and after a system prompt; None where the template puts it into the first user turn."""
    glue: str
    """Between a system prompt and the user's words where they share a turn."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    """What the answer follows."""
    default_system: str | None
    """The prompt that the template adds where a conversation has none."""
    trims: bool = False
    """Whether the template strips white space around contents; what is written here does not."""

    def compose(self, messages: Sequence[Message]) -> str:
        """The text of a conversation that ends with the user."""
        parts = [self.start]
        if self.default_system is not None and messages[0]["role"] != "system" and self.system is not None:
            parts += [self.system[0], self.default_system, self.system[1]]
        shared = False
        for message in messages:
            role, content = message["role"], message["content"]
            if role == "system" and self.system is None:
                parts += [self.user[0], content, self.glue]
                shared = True
                continue
            before, after = {"system": self.system, "user": self.user, "assistant": self.assistant}[role] or (
                "",
                "",
            )
            parts += ["" if shared else before, content, after]
            shared = False
        return "".join([*parts, self.answer])


def turns_of(render: Render, *, bos: str = "") -> Turns:
    """Find what a template writes around turns, and hold the finding against it.

    Errors: Unsupported where the template does more than write text around turns.
    """
    try:
        found = _found(render, bos)
    except (_NotTurns, LuthierError) as error:
        raise Unsupported(
            f"the chat template cannot be written as text around turns: {error}",
            hint="serve it with llama.cpp, LM Studio or vLLM, which run the template itself",
        ) from None
    for conversation in _conversations():
        try:
            wanted = render(conversation, True).removeprefix(bos)
        except LuthierError:
            continue  # a template may refuse a shape of conversation; it then cannot be asked for it
        if found.compose(conversation) != wanted:
            raise Unsupported(
                "the chat template cannot be written as text around turns: it treats "
                f"{_described(conversation)} in a way of its own",
                hint="serve it with llama.cpp, LM Studio or vLLM, which run the template itself",
            )
    odd: list[Message] = [{"role": "user", "content": "  spaces around \n"}]
    trims = found.compose(odd) != render(odd, True).removeprefix(bos)
    return Turns(
        found.start, found.system, found.glue, found.user, found.assistant, found.answer,
        found.default_system, trims,
    )  # fmt: skip


class _NotTurns(Exception):
    pass


def _found(render: Render, bos: str) -> Turns:
    a, b, c, d = _WORDS[:4]
    asks: list[Message] = [{"role": "user", "content": a}]
    answers: list[Message] = [*asks, {"role": "assistant", "content": b}]
    again: list[Message] = [*answers, {"role": "user", "content": c}]
    opening, user_end = _split(render(asks, False).removeprefix(bos), a)
    _, after_user, after_answer, ending = _split(render(again, True).removeprefix(bos), a, b, c)
    assistant_end = _split(render(answers, False).removeprefix(bos), a, b)[-1]
    user_end = _common_start(user_end, after_user, ending)
    assistant_end = _common_start(assistant_end, after_answer)
    if after_answer.endswith(opening) and assistant_end.startswith(after_answer.removesuffix(opening)):
        assistant_end = after_answer.removesuffix(opening)  # the cut between two turns falls between marks
    user_start = after_answer.removeprefix(assistant_end)
    if not opening.endswith(user_start):
        raise _NotTurns("the first user turn begins otherwise than the second")
    lead = opening.removesuffix(user_start)
    assistant = (after_user.removeprefix(user_end), assistant_end)
    turns = Turns(lead, None, "", (user_start, user_end), assistant, ending.removeprefix(user_end), None)
    try:
        text = render([{"role": "system", "content": d}, *asks], False).removeprefix(bos)
    except LuthierError:  # the template refuses system prompts
        return turns
    before, between, _ = _split(text, d, a)
    if not between.endswith(user_start):  # the system prompt stands in the user's turn
        if before != lead + user_start:
            raise _NotTurns("a system prompt stands in a place of its own")
        return Turns(lead, None, between, turns.user, assistant, turns.answer, None)
    system_end = between.removesuffix(user_start)
    if lead.startswith(before) and system_end and lead.endswith(system_end) and lead != before:
        default = lead.removeprefix(before).removesuffix(system_end)
        return Turns("", (before, system_end), "", turns.user, assistant, turns.answer, default)
    if not before.startswith(lead):
        raise _NotTurns("a system prompt changes what stands before it")
    system = (before.removeprefix(lead), system_end)
    return Turns(lead, system, "", turns.user, assistant, turns.answer, None)


def _split(text: str, *words: str) -> list[str]:
    """Text around words that each stand in it once, in order."""
    parts = []
    for word in words:
        if text.count(word) != 1:
            raise _NotTurns("it writes a content twice, or not at all")
        before, _, text = text.partition(word)
        parts.append(before)
    return [*parts, text]


def _common_start(first: str, *others: str) -> str:
    """The longest beginning of the first that all others begin with."""
    for size in range(len(first), -1, -1):
        if all(other.startswith(first[:size]) for other in others):
            return first[:size]
    raise AssertionError


def _conversations() -> list[list[Message]]:
    def said(*turns: str) -> list[Message]:
        names = {"s": "system", "u": "user", "a": "assistant"}
        return [{"role": names[turn[0]], "content": turn[2:]} for turn in turns]

    return [
        said("u:Hello"),
        said("s:Be brief.", "u:Hello"),
        said("u:One", "a:Two", "u:Three", "a:Four", "u:Five"),
        said("s:Be kind,\nalways.", "u:First\n\nline", 'a:{"a": [1, 2]}', "u:zweite Zeile äöü 漢字 🙂"),
    ]


def _described(conversation: Sequence[Message]) -> str:
    return "a conversation of " + ", ".join(str(message["role"]) for message in conversation)

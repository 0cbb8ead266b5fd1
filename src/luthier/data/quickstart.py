"""The quickstart dataset: free-text orders and the JSON a shop wants of them, written from a seed.

Four splits that share no name, city, product noun and no sentence. ``test_rephrased`` is also
written in other registers (chat, formal letter, telephone note) and with slips of the pen.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from luthier.data import quickstart_words as words
from luthier.data.quickstart_words import Values, Voice
from luthier.errors import FileProblem
from luthier.files import write_text

T = TypeVar("T")

SYSTEM_PROMPT = (
    "Reply with the order as JSON: item (singular), quantity, name, city, priority (normal or urgent)."
)
"""The system message of every row."""

FIELDS = ("item", "quantity", "name", "city", "priority")
"""Keys of every answer, in order."""

NUMBER_WORDS = {
    **dict(
        enumerate(
            (
                "one",
                "two",
                "three",
                "four",
                "five",
                "six",
                "seven",
                "eight",
                "nine",
                "ten",
                "eleven",
                "twelve",
            ),
            1,
        )
    ),
    15: "fifteen",
    20: "twenty",
    24: "twenty-four",
    25: "twenty-five",
    30: "thirty",
    40: "forty",
    50: "fifty",
}
"""Every quantity that occurs, with its word."""

GROUP_WORDS = {2: "a pair of", 6: "half a dozen", 12: "a dozen", 24: "two dozen"}
"""Quantities that are also said as a group."""

LONGEST_TEXT = 140
"""Longest message in characters: at most about 45 tokens, so that a row trains in little time on a CPU."""

POOLS = (
    *("greetings", "intros", "orders", "places", "asides", "closings"),
    *("urgent", "urgent_first", "calm", "calm_first"),
)
"""The pools of sentences of a voice."""

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Split:
    """How many rows a split has and what they are made of; each voice with its share of the rows."""

    rows: int
    values: Values
    voices: tuple[tuple[Voice, float], ...]


SPLITS: dict[str, Split] = {
    "train": Split(640, words.TRAIN_VALUES, ((words.TRAIN_VOICE, 1.0),)),
    "validation": Split(48, words.VALIDATION_VALUES, ((words.VALIDATION_VOICE, 1.0),)),
    "test": Split(96, words.TEST_VALUES, ((words.TEST_VOICE, 1.0),)),
    "test_rephrased": Split(
        96,
        words.REPHRASED_VALUES,
        ((words.CHAT_VOICE, 0.5), (words.FORMAL_VOICE, 0.25), (words.NOTE_VOICE, 0.25)),
    ),
}


@dataclass(frozen=True)
class Order:
    """One order: the message and the five fields that a careful reader takes from it."""

    text: str
    item: str
    quantity: int
    name: str
    city: str
    priority: str

    def answer(self) -> str:
        """Return the fields as compact JSON, keys in the order of ``FIELDS``."""
        fields = {key: getattr(self, key) for key in FIELDS}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    def row(self) -> dict[str, list[dict[str, str]]]:
        """Return the order as a chat row in the OpenAI messages shape."""
        turns = (("system", SYSTEM_PROMPT), ("user", self.text), ("assistant", self.answer()))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_quickstart(folder: Path, *, seed: int = 17) -> dict[str, Path]:
    """Write ``<split>.jsonl`` for each of ``SPLITS`` into ``folder`` and return the paths by split.

    The bytes depend on the seed alone; each file appears whole or not at all.
    Raises FileProblem when the folder cannot be written.
    """
    paths: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in SPLITS:
            paths[name] = folder / f"{name}.jsonl"
            lines = (json.dumps(order.row(), ensure_ascii=False) for order in orders(name, seed=seed))
            write_text(paths[name], "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise FileProblem(
            f"the quickstart data cannot be written: {error.strerror or error}",
            hint="free some space, or choose a folder that you may write to",
            file=folder,
        ) from error
    return paths


def orders(split: str, *, seed: int = 17) -> list[Order]:
    """Return the orders of one of ``SPLITS``, no two with the same text or the same answer."""
    plan = SPLITS[split]
    # A string seed is hashed by SHA-512, the same on every machine and Python.
    writers = [
        (_Writer(plan.values, voice, random.Random(f"luthier quickstart {seed} {split} {index}")), share)
        for index, (voice, share) in enumerate(plan.voices)
    ]
    rows: list[Order] = []
    texts: set[str] = set()
    answers: set[str] = set()
    for writer, share in writers:
        wanted = round(plan.rows * share)
        while wanted:
            order = writer.order()
            if order.text in texts or order.answer() in answers:
                continue
            texts.add(order.text)
            answers.add(order.answer())
            rows.append(order)
            wanted -= 1
    random.Random(f"luthier quickstart {seed} {split} order").shuffle(rows)
    return rows


def items(values: Values) -> list[tuple[str, str]]:
    """Return every product of a split as (singular, plural)."""
    found = []
    for kind, nouns in values.nouns.items():
        for noun in nouns.split(","):
            singular, _, irregular = noun.partition("|")
            plural = irregular or f"{singular}s"
            found += [
                (f"{modifier} {singular}".strip(), f"{modifier} {plural}".strip())
                for modifier in words.MODIFIERS[kind]
            ]
    return found


class _Deck(Generic[T]):
    """Deals shuffled values round after round, so that a pool is used evenly."""

    def __init__(self, values: Iterable[T], rng: random.Random) -> None:
        self._values = tuple(values)
        self._rng = rng
        self._left: list[T] = []

    def deal(self, fits: Callable[[T], bool] = lambda _: True) -> T:
        """Return the next value that fits; those passed over stay on top."""
        for _ in range(2):
            for index, value in enumerate(self._left):
                if fits(value):
                    return self._left.pop(index)
            fresh = list(self._values)
            self._rng.shuffle(fresh)
            self._left += fresh
        raise AssertionError("no value of this pool fits")

    def maybe(self, fits: Callable[[T], bool]) -> T | None:
        """Like deal, but None when no value of the pool fits."""
        return self.deal(fits) if any(fits(value) for value in self._values) else None


class _Writer:
    """Composes orders of one split in one voice."""

    def __init__(self, values: Values, voice: Voice, rng: random.Random) -> None:
        self._rng = rng
        self._voice = voice
        self._items = _Deck(items(values), rng)
        self._first_names = _Deck(values.first_names.split(), rng)
        self._last_names = _Deck(values.last_names.split(), rng)
        self._cities = _Deck(values.cities.split(), rng)
        self._decks = {pool: _Deck(getattr(voice, pool), rng) for pool in POOLS}
        self._quantities = _Deck((n for n, times in _QUANTITIES.items() for _ in range(times)), rng)
        self._priorities = _Deck(("urgent",) * 9 + ("normal",) * 11, rng)
        self._misleads = _Deck((True,) * 2 + (False,) * 3, rng)

    def order(self) -> Order:
        """Return the next order, no longer than ``LONGEST_TEXT``."""
        priority = self._priorities.deal()
        misleads = self._misleads.deal()
        # What the row is like is settled first: dropping long rows must not make them plain or calm.
        while True:
            order = self._try(priority, misleads)
            if order and len(order.text) <= LONGEST_TEXT:
                return order

    def _try(self, priority: str, misleads: bool) -> Order | None:
        frames = self._frames(priority, misleads)
        if misleads != bool(_distractions(" ".join(frames))):
            return None
        quantity = self._quantity(next(f for f in frames if f in self._voice.orders))
        item = self._items.deal()
        name = self._name()
        city = self._cities.deal()
        slots = self._slots(item, quantity, name, city)
        text = self._join([frame.format_map(slots) for frame in self._slip(frames)])
        return Order(text, item[0], quantity, name, city, priority)

    def _frames(self, priority: str, misleads: bool) -> list[str]:
        """Choose sentences that name item, quantity, customer and city exactly once, in their order."""
        rng, decks = self._rng, self._decks
        order = decks["orders"].deal()
        lead: list[str] = []
        close: list[str] = []
        city_open = "{city}" not in order
        if "{name}" not in order:
            at_end = rng.random() < 0.6
            who = decks["closings" if at_end else "intros"].deal(lambda f: city_open or "{city}" not in f)
            (close if at_end else lead).append(who)
            city_open = city_open and "{city}" not in who
        rest = [decks["places"].deal()] if city_open else []
        mood = "urgent" if priority == "urgent" else "calm"
        if priority == "urgent" or rng.random() < 0.6:
            if rng.random() < 0.2:
                lead.append(decks[f"{mood}_first"].deal())
            else:
                rest.append(decks[mood].deal())
        if misleads or rng.random() < 0.2:
            used = _distractions(" ".join([order, *rest]))
            aside = decks["asides"].maybe(lambda f: not used & _distractions(f))
            rest += [aside] if aside else []
        rng.shuffle(rest)
        greeting = self._voice.greetings and rng.random() < 0.4
        return [*([decks["greetings"].deal()] if greeting else []), *lead, order, *rest, *close]

    def _quantity(self, order: str) -> int:
        most = 8 if re.search(r"\b(my|I|me)\b", order) else 50
        least = 2 if "{items}" in order or "{many}" in order else 1
        return self._quantities.deal(lambda n: least <= n <= most)

    def _name(self) -> str:
        first = self._first_names.deal()
        return f"{first} {self._last_names.deal()}" if self._rng.random() < self._voice.full_names else first

    def _slots(self, item: tuple[str, str], quantity: int, name: str, city: str) -> dict[str, str | int]:
        rng = self._rng
        other = self._items.deal(lambda pair: pair[0].split()[-1] != item[0].split()[-1])
        friend = self._first_names.deal(lambda first: first not in name)
        count = NUMBER_WORDS[quantity] if rng.random() < 0.6 else str(quantity)
        return {
            "want": self._want(item, quantity, count),
            "item": item[0],
            "items": item[1],
            "n": quantity,
            "count": count,
            "many": count,
            "it": "it" if quantity == 1 else "them",
            "name": name,
            "city": city,
            "other": other[0],
            "others": other[1],
            "away": self._cities.deal(lambda place: place != city),
            "friend": friend,
            "clerk": f"{friend} {self._last_names.deal(lambda last: last not in name)}",
            "few": rng.choice([NUMBER_WORDS[n] for n in range(2, 10) if n != quantity]),
            "code": rng.randrange(1100, 9900),
            "phone": f"555 0{rng.randrange(100, 200)}",
            "day": rng.choice(WEEKDAYS),
        }

    def _want(self, item: tuple[str, str], quantity: int, count: str) -> str:
        if quantity == 1 and self._rng.random() < 0.7:
            return f"{'an' if item[0][0] in 'aeiou' else 'a'} {item[0]}"
        if quantity in GROUP_WORDS and self._rng.random() < 0.4:
            return f"{GROUP_WORDS[quantity]} {item[1]}"
        return f"{count} {item[quantity > 1]}"

    def _slip(self, frames: list[str]) -> list[str]:
        """Misspell one long word of the sentences, never a value and never the words of urgency."""
        voice, rng = self._voice, self._rng
        if rng.random() >= voice.typo_share:
            return frames
        open_to_slips = (*voice.orders, *voice.places, *voice.asides, *voice.intros)
        words_in = [
            (index, match)
            for index, frame in enumerate(frames)
            if frame in open_to_slips
            for match in re.finditer(r"(?<![{\w'])[a-z]{5,}(?![}\w'])", frame)
        ]
        if not words_in:
            return frames
        index, match = rng.choice(words_in)
        word = match.group()
        at = rng.randrange(1, len(word) - 2)
        wrong = rng.choice(
            (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
            )
        )
        frame = frames[index]
        return [*frames[:index], frame[: match.start()] + wrong + frame[match.end() :], *frames[index + 1 :]]

    def _join(self, sentences: list[str]) -> str:
        join = self._rng.choice(self._voice.joins)
        text = ""
        for sentence in sentences:
            fresh = sentence[0].upper() + sentence[1:] if self._voice.capitals else sentence
            if not text:
                text = fresh
            elif self._voice.capitals and text.endswith(","):
                text += f"\n{fresh}"
            else:
                text += (" " if text[-1] in ".?!:" and "\n" not in join else join) + fresh
        return text


_QUANTITIES = {1: 9, 2: 7, 3: 6, 4: 5, 5: 4, 6: 4, 7: 3, 8: 3, 9: 2, 10: 3, 11: 1, 12: 3} | dict.fromkeys(
    (15, 20, 24, 25, 30, 40, 50), 1
)
"""How often each quantity is ordered, in parts."""


def _distractions(text: str) -> set[str]:
    """Return the kinds of misleading values in a frame, so that no row has two of a kind."""
    kinds = {"other": "item", "others": "item", "away": "city", "friend": "name", "clerk": "name"}
    return {kinds[slot] for slot in re.findall(r"{(\w+)}", text) if slot in kinds}

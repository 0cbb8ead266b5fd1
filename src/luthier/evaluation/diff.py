"""Words that two texts do not share, for people to see."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

LONGEST = 800
"""Words beyond this are shown without marks: the comparison is quadratic."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one text."""

    text: str
    changed: bool
    """True where the other text does not have it."""


def words(text: str) -> list[str]:
    """Words and punctuation marks with the white space after them; joined they are the text again."""
    return re.findall(r"^\s+|\w+\s*|[^\w\s]\s*", text)


def word_diff(a: str, b: str) -> tuple[list[Span], list[Span]]:
    """Both texts in spans, those changed that the other does not have."""
    left, right = words(a), words(b)
    if len(left) > LONGEST or len(right) > LONGEST:
        return [Span(a, False)] if a else [], [Span(b, False)] if b else []
    ours: list[Span] = []
    theirs: list[Span] = []
    # White space after a word does not make it another word.
    matcher = SequenceMatcher(None, [w.strip() for w in left], [w.strip() for w in right], autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if i2 > i1:
            ours.append(Span("".join(left[i1:i2]), tag != "equal"))
        if j2 > j1:
            theirs.append(Span("".join(right[j1:j2]), tag != "equal"))
    return ours, theirs

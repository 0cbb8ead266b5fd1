"""Rows of the tasks other than chat, told by their columns: labels, pairs, triplets, preferences, BEIR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TEXTS = ("text", "sentence", "content", "review", "utterance", "question", "query", "title", "document")
_LABELS = ("label", "intent", "class", "sentiment")
_LABELS_OF_NARROW_ROWS = ("category", "topic")
"""Labels only where there are few columns: in wide rows these words describe, and are not asked for."""
_PAIRS = (
    ("preference", ("prompt", "chosen", "rejected"), None),
    ("preference", ("chosen", "rejected"), None),
    ("triplet", ("anchor", "positive", "negative"), None),
    ("triplet", ("query", "positive", "negative"), None),
    ("scored-pair", ("sentence1", "sentence2"), "score"),
    ("scored-pair", ("sentence1", "sentence2"), "label"),
    ("scored-pair", ("text1", "text2"), "score"),
    ("labelled-pair", ("premise", "hypothesis"), "label"),
    ("pair", ("anchor", "positive"), None),
    ("pair", ("query", "positive"), None),
    ("pair", ("sentence1", "sentence2"), None),
    ("qrels", ("query-id", "corpus-id"), "score"),
    ("image-caption", ("image", "caption"), None),
    ("image-label", ("image", "sentence"), "label"),
)
LABELLED = ("multi-class", "multi-label", "labelled-pair", "image-label")
"""Kinds whose label column is a class, not a score."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the rows are, which columns hold their texts, and which one a label or score."""

    name: str
    texts: tuple[str, ...]
    label: str | None = None


def detect_kind(names: Sequence[str], value: dict[str, Any]) -> Kind | None:
    """Tell the kind of rows that are no conversations; None where nothing fits."""
    lower = {name.lower(): name for name in names}
    for name, texts, label in _PAIRS:
        if all(text in lower for text in texts) and (label is None or label in lower):
            return Kind(name, tuple(lower[text] for text in texts), lower[label] if label else None)
    text = next((lower[name] for name in _TEXTS if name in lower), None)
    if text is None:
        return None
    if "_id" in lower:
        extra = (lower["title"],) if "title" in lower and text != lower["title"] else ()
        return Kind("corpus" if extra else "queries", (*extra, text))
    if "labels" in lower and isinstance(value.get(lower["labels"]), list):
        return Kind("multi-label", (text,), lower["labels"])
    words = _LABELS + (_LABELS_OF_NARROW_ROWS if len(names) <= 3 else ())
    label = next((lower[name] for name in words if name in lower), None)
    if label is not None and isinstance(value.get(label), (str, int, bool)):
        return Kind("multi-class", (text,), label)
    return None

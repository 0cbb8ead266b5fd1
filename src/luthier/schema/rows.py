"""Rows of the purposes other than chat: labels, pairs, rankings, preferences. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.schema.protocols import ChatRow, Message, TokenRow
from luthier.schema.recipe import Purpose

RowPurpose = Purpose | Literal["preference"]
"""What rows are read for: a purpose of the recipe, or preference tuning of a chat."""
Role = Literal["query", "document", "similarity"]
"""What a text is: a query, a document that answers queries, or one of two texts of equal standing."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A text with its labels: exactly one for multi-class and similarity, any number for multi-label."""

    text: str
    labels: tuple[str, ...]
    file: str
    line: int
    id: str
    """Digest of text, second text and labels: equal rows have equal ids."""
    key: str
    """Digest of the texts alone: what must not stand on both sides of a split."""
    pair: str | None = None
    """The second text where the row is a pair (premise and hypothesis, question and passage)."""
    group: str | None = None


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two texts and how much they agree, in the unit of the file (0 to 1, 0 to 5, ...)."""

    first: str
    second: str
    score: float
    file: str
    line: int
    id: str
    key: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class RankingRow:
    """A query (anchor) with the texts that answer it and, where known, some that do not."""

    query: str
    positives: tuple[str, ...]
    """At least one."""
    negatives: tuple[str, ...]
    file: str
    line: int
    id: str
    key: str
    """Digest of the query."""
    group: str | None = None

    @property
    def documents(self) -> tuple[str, ...]:
        """The texts that answer the query, then those that do not."""
        return *self.positives, *self.negatives

    @property
    def echoes(self) -> bool:
        """Whether the query stands among its own positives: such a pair says nothing of what is alike."""
        return self.query.strip() in (text.strip() for text in self.positives)


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt with a better and a worse answer, each as the messages that follow the prompt."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    file: str
    line: int
    id: str
    key: str
    """Digest of the prompt."""
    tools: list[dict[str, Any]] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A rendered preference row: the prompt with either answer, of which the answer's tokens are trained."""

    chosen: TokenRow
    rejected: TokenRow


@dataclass(frozen=True, slots=True)
class PreferenceChat(ChatRow):
    """A held-out preference row as a conversation that ends with the better answer."""

    rejected: list[Message] = field(default_factory=list)
    """The messages of the worse answer."""
    asked: int = 0
    """How many messages are the prompt; those after it are the better answer."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Which image a row means, never its pixels."""

    kind: Literal["path", "url", "bytes"]
    value: str
    """The path as the row writes it (from the folder of its file), the address, or 24 letters of the SHA-256
    of the bytes that stand in the row itself."""
    type: str | None = None
    """Media type, where the row says it: ``image/png``."""


@dataclass(frozen=True, slots=True)
class VisionRow:
    """A conversation with images, for a task that reads them."""

    messages: list[Message]
    """``content`` is a text, or a list of ``{"type": "text", "text"}`` and ``{"type": "image", "image": n}``,
    n counting the row's images."""
    images: tuple[ImageReference, ...]
    file: str
    line: int
    id: str
    """Digest of words and image references."""
    key: str
    """Digest of what is asked, its images included."""
    tools: list[dict[str, Any]] | None = None
    group: str | None = None


TaskRow = LabelRow | PairRow | RankingRow | PreferenceRow


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries to be answered from a corpus, with graded relevance (BEIR's qrels)."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevance: Mapping[str, Mapping[str, int]]
    """Query id -> document id -> grade; 0 is judged and not relevant, what is missing is not judged."""
    among: bool = False
    """Whether the queries are documents themselves, under the same ids: none is its own answer."""


@dataclass(frozen=True)
class TaskRows:
    """Rows of some files, with the account of them: ``read = kept + sum(dropped)``."""

    kind: str
    """``multi-class``, ``multi-label``, ``scored-pairs``, ``pairs``, ``triplets``,
    ``query-positives-negatives``, ``beir``, ``labelled`` or ``preference``."""
    rows: Sequence[TaskRow]
    columns: dict[str, str]
    """Role -> column, path or template, as read."""
    labels: tuple[str, ...] = ()
    """All labels (LabelRow only), in a stable order: columns for one-hot, else numbers or letters."""
    retrieval: RetrievalSet | None = None
    """For BEIR folders: the whole corpus with the split's queries."""
    files: tuple[str, ...] = ()
    read: int = 0
    kept: int = 0
    """Rows of the files that are used; several of them may make one ranking row (BEIR)."""
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

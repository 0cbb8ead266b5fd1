"""Shapes that rooms agree on without knowing each other. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.schema.rows import RetrievalSet


Message = dict[str, Any]
"""``{"role": "user", "content": "..."}``, with ``tool_calls``, ``name``, ``reasoning_content`` where used.

A chat of one message of role ``text`` is a plain text to go on with, without a chat template.
"""


def plain_text(messages: Sequence[Message]) -> str | None:
    """The text to go on with, where a chat is one; None for turns."""
    if not messages or messages[0].get("role") != "text":
        return None
    return "".join(str(message["content"]) for message in messages)


@dataclass(frozen=True, slots=True)
class ChatRow:
    """One conversation, as read and mapped, not yet rendered.

    The last assistant turn of a test row is the expected answer; the turns before it are the prompt.
    """

    messages: list[Message]
    file: str
    line: int
    """1-based line (JSONL) or row number of the file."""
    id: str
    """Digest of the content: equal rows have equal ids."""
    tools: list[dict[str, Any]] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One rendered row.

    ids: [tokens] int32. trained: [tokens] bool, true where the token itself is a target of the loss.
    images: files of its images, in the order of their tokens.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    file: str
    line: int
    id: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """Rows of a run, ready for training, validation and proof.

    Chats and texts: train and validation are TokenRow, tests are ChatRow. Other purposes: rows of
    `schema.rows` in all three.
    """

    train: Sequence[Any]
    validation: Sequence[Any]
    tests: dict[str, Sequence[Any]] = field(default_factory=dict)
    kind: str = "chats"
    """What the rows were read as: ``chats``, ``multi-class``, ``multi-label``, ``scored-pairs``..."""
    labels: tuple[str, ...] = ()
    """All labels of the training rows, in a stable order (classification only)."""
    retrieval: dict[str, RetrievalSet] = field(default_factory=dict)
    """Split -> queries, corpus and judgements (similarity and reranking only)."""


class TextTokenizer(Protocol):
    """A model's own tokenizer and chat template."""

    eos_ids: frozenset[int]
    """Every token that ends a turn or a text."""
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Token ids of text as it stands: special tokens in it are recognised, none are added."""

    def encode_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its ids as ``encode`` gives them and each token's characters [start, end)."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The chat template applied to messages."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One greedy answer."""

    text: str
    token_ids: tuple[int, ...]
    """New tokens, the end token not included."""
    stopped: bool
    """True where an end token ended it, false where the length did."""


class Generator(Protocol):
    """Base, tuned, merged, GGUF and served models alike, so one evaluator judges them all."""

    label: str
    weights_digest: str

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """Greedy answers in the order of chats. Each chat ends with a user or tool turn."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds one continuation of one context."""

    nats: float
    """Log-probability of the continuation: the sum over its tokens, natural logarithm, at most 0."""
    tokens: int
    """Tokens of the continuation."""
    greedy: bool
    """Whether each of its tokens is the likeliest one in its place."""


class Scorer(Protocol):
    """Whatever can say how likely a text is: multiple choice and language modelling need no answers."""

    label: str
    weights_digest: str

    def score(
        self, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None
    ) -> list[Likelihood]:
        """Likelihood of each continuation after its context, plain text without a template.

        An empty context stands for the beginning of a text. Contexts longer than the model's lose their
        beginning.
        """


class Embedder(Protocol):
    """Texts into vectors, for mining and for retrieval; base and tuned models alike."""

    label: str
    weights_digest: str

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Vectors in the order of texts: [texts, dimensions] float32, of any length (norm)."""


class Progress(Protocol):
    """Told of work done: the terminal draws a bar, a worker writes an event."""

    def __call__(self, done: int, total: int) -> None: ...

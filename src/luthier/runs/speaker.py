"""A saved chat model as a Generator and a Scorer, in a process of its own: torch never loads here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from luthier.runs.child import Child
from luthier.schema.protocols import Generated, Likelihood, Message, Progress
from luthier.schema.recipe import Dtype


class Speaker(Child):
    """A generator and scorer over a saved model. Errors: as :class:`Child`."""

    def __init__(self, folder: Path, *, dtype: Dtype, label: str) -> None:
        super().__init__(["luthier.tasks.speak", str(folder), dtype], about=folder)
        self.label = label
        self.weights_digest = ""

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.weights_digest = self.line()["weights_digest"]
        except BaseException:
            self.close()
            raise
        return self

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """Greedy answers in the order of chats."""
        asked = {
            "chats": [list(chat) for chat in chats],
            "tools": None if tools is None else [None if t is None else list(t) for t in tools],
            "max_new_tokens": max_new_tokens,
        }
        answers = self.ask(asked, "answers", progress)
        return [Generated(text, tuple(ids), stopped) for text, ids, stopped in answers]

    def score(
        self, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None
    ) -> list[Likelihood]:
        """Likelihood of each continuation after its context, in the order of pairs."""
        found = self.ask({"pairs": [list(pair) for pair in pairs]}, "scores", progress)
        return [Likelihood(nats, tokens, greedy) for nats, tokens, greedy in found]

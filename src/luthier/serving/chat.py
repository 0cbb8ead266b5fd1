"""A conversation with a GGUF model, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from luthier.errors import UsageError
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.runtime import GREEDY, LlamaServer, ServerSettings
from luthier.schema.protocols import Message

LONGEST_CONTEXT = 8192
"""Tokens that a chat reserves memory for, where the model allows more."""


class ChatSession:
    """Keeps a history and streams answers. Use as a context manager.

    path: a GGUF file. system: the system prompt, none where None. greedy: always the likeliest token;
    else the sampling settings that the file carries, or llama.cpp's.
    Errors: FileProblem, ToolchainError when the model does not load, Unreachable when it dies.
    """

    def __init__(
        self,
        path: Path,
        *,
        system: str | None = None,
        context: int | None = None,
        greedy: bool = True,
        settings: ServerSettings | None = None,
    ) -> None:
        trained = int(read_header(path).of_architecture("context_length", 4096))
        context = context or min(trained, LONGEST_CONTEXT)
        self.server = LlamaServer(path, settings or ServerSettings(context=context))
        self.greedy = greedy
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.history: list[Message] = list(self._system)

    def __enter__(self) -> ChatSession:
        self.server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.close()

    def reset(self) -> None:
        """Forget the conversation, keep the system prompt."""
        self.history = list(self._system)

    def answer(self, words: str, *, max_new_tokens: int = 512) -> Iterator[str]:
        """Pieces of the answer as they come. What was said so far stays in the history if it is cut short.

        A turn that the server refuses leaves the history as it was. Errors: UsageError when the
        conversation is longer than the context.
        """
        turn: Message = {"role": "user", "content": words}
        said: list[str] = []
        extra = GREEDY if self.greedy else {}
        try:
            for piece in self.server.chat(
                [*self.history, turn], max_tokens=max_new_tokens, cache_prompt=True, **extra
            ):
                said.append(piece)
                yield piece
        except UsageError as error:
            raise UsageError(error.message, hint="/reset forgets the conversation") from None
        finally:
            if said:
                self.history += [turn, {"role": "assistant", "content": "".join(said)}]

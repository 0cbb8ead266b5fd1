"""``luthier chat``: talk to a run's GGUF."""

from __future__ import annotations

import sys
from pathlib import Path

from luthier.cli.console import err
from luthier.errors import UsageError


def chat(
    run: str = "latest",
    /,
    *,
    gguf: str | None = None,
    system: str | None = None,
    once: str | None = None,
    image: tuple[Path, ...] = (),
    max_new_tokens: int = 512,
) -> None:
    """Talk to a run's GGUF through llama.cpp.

    Type a message and press Enter; /reset forgets the conversation, /quit or Ctrl-D leaves.

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    gguf
        Which type answers (Q4_K_M, F16, ...); the smallest that is there when not given.
    system
        System prompt; the training data's own when not given.
    once
        Answer this one message and leave.
    image
        An image that the one message asks about: the merged weights answer, in torch; once for each image.
    max_new_tokens
        Longest answer in tokens.
    """
    if image:
        if once is None or gguf is not None:
            raise UsageError(
                "an image goes with one message, which the merged weights answer",
                hint='luthier chat RUN --once "What is this?" --image a.png',
            )
        from luthier.runs.answer import ask_about

        told = ask_about(run, [once], image, max_new_tokens=max_new_tokens, system=system)
        sys.stdout.write(f"{told[0]['text']}\n")
        return
    from luthier.runs.registry import resolve
    from luthier.runs.shipping import chat_files
    from luthier.serving.chat import ChatSession

    found = resolve(run)
    path, prompt = chat_files(found, gguf)
    err().print(f"{found.id}: {path.name}", style="dim")
    with ChatSession(path, system=system if system is not None else prompt) as session:
        if once is not None:
            _answer(session, once, max_new_tokens)
            return
        while True:
            try:
                words = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                err().print()
                return
            if words in ("/quit", "/exit"):
                return
            if words == "/reset":
                session.reset()
            elif words:
                _answer(session, words, max_new_tokens)


def _answer(session, words: str, most: int) -> None:  # type: ignore[no-untyped-def]
    for piece in session.answer(words, max_new_tokens=most):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")

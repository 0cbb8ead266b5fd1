"""A saved chat model as a Generator and a Scorer, in a process of its own: torch never loads here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from luthier.errors import ToolchainError
from luthier.llamacpp.process import OFFLINE, end_tree
from luthier.runs.answer import AnswerFailed
from luthier.runs.process import torch_environment
from luthier.schema.protocols import Generated, Likelihood, Message, Progress
from luthier.schema.recipe import Dtype


class Speaker:
    """Use as a context manager. Errors: the model's own, passed on; ToolchainError when it dies."""

    def __init__(self, folder: Path, *, dtype: Dtype, label: str) -> None:
        self.folder, self.dtype, self.label = folder, dtype, label
        self.weights_digest = ""
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in close
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Speaker:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "luthier.tasks.speak", str(self.folder), self.dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=torch_environment() | OFFLINE,
        )
        try:
            self.weights_digest = self._next()["weights_digest"]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            end_tree(child.pid)
            child.wait(timeout=30)
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()
            self._log.close()

    def _next(self) -> dict[str, Any]:
        assert self._child is not None
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._log.seek(0)
            last = "\n".join(self._log.read().strip().splitlines()[-3:])
            raise ToolchainError(f"the model's process ended: {last or 'without a word'}", file=self.folder)
        found: dict[str, Any] = json.loads(line)
        if "failure" in found:
            failure = found["failure"]
            raise AnswerFailed(failure["message"], failure["hint"], failure["exit_code"])
        return found

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
        answers = self._asked(asked, "answers", progress)
        return [Generated(text, tuple(ids), stopped) for text, ids, stopped in answers]

    def score(
        self, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None
    ) -> list[Likelihood]:
        """Likelihood of each continuation after its context, in the order of pairs."""
        found = self._asked({"pairs": [list(pair) for pair in pairs]}, "scores", progress)
        return [Likelihood(nats, tokens, greedy) for nats, tokens, greedy in found]

    def _asked(self, request: dict[str, Any], wanted: str, progress: Progress | None) -> list[Any]:
        """What the process answers to a request, progress told on the way."""
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        while wanted not in (found := self._next()):
            if progress is not None:
                progress(found["done"], found["total"])
        answers: list[Any] = found[wanted]
        return answers

"""The asking end of a talk in JSON lines with a model in a process of its own (`tasks.child`)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from luthier.errors import LuthierError, ToolchainError
from luthier.llamacpp.process import OFFLINE, end_tree
from luthier.runs.process import torch_environment
from luthier.schema.protocols import Progress


class AnswerFailed(LuthierError):
    """What the answering process said went wrong; leaves with its exit code."""

    def __init__(self, message: str, hint: str | None, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class Child:
    """A module of `tasks` that answers; torch never loads here. Use as a context manager.

    words: the module and its arguments. about: the file that failures name. Errors: the child's own,
    passed on; ToolchainError with its last words when it dies.
    """

    def __init__(self, words: Sequence[str], *, about: Path) -> None:
        self.words, self.about = tuple(words), about
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in close
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self.words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=torch_environment() | OFFLINE,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; a second call does nothing."""
        process, self._process = self._process, None
        if process is not None:
            end_tree(process.pid)
            process.wait(timeout=30)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            self._log.close()

    def line(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = "\n".join(self._log.read().strip().splitlines()[-3:])
            raise ToolchainError(f"the model's process ended: {last or 'without a word'}", file=self.about)
        found: dict[str, Any] = json.loads(line)
        if "failure" in found:
            failure = found["failure"]
            raise AnswerFailed(failure["message"], failure["hint"], failure["exit_code"])
        return found

    def ask(self, request: dict[str, Any], wanted: str, progress: Progress | None = None) -> list[Any]:
        """What it answers to a request under a key, progress told on the way."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its last line says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        while wanted not in (found := self.line()):
            if progress is not None:
                progress(found["done"], found["total"])
        answers: list[Any] = found[wanted]
        return answers

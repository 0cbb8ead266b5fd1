"""Every failure that a user can cause or mend, each with what, where and every way out.

A bug is an ``assert``; a user's mistake is a child of ``LuthierError``. The command line prints
``where: message`` and the hint, never a traceback, and exits with ``exit_code``.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class LuthierError(Exception):
    """A failure with words for a person.

    message: what went wrong. hint: what to do, every way out. where: the file, with its line if
    the fault has one.
    """

    exit_code: int = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        file: str | Path | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.file = None if file is None else str(file)
        self.line = line

    @property
    def where(self) -> str | None:
        """``file:line``, ``file`` or nothing."""
        if self.file is None:
            return None
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(LuthierError):
    """The words of a command or the values of a setting are wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has an unknown key, a wrong value or a contradiction."""


class FileProblem(UsageError):
    """A file is missing, unreadable or not what it claims to be."""


class Unsupported(UsageError):
    """A combination that Luthier does not do, with the reason."""


class LicenceBroken(UsageError):
    """What was asked of a licence is not what its terms allow."""


class ModelNotFound(UsageError):
    """No model of that name on disk, in the catalogue or on the Hub (or no network to ask it)."""


class GatedModel(UsageError):
    """The model's page asks for an agreement or a login first."""


class DoesNotFit(LuthierError):
    """Memory or disk is too small for what was asked."""

    exit_code = 3


class DataError(LuthierError):
    """The data cannot be trained on as it is."""

    exit_code = 4


class GateMissed(LuthierError):
    """An evaluation gate set by the user was not reached."""

    exit_code = 5


class Unreachable(LuthierError):
    """A server or the network cannot be reached."""

    exit_code = 6


class CheckpointError(LuthierError):
    """A checkpoint is torn, missing or of another recipe."""


class ToolchainError(LuthierError):
    """An external tool (llama.cpp's converter, quantiser or runtime) is missing or failed."""


class ParityError(LuthierError):
    """An exported artifact does not answer like the trained model."""


class TrainingError(LuthierError):
    """The run itself failed: not-a-number loss, lost device, dead worker."""


class Interrupted(LuthierError):
    """Stopped by the user, work saved."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str], *, most: int = 3, least: float = 0.6) -> str | None:
    """Return ``did you mean a or b?`` for the nearest known words, or None when none is near.

    least: likeness from which a word is near, 1 for the same (difflib's ratio).
    """
    by_lower = {name.lower(): name for name in known}
    near = [by_lower[name] for name in get_close_matches(word.lower(), by_lower, n=most, cutoff=least)]
    return f"did you mean {' or '.join(near)}?" if near else None

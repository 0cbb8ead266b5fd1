"""What a check can find, and the collecting of it: one entry each, with how often and where first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from luthier.errors import LuthierError
from luthier.schema.data import Finding
from luthier.schema.protocols import ChatRow

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Code:
    """A kind of finding: how bad it is, what it means, what to do."""

    level: Level
    message: str
    fix: str | None = None


CODES = {
    "files": Code("info", "files were left aside"),
    "empty": Code("error", "no row could be read", "give a file with rows"),
    "mixed-shapes": Code(
        "warning", "files hold rows of different shapes", "name the files that belong together, one by one"
    ),
    "duplicate": Code(
        "warning",
        "rows stand in the file more than once",
        "remove the copies; they weigh as much as more epochs on these rows",
    ),
    "same-prompt": Code(
        "info", "equal prompts stand with different answers", "keep both only where both are right"
    ),
    "near-duplicate": Code(
        "info", "rows are nearly the same as an earlier one", "keep one of each where they add nothing"
    ),
    "near-duplicate-limit": Code("info", "near duplicates were not looked for in all rows"),
    "leakage": Code(
        "error",
        "rows stand in the held-out rows too",
        "remove them from one side: scores on rows seen in training prove nothing",
    ),
    "prompt-leakage": Code(
        "warning", "prompts stand in the held-out rows, with other answers", "remove them from one side"
    ),
    "near-leakage": Code(
        "warning",
        "rows are nearly the same as a held-out row",
        "look at them, and remove them from one side where they give the answer away",
    ),
    "no-last-answer": Code(
        "info",
        "conversations end with a question",
        "nothing is lost in training; as test rows they are cut at the last answer",
    ),
    "answer-first": Code(
        "warning",
        "conversations begin with an assistant turn",
        "templates of Mistral, Gemma and others refuse this: begin with a user turn",
    ),
    "same-role-twice": Code(
        "warning",
        "two turns of one role follow each other",
        "join them: templates of Mistral, Gemma and others refuse this",
    ),
    "answer-repeats-prompt": Code(
        "warning",
        "answers begin with the prompt itself",
        "remove the prompt from the answer, or the model learns to echo",
    ),
    "positive-is-query": Code(
        "warning",
        "a query or anchor is its own positive",
        "give another text that is like it, or remove the row: it only teaches what the text is unlike",
    ),
    "refusal": Code(
        "info", "answers are a model's stock refusals", "remove them unless refusing is what you teach"
    ),
    "secret": Code(
        "warning",
        "texts hold what looks like a secret",
        "revoke it and remove it: models repeat what they are trained on",
    ),
    "personal-data": Code(
        "info", "texts hold what looks like personal data", "remove or replace it unless you may train on it"
    ),
    "template-marker": Code(
        "warning",
        "texts hold pieces of chat templates",
        "remove them: a tokenizer that knows them reads them as control tokens",
    ),
    "mojibake": Code(
        "warning", "texts hold letters in a wrong encoding", "read the source again in its own encoding"
    ),
    "control-character": Code("warning", "texts hold control characters", "remove them"),
    "images": Code(
        "info",
        "conversations hold images",
        "they are kept as references; a model of text is refused: name the recipe with --for to see it",
    ),
    "missing-image": Code(
        "error",
        "images are missing",
        "put them where the rows point to, from the folder of their file, or remove the rows",
    ),
    "broken-image": Code(
        "error",
        "images are cut off or no images",
        "download them again, or remove the rows",
    ),
    "conflicting-labels": Code("warning", "equal texts have different labels", "decide for one label"),
    "languages": Code("info", "rows are in several languages"),
    "labels": Code("info", "answers are labels"),
    "one-label": Code("error", "all rows have one label", "give rows of at least two labels"),
    "rare-labels": Code("warning", "some labels have few rows", "add rows for them, or join them"),
    "unknown-label": Code(
        "warning",
        "held-out rows have labels that no training row has",
        "correct their spelling, or add training rows for them: they cannot be answered right",
    ),
    "reasoning-left-out": Code(
        "warning",
        "the chat template leaves out the reasoning of the last answer",
        "choose a model whose template writes reasoning, or put it into the answer itself",
    ),
    "label-balance": Code(
        "warning",
        "one label outweighs the others",
        "judge by macro F1 rather than accuracy, or give more rows of the others",
    ),
    "over-length": Code(
        "warning",
        "rows are longer than the sequence length",
        "raise training.sequence_length, or set data.over_length to truncate or drop",
    ),
    "over-length-refused": Code(
        "error",
        "rows are longer than the sequence length, and the recipe does not say what becomes of them",
        "raise training.sequence_length, or set data.over_length to truncate or drop",
    ),
    "nothing-trained": Code(
        "error", "no token of these rows would be trained", "give an assistant turn a weight other than 0"
    ),
    "prompt-boundary": Code(
        "info",
        "the prompt alone is split into other tokens than in its row",
        "nothing to do for most models; the template's header and the answer share a token",
    ),
}
"""Findings by code. Rows that cannot be used bring their own words (see ``Findings.problem``)."""

_LINES = 5
_SAMPLE = 160
_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(slots=True)
class _Entry:
    first: Finding
    lines: list[str] = field(default_factory=list)
    last: str | None = None
    count: int = 0


class Findings:
    """Entries by code and detail. A row counts once an entry."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], _Entry] = {}

    def add(
        self,
        code: str,
        *,
        detail: str = "",
        place: tuple[str | None, int | None] = (None, None),
        sample: str | None = None,
        count: int = 1,
    ) -> None:
        """Add a finding of CODES, or one more row to it. detail parts entries of one code."""
        kind = CODES[code]
        message = f"{kind.message}: {detail}" if detail else kind.message
        self._add(Finding(level=kind.level, code=code, message=message, fix=kind.fix), place, sample, count)

    def row(self, code: str, row: ChatRow, *, sample: str | None = None, detail: str = "") -> None:
        """Add a finding about a conversation; its last words are the sample where none is given."""
        if sample is None:
            sample = " / ".join(str(message["content"])[:60] for message in row.messages[-2:])
        self.add(code, place=(row.file, row.line), sample=sample, detail=detail)

    def problem(self, code: str, problem: LuthierError) -> None:
        """Add a row that cannot be used. Equal codes make one entry under the words of the first."""
        known = next((entry.first.message for (one, _), entry in self._entries.items() if one == code), None)
        message = known or problem.message
        finding = Finding(level="error", code=code, message=message, fix=problem.hint)
        self._add(finding, (problem.file, problem.line), None, 1)

    def give_samples(self, sample_of: Callable[[str, int], str | None]) -> None:
        """Ask for the sample of each finding that has a place and none yet."""
        for entry in self._entries.values():
            first = entry.first
            if first.sample is None and first.file is not None and first.line is not None:
                found = sample_of(first.file, first.line)
                if found is not None:
                    entry.first = first.model_copy(update={"sample": found[:_SAMPLE]})

    def _add(
        self, finding: Finding, place: tuple[str | None, int | None], sample: str | None, count: int
    ) -> None:
        entry = self._entries.get((finding.code, finding.message))
        if entry is None:
            shown = None if sample is None else sample[:_SAMPLE]
            at = {"file": place[0], "line": place[1], "sample": shown}
            entry = self._entries[finding.code, finding.message] = _Entry(finding.model_copy(update=at))
        if place[0] is not None and place[1] is not None:
            where = f"{place[0]}:{place[1]}"
            if where == entry.last:  # rows come in order, so the last one tells a row counted already
                return
            entry.last = where
            if len(entry.lines) < _LINES:
                entry.lines.append(where)
        entry.count += count

    def all(self) -> tuple[Finding, ...]:
        """All findings, worst first, then by how many rows they concern."""
        found = [
            entry.first.model_copy(update={"count": entry.count, "lines": tuple(entry.lines)})
            for entry in self._entries.values()
        ]
        return tuple(sorted(found, key=lambda one: (_ORDER[one.level], -one.count, one.code)))

"""One evaluator for whatever answers chats: base, tuned, merged, GGUF and served models alike."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.evaluation.metrics import (
    MetricChoice,
    choose_metrics,
    metric_specs,
    per_field,
    without_thinking,
)
from luthier.evaluation.statistics import metric_of
from luthier.evaluation.structured import tool_call
from luthier.evaluation.totals import SET_METRICS, set_metric_of
from luthier.schema.protocols import ChatRow, Generated, Generator, Message, Progress
from luthier.schema.results import EvalResult, Metric, ScoredRow

CHUNK = 256
"""Prompts between two writes of the cache."""
MOST_FIELDS = 40
"""Fields shown on their own, those expected most often first."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out row as the evaluator needs it."""

    id: str
    chat: tuple[Message, ...]
    tools: list[dict[str, Any]] | None
    expected: str
    prompt: str
    group: str | None

    @property
    def digest(self) -> str:
        """Digest of all that the model is shown."""
        return digest_of([list(self.chat), self.tools])


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_of(message: Message) -> str:
    """The text of a message; calls of tools are written as Hermes and Qwen templates write them."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    parts = [str(content)] if content else []
    for item in message.get("tool_calls") or ():
        call = tool_call(item)
        if call is not None:
            parts.append(call.text())
    return "\n".join(parts)


def questions(rows: Sequence[ChatRow]) -> list[Question]:
    """Prompt and expected answer of each row: the last assistant turn and the turns before it.

    Raises DataError, with file and line, for a row without an assistant turn after a user or tool turn.
    A row that stands there twice keeps its group, so that it does not count as two.
    """
    seen: Counter[str] = Counter()
    found = []
    for row in rows:
        roles = [m.get("role") for m in row.messages]
        last = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else -1
        if last < 1 or roles[last - 1] not in ("user", "tool", "text"):
            problem = "has no assistant turn" if last < 0 else "has no user turn before its last answer"
            raise DataError(
                f"the row {problem}, so there is nothing to score",
                hint="a test row ends with the expected answer as an assistant turn after a user turn",
                file=row.file,
                line=row.line,
            )
        seen[row.id] += 1
        repeated = seen[row.id] > 1
        asked = [m for m in row.messages[:last] if m.get("role") == "user"]
        found.append(
            Question(
                id=f"{row.id}#{seen[row.id]}" if repeated else row.id,
                chat=tuple(row.messages[:last]),
                tools=row.tools,
                expected=text_of(row.messages[last]),
                prompt=text_of(asked[-1] if asked else row.messages[last - 1]),
                group=row.group,
            )
        )
    twice = {i for i, count in seen.items() if count > 1}
    return [
        Question(q.id, q.chat, q.tools, q.expected, q.prompt, q.group or f"row {q.id.split('#')[0]}")
        if q.id.split("#")[0] in twice
        else q
        for q in found
    ]


def evaluate(
    generator: Generator,
    rows: Sequence[ChatRow],
    *,
    split: str,
    metrics: Sequence[str] | None = None,
    max_new_tokens: int,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> EvalResult:
    """Answer and score every row.

    Metrics are chosen from the expected answers unless named (the first is primary). Decoding is
    greedy, so no seed enters. Answers are kept in cache_dir by weights, prompt and settings and never
    generated twice. Raises DataError for no rows or rows without an expected answer.
    """
    if not rows:
        raise DataError(f"the split {split} has no rows", hint="name a test file with rows in data.test")
    asked = questions(rows)
    if metrics:
        choice = MetricChoice(tuple(metrics), metrics[0], "named in the recipe")
    else:
        choice = choose_metrics([q.expected for q in asked])
    specs = metric_specs(choice.names)
    settings: dict[str, str | int | float | bool] = {
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
        "metrics": ", ".join(choice.names),
    }
    started = time.perf_counter()
    answers, cached = answer_all(generator, asked, max_new_tokens, progress, cache_dir)
    scored = []
    for question, answer in zip(asked, answers, strict=True):
        judged = without_thinking(answer.text)
        scored.append(
            ScoredRow(
                id=question.id,
                prompt=question.prompt,
                expected=question.expected,
                answer=answer.text,
                scores={spec.name: spec.score(question.expected, judged) for spec in specs},
                group=question.group,
            )
        )
    groups = [row.group for row in scored]
    return EvalResult(
        split=split,
        model=generator.label,
        weights_digest=generator.weights_digest,
        metrics={spec.name: metric_of([r.scores[spec.name] for r in scored], groups) for spec in specs},
        primary=choice.primary,
        rows=tuple(scored),
        seconds=time.perf_counter() - started,
        settings=settings,
        reason=choice.reason,
        fields=field_metrics(scored) if "field_exact" in choice.names else {},
        cut_off=sum(not a.stopped for a in answers),
        cached=cached,
    )


def restricted(result: EvalResult, ids: Iterable[str]) -> EvalResult:
    """A result as it would be on some of its rows, in that order: means of rows and scores of sets.

    Errors: KeyError for a row that was not judged.
    """
    found = {row.id: row for row in result.rows}
    kept = tuple(found[name] for name in ids)
    groups = [row.group for row in kept]
    metrics = {
        name: set_metric_of(SET_METRICS[name], kept)
        if name in SET_METRICS
        else metric_of([row.scores[name] for row in kept], groups).model_copy(
            update={"greater_is_better": whole.greater_is_better}
        )
        for name, whole in result.metrics.items()
    }
    return result.model_copy(update={"rows": kept, "metrics": metrics})


def field_metrics(rows: Sequence[ScoredRow]) -> dict[str, Metric]:
    """For JSON answers: how often each expected field is right, in the order in which fields appear."""
    scores: dict[str, list[float]] = {}
    groups: dict[str, list[str | None]] = {}
    for row in rows:
        for path, score in (per_field(row.expected, without_thinking(row.answer)) or {}).items():
            scores.setdefault(path, []).append(score)
            groups.setdefault(path, []).append(row.group)
    commonest = sorted(scores, key=lambda path: -len(scores[path]))[:MOST_FIELDS]
    return {path: metric_of(scores[path], groups[path]) for path in scores if path in commonest}


def answer_all(
    generator: Generator,
    asked: Sequence[Question],
    max_new_tokens: int,
    progress: Progress | None,
    cache_dir: Path | None,
) -> tuple[list[Generated], int]:
    """A greedy answer for each question, in order, and how many came from the cache."""
    # Weights without a digest cannot be told apart from others, so nothing of theirs is kept.
    cache = None
    if cache_dir is not None and generator.weights_digest:
        key = digest_of([generator.weights_digest, "greedy", max_new_tokens])
        cache = AnswerCache(cache_dir / f"{key[:32]}.jsonl")
    known = cache.load() if cache else {}
    total = len(asked)
    digests = [q.digest for q in asked]
    missing = {d: q for d, q in zip(digests, asked, strict=True) if d not in known}
    cached = sum(d in known for d in digests)
    done = cached
    if progress is not None:
        progress(done, total)
    # Prompts of like length share a batch, so that little of it is padding.
    order = sorted(missing, key=lambda d: (sum(len(text_of(m)) for m in missing[d].chat), d))
    repeats = Counter(digests)
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        part = [missing[d] for d in chunk]
        given = generator.generate(
            [q.chat for q in part],
            tools=[q.tools for q in part] if any(q.tools for q in part) else None,
            max_new_tokens=max_new_tokens,
            progress=None if progress is None else Shifted(progress, done, total),
        )
        fresh = dict(zip(chunk, given, strict=True))
        if cache:
            cache.add(fresh)
        known.update(fresh)
        done += sum(repeats[d] for d in chunk)
    if progress is not None:
        progress(total, total)
    return [known[d] for d in digests], cached


@dataclass(frozen=True, slots=True)
class Shifted:
    """Tells progress of one chunk as progress of the whole."""

    tell: Progress
    base: int
    whole: int

    def __call__(self, done: int, total: int) -> None:
        del total
        self.tell(min(self.base + done, self.whole), self.whole)


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """Answers of one set of weights under one set of settings: a JSONL file that is only added to."""

    path: Path

    def load(self) -> dict[str, Generated]:
        """Prompt digest -> answer. A line torn by a kill is passed over: its answer is made again."""
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                item = json.loads(line)
                answer = Generated(str(item["text"]), tuple(item["token_ids"]), bool(item["stopped"]))
                found[str(item["prompt"])] = answer
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def add(self, answers: dict[str, Generated]) -> None:
        """Write answers and wait until they are on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(
                {
                    "prompt": digest,
                    "text": answer.text,
                    "token_ids": list(answer.token_ids),
                    "stopped": answer.stopped,
                }
            )
            for digest, answer in answers.items()
        ]
        # The leading newline ends a line that an earlier kill may have left torn.
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())

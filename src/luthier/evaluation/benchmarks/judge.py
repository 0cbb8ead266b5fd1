"""A model on a benchmark's rows: by log-likelihood, its numbers, its calls, or by running its code."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.evaluation.benchmarks.numbers import flexible_number, same_number, strict_number
from luthier.evaluation.benchmarks.tasks import Asked, Benchmark
from luthier.evaluation.bfcl import accepted, tools_of
from luthier.evaluation.generation import Question, answer_all
from luthier.evaluation.likelihood import ChoiceItem, judge_choices
from luthier.evaluation.metrics import METRICS, without_thinking
from luthier.evaluation.sandbox import Ran, run_python
from luthier.evaluation.statistics import metric_of
from luthier.evaluation.structured import tool_calls
from luthier.schema.protocols import Generated, Generator, Message, Progress, Scorer
from luthier.schema.results import EvalResult, ScoredRow

FIRST_LENGTH = 128
"""New tokens that are asked for first where an answer may end at a stop."""
REASONS = {
    "code": "the code that was written runs, and passes every test of its row",
    "numeric": "the answer is a number",
    "calls": "the calls are those that the row accepts",
}
_FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Read:
    """A row of a file, read, with its place."""

    id: str
    asked: Asked
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Posed:
    """A benchmark made ready: rows, each with its examples."""

    benchmark: Benchmark
    rows: tuple[Read, ...]
    examples: Mapping[str, tuple[Asked, ...]]
    """Topic -> examples; every row's under ``""`` where topics do not matter."""
    left_out: int = 0
    """Rows of the file that could not be asked."""

    def shown(self, row: Read) -> tuple[Asked, ...]:
        """The examples before a row."""
        return self.examples.get(row.asked.topic, self.examples.get("", ()))


def read_rows(
    task: Benchmark, values: Iterable[tuple[Mapping[str, Any], str, int]]
) -> tuple[list[Read], int]:
    """Rows of a file (value, file, line), each with a stable name, and how many cannot be asked.

    TruthfulQA has rows without multiple-choice targets; such rows are left out and counted. Errors:
    DataError with file and line where the first row is of another form.
    """
    found: list[Read] = []
    left = 0
    seen: dict[str, int] = defaultdict(int)
    for value, file, line in values:
        if task.name == "truthfulqa" and value.get("mc1_targets", ...) is None:
            left += 1
            continue
        try:
            asked = task.read(value)
        except DataError as error:
            raise DataError(
                f"is no row of {task.name}: {error.message}",
                file=file,
                line=line,
                hint=f"rows as {task.hub} has them",
            ) from error
        words = json.dumps([asked.text, asked.choices, asked.answer, asked.tests], ensure_ascii=False)
        name = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[name] += 1
        found.append(Read(name if seen[name] == 1 else f"{name}#{seen[name]}", asked, file, line))
    return found, left


def pose(
    task: Benchmark, rows: Sequence[Read], examples: Sequence[Read], shots: int, left_out: int = 0
) -> Posed:
    """The rows with the first ``shots`` examples of their topic (or of all), none of them judged.

    Errors: DataError where a topic has too few.
    """
    judged = {row.asked.text for row in rows}
    chosen: dict[str, list[Asked]] = defaultdict(list)
    for one in examples:
        kept = chosen[one.asked.topic]
        if len(kept) < shots and one.asked.text not in judged:
            kept.append(one.asked)
    for topic in {row.asked.topic for row in rows} if shots else ():
        if len(chosen[topic]) < shots:
            about = f" about {topic}" if topic else ""
            raise DataError(
                f"{task.name} is asked with {shots} examples, and there are {len(chosen[topic])}{about}",
                hint="ask for fewer with --shots, or bring the file with the examples",
            )
    return Posed(task, tuple(rows), {topic: tuple(kept) for topic, kept in chosen.items()}, left_out)


def choice_items(posed: Posed) -> list[ChoiceItem]:
    """What a scorer is asked."""
    task = posed.benchmark
    items = []
    for row in posed.rows:
        shown = "".join(f"{one.text}{task.delimiter}{one.choices[one.right]}\n\n" for one in posed.shown(row))
        items.append(
            ChoiceItem(
                id=row.id,
                context=task.head.format(topic=row.asked.topic) + shown + row.asked.text,
                choices=row.asked.choices,
                right=row.asked.right,
                question=row.asked.text,
                delimiter=task.delimiter,
                group=_group(row),
            )
        )
    return items


def _group(row: Read) -> str | None:
    """A row that stands in the file twice counts once."""
    return f"row {row.id.split('#')[0]}" if "#" in row.id else None


def judge_by_likelihood(
    scorer: Scorer, posed: Posed, *, progress: Progress | None = None, cache_dir: Path | None = None
) -> EvalResult:
    """Multiple choice: the likeliest choice is the answer."""
    return judge_choices(
        scorer,
        choice_items(posed),
        split=posed.benchmark.name,
        primary=posed.benchmark.metric,
        settings={"shots": _shots(posed)},
        progress=progress,
        cache_dir=cache_dir,
    )


def _shots(posed: Posed) -> int:
    return max((len(shown) for shown in posed.examples.values()), default=0)


def ask(posed: Posed, *, chat: bool) -> list[Question]:
    """What a generator is asked: a plain text to go on with, or a chat that begins with the examples."""
    task = posed.benchmark
    found = []
    for row in posed.rows:
        if task.kind == "calls":
            tools = tools_of(row.asked.functions)
            turns = tuple(dict(turn) for turn in row.asked.chat)
            found.append(Question(row.id, turns, tools, row.asked.answer, row.asked.text, _group(row)))
            continue
        shown = posed.shown(row)
        messages: list[Message]
        if chat:
            messages = []
            for one in shown:
                messages += [
                    {"role": "user", "content": one.text},
                    {"role": "assistant", "content": one.answer},
                ]
            messages.append({"role": "user", "content": row.asked.text})
        else:
            before = "".join(f"{one.plain}{task.delimiter}{one.shown}\n\n" for one in shown)
            messages = [{"role": "text", "content": before + row.asked.plain}]
        asked = row.asked.text if chat else row.asked.plain
        found.append(Question(row.id, tuple(messages), None, row.asked.answer, asked, _group(row)))
    return found


def judge_by_answer(
    generator: Generator,
    posed: Posed,
    *,
    max_new_tokens: int | None = None,
    chat: bool = False,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
    run: Callable[[str], Ran] = run_python,
) -> EvalResult:
    """Numbers and code: what the model writes is compared, or run with the row's tests.

    max_new_tokens: the benchmark's own where not given. chat: asked through the chat template instead of
    as a plain text. run: runs a program; only code benchmarks call it.
    """
    task = posed.benchmark
    longest = max_new_tokens or task.longest
    asked = ask(posed, chat=chat)
    began = time.perf_counter()
    chat = chat or task.kind == "calls"
    stops = () if chat else task.stops
    answers, cached = _until(
        generator, asked, stops=stops, longest=longest, progress=progress, cache_dir=cache_dir
    )
    rows = []
    for row, question, answer in zip(posed.rows, asked, answers, strict=True):
        text = cut(answer.text, stops)
        scored = ScoredRow(
            id=row.id,
            prompt=question.prompt,
            expected=row.asked.answer,
            answer=text,
            scores={},
            group=question.group,
        )
        if task.kind == "code":
            rows.append(_ran(row, scored, run, chat=chat))
        elif task.kind == "calls":
            rows.append(_called(row, scored))
        else:
            rows.append(_number(row, scored, chat=chat))
    groups = [row.group for row in rows]
    names = tuple(rows[0].scores)
    return EvalResult(
        split=task.name,
        model=generator.label,
        weights_digest=generator.weights_digest,
        metrics={name: metric_of([row.scores[name] for row in rows], groups) for name in names},
        primary=names[0],
        rows=tuple(rows),
        seconds=time.perf_counter() - began,
        settings={
            "decoding": "greedy",
            "max_new_tokens": longest,
            "metrics": ", ".join(names),
            "shots": _shots(posed),
            "form": "chat" if chat else "plain text",
        },
        reason=REASONS[task.kind],
        cut_off=sum(not answer.stopped for answer in answers) if chat else 0,
        cached=cached,
    )


def _until(
    generator: Generator,
    asked: Sequence[Question],
    *,
    stops: Sequence[str],
    longest: int,
    progress: Progress | None,
    cache_dir: Path | None,
) -> tuple[list[Generated], int]:
    """Answers up to a stop or the longest length, and how many came from the cache.

    Generators know no stops: short answers are asked for first, longer ones only where none has come.
    """
    found: dict[int, Generated] = {}
    cached, length = 0, FIRST_LENGTH if stops else longest
    while left := [place for place in range(len(asked)) if place not in found]:
        length = min(length, longest)
        given, known = answer_all(generator, [asked[place] for place in left], length, progress, cache_dir)
        cached += known if length == longest else 0
        found |= {
            place: answer
            for place, answer in zip(left, given, strict=True)
            if answer.stopped or length == longest or cut(answer.text, stops) != answer.text
        }
        length *= 2
    return [found[place] for place in range(len(asked))], cached


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some stops."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _number(row: Read, scored: ScoredRow, *, chat: bool) -> ScoredRow:
    if chat:
        right = METRICS["numeric_exact"].score(row.asked.answer, without_thinking(scored.answer))
        return scored.model_copy(update={"scores": {"numeric_exact": right}})
    expected, said = row.asked.shown, scored.answer
    scores = {
        "strict_match": float(same_number(expected, strict_number(said))),
        "flexible_match": float(same_number(expected, flexible_number(said))),
    }
    return scored.model_copy(update={"scores": scores})


def _called(row: Read, scored: ScoredRow) -> ScoredRow:
    calls = tool_calls(without_thinking(scored.answer))
    right = float(accepted(row.asked.functions, calls, row.asked.truth))
    return scored.model_copy(update={"scores": {"calls_accepted": right}})


def _ran(row: Read, scored: ScoredRow, run: Callable[[str], Ran], *, chat: bool) -> ScoredRow:
    # In a chat a program may begin anew: a function whose body is its description may be written over.
    written = f"\n{code_of(scored.answer)}" if chat else scored.answer
    ended = run(f"{row.asked.before}{written}\n\n{row.asked.tests}\n")
    said = (
        ""
        if ended.passed
        else f"\n\n[{ended.outcome}: {ended.said.splitlines()[-1][:200] if ended.said else ''}]"
    )
    return scored.model_copy(
        update={
            "scores": {"pass": float(ended.passed)},
            "answer": scored.answer + said,
            "figures": {"seconds": ended.seconds},
        }
    )


def code_of(answer: str) -> str:
    """The program in an answer: what stands in its first code fence, else all of it."""
    text = without_thinking(answer)
    found = _FENCE.search(text)
    return found.group(1) if found else text

"""How a model conducts itself on everyday requests: whether it answers, stops, repeats, writes JSON."""

from __future__ import annotations

import re
import time
from pathlib import Path

from luthier.evaluation.conduct_rows import JSON_REQUESTS, REQUESTS
from luthier.evaluation.generation import Question, answer_all, digest_of
from luthier.evaluation.metrics import without_thinking
from luthier.evaluation.statistics import metric_of
from luthier.evaluation.structured import find_json
from luthier.schema.protocols import Generator, Progress
from luthier.schema.results import EvalResult, ScoredRow

REQUESTS_SPLIT = "everyday requests"
JSON_SPLIT = "requests for JSON"
LONGEST = 96
"""New tokens of an answer; one sentence and a small object need fewer."""
FEWEST_REPEATS = 4
"""How often in a row the same words must stand before it is called repeating."""
LONGEST_UNIT = 40
"""Words of the longest stretch whose repetition is looked for."""

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:very |so |really )?sorry\b(?!.{0,30}\bto hear\b)"
    r"|i (?:can(?:not|'t| not)|could(?: not|n't)|won't|will not|must decline|refuse to)\b"
    r"|i(?:'m| am) (?:unable|not able|not allowed|not permitted|not comfortable)\b"
    r"|as an? (?:ai|artificial intelligence|language model)\b"
    r".{0,80}\b(?:can(?:not|'t)|unable|not able|don't)\b"
    r"|i do(?: not|n't) (?:feel comfortable|have the ability)\b)",
    re.IGNORECASE | re.DOTALL,
)
BEGINNING = 200
"""Characters of an answer within which a refusal stands."""


def refuses(answer: str) -> bool:
    """Whether an English answer turns the request down, told by its first words."""
    return _REFUSAL.search(without_thinking(answer)[:BEGINNING].replace("\u2019", "'")) is not None


def repeats(answer: str) -> bool:
    """Whether a stretch of up to 40 words, or one sign, stands there again and again without an end."""
    if re.search(r"([^\s])\1{24,}", answer):
        return True
    words = answer.split()
    for unit in range(1, min(LONGEST_UNIT, len(words) // FEWEST_REPEATS) + 1):
        run = 0
        for place in range(unit, len(words)):
            run = run + 1 if words[place] == words[place - unit] else 0
            if run >= unit * (FEWEST_REPEATS - 1) and run + unit >= 8:
                return True
    return False


def _conduct(answer: str, *, stopped: bool) -> dict[str, float]:
    said = bool(answer.strip())
    return {
        "answered": float(said and not refuses(answer)),
        "stopped": float(stopped),
        "no_repetition": float(said and not repeats(answer)),
    }


def _format(answer: str, *, stopped: bool) -> dict[str, float]:
    del stopped
    return {"json_found": float(isinstance(find_json(without_thinking(answer)), dict))}


def judge_conduct(
    generator: Generator, *, progress: Progress | None = None, cache_dir: Path | None = None
) -> dict[str, EvalResult]:
    """One chat model on the everyday requests and the requests for JSON, by split."""
    began = time.perf_counter()
    asked = [
        Question(digest_of(text)[:16], ({"role": "user", "content": text},), None, "", text, None)
        for text in (*REQUESTS, *JSON_REQUESTS)
    ]
    answers, cached = answer_all(generator, asked, LONGEST, progress, cache_dir)
    seconds = time.perf_counter() - began
    pairs = list(zip(asked, answers, strict=True))
    parts = (
        (REQUESTS_SPLIT, pairs[: len(REQUESTS)], _conduct, "harmless requests, asked as a chat"),
        (JSON_SPLIT, pairs[len(REQUESTS) :], _format, "requests that say which JSON object is wanted"),
    )
    found = {}
    for split, part, score, reason in parts:
        rows = tuple(
            ScoredRow(
                id=question.id,
                prompt=question.prompt,
                expected="",
                answer=answer.text,
                scores=score(answer.text, stopped=answer.stopped),
            )
            for question, answer in part
        )
        names = tuple(rows[0].scores)
        found[split] = EvalResult(
            split=split,
            model=generator.label,
            weights_digest=generator.weights_digest,
            metrics={name: metric_of([row.scores[name] for row in rows]) for name in names},
            primary=names[0],
            rows=rows,
            seconds=seconds * len(rows) / len(pairs),
            settings={"decoding": "greedy", "max_new_tokens": LONGEST, "metrics": ", ".join(names)},
            reason=reason,
            cut_off=sum(not answer.stopped for _, answer in part),
            cached=min(cached, len(rows)),
        )
    return found

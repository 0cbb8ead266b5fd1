"""A judge for the answers of runs: which rows and conversations, what it cost, where it is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.catalog.purposes import spec_of, tunes_preferences
from luthier.data.splits import choose
from luthier.errors import LuthierError, Unsupported, UsageError
from luthier.evaluation.generation import questions
from luthier.evaluation.judge import CRITERIA, LONGEST, judge_pairs, pairs_of
from luthier.hub.cache import room
from luthier.runs.directory import RunDirectory
from luthier.runs.judging import answering
from luthier.runs.model import Say
from luthier.runs.prepare import read_data, tokenizer_of
from luthier.schema.judgement import Judgement
from luthier.schema.protocols import ChatRow, Message, Progress
from luthier.schema.results import EvalResult
from luthier.serving.endpoint import Endpoint

PER = 1e6
"""Prices are for so many tokens."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who judges, and how."""

    judge: str
    """An address, a .gguf file, a folder, a run or a model."""
    model: str | None = None
    """Which model of an address."""
    criteria: str = CRITERIA
    reference: bool = False
    rows: int | None = None
    """No more rows than this, chosen by seed."""
    longest: int = LONGEST
    prices: tuple[float, float] | None = None
    """US dollars for a million tokens that the judge reads and writes."""


def chats_of_rows(rows: Sequence[ChatRow]) -> dict[str, Sequence[Message]]:
    """Row id -> the turns before its answer."""
    return {one.id: one.chat for one in questions(rows)}


def chats_of_run(run: RunDirectory, split: str, say: Say) -> dict[str, Sequence[Message]]:
    """The conversations of a run's held-out split; empty, and said so, where its files have gone.

    Errors: Unsupported for a run that writes no answers.
    """
    demand_answers(run)
    facts: dict[str, Any] = run.stage_values("model") or {}
    try:
        data = read_data(run.recipe, tokenizer_of(run.recipe, Path(facts["path"])))
        return chats_of_rows(data.splits.tests[split])
    except (LuthierError, KeyError, OSError) as error:
        say(f"the rows of {run.id} cannot be read again ({error}): the judge sees the last user turn alone")
        return {}


def demand_answers(run: RunDirectory) -> None:
    """Errors: Unsupported for a run whose model writes no answers to read."""
    recipe = run.recipe
    if spec_of(recipe.task).rows != "chats" or tunes_preferences(recipe):
        what = "preference pairs" if tunes_preferences(recipe) else recipe.task
        raise Unsupported(
            f"{run.id} is judged on {what}: there are no written answers to compare",
            hint="its own metrics compare it: luthier compare without --judge",
        )


def judge_results(
    first: EvalResult,
    second: EvalResult,
    asked: Asked,
    *,
    names: tuple[str, str],
    chats: Mapping[str, Sequence[Message]] | None = None,
    say: Say,
    progress: Progress | None = None,
    seed: int = 17,
) -> Judgement:
    """Two models' answers to the same rows, judged. Errors: UsageError if rows do not pair; the judge's."""
    pairs = pairs_of(first, second, chats)
    if asked.rows is not None and asked.rows < len(pairs):
        kept = {row.id for row in choose([_Row(pair.id) for pair in pairs], asked.rows, seed=seed)}
        pairs = [pair for pair in pairs if pair.id in kept]
    with answering(asked.judge, model=asked.model, longest=asked.longest, say=say) as judge:
        found = judge_pairs(
            judge,
            pairs,
            split=second.split,
            names=names,
            criteria=asked.criteria,
            reference=asked.reference,
            longest=asked.longest,
            cache_dir=room("judgements"),
            progress=progress,
        )
        used = judge.used if isinstance(judge, Endpoint) else None
    if used is None or not used.told:
        return found
    cost = None
    if asked.prices is not None:
        cost = (used.prompt_tokens * asked.prices[0] + used.completion_tokens * asked.prices[1]) / PER
    return found.model_copy(
        update={
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "cost": cost,
        }
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """A row by its id alone, to be chosen by it."""

    id: str
    group: str | None = None
    file: str = ""


def keep(run: RunDirectory, judgement: Judgement) -> str:
    """Write a judgement with every reason into a run's folder; its path."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", f"{judgement.first}-{judgement.second}").strip("-")[:80]
    name = f"judgements/{datetime.now().astimezone():%Y%m%d-%H%M%S}-{stem}"
    run.save_stage(name, "", judgement)
    return str(run.path / f"{name}.json")


def load_judgements(run: RunDirectory) -> list[Judgement]:
    """What was kept of judges in a run's folder, oldest first."""
    names = sorted(path.stem for path in (run.path / "judgements").glob("*.json"))
    found = [run.stage(f"judgements/{name}", Judgement) for name in names]
    return [one for one in found if one is not None]


def read_prices(words: str | None) -> tuple[float, float] | None:
    """``IN,OUT`` in US dollars for a million tokens. Errors: UsageError."""
    if words is None:
        return None
    try:
        low, high = (float(part) for part in words.split(","))
    except ValueError:
        low = high = -1.0
    if low < 0 or high < 0:
        raise UsageError(
            f"{words} are no prices",
            hint="dollars for a million tokens read and written: --judge-price 0.15,0.6",
        )
    return low, high

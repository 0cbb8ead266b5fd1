"""Multiple choice and language modelling by log-likelihood, for whatever can score a text."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import DataError
from luthier.evaluation.generation import Shifted, digest_of
from luthier.evaluation.statistics import metric_of
from luthier.evaluation.totals import SET_METRICS, set_metric_of
from luthier.schema.protocols import Likelihood, Progress, Scorer
from luthier.schema.results import EvalResult, ScoredRow

CHUNK = 512
"""Pairs between two writes of the cache."""
SHOWN = 400
"""Characters of a text that stand in a report."""


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """One question with its choices."""

    id: str
    context: str
    """All that stands before the choice, examples too."""
    choices: tuple[str, ...]
    right: int
    """Index of the right choice."""
    question: str = ""
    """For people to read; the context where empty."""
    group: str | None = None
    delimiter: str = " "
    """What stands between context and choice; no part of the choice's length."""


@dataclass(frozen=True, slots=True)
class TextItem:
    """A text whose predictability is measured."""

    id: str
    text: str
    group: str | None = None


def judge_choices(
    scorer: Scorer,
    items: Sequence[ChoiceItem],
    *,
    split: str,
    primary: str = "acc",
    settings: dict[str, str | int | float | bool] | None = None,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> EvalResult:
    """The likeliest choice of every item.

    acc: it is the right one, by log-probability. acc_norm: by log-probability over the choice's length
    in characters (both as in lm-evaluation-harness; the first of equals is taken). right_probability:
    the right choice's share of the probability of all choices. primary: one of the three.
    """
    if not items:
        raise DataError(f"{split} has no questions", hint="name a file with rows")
    began = time.perf_counter()
    pairs = [(item.context, item.delimiter + choice) for item in items for choice in item.choices]
    found, cached = _likelihoods(scorer, pairs, progress, cache_dir)
    rows, at = [], 0
    for item in items:
        part = found[at : at + len(item.choices)]
        at += len(item.choices)
        rows.append(_choice_row(item, [one.nats for one in part]))
    groups = [row.group for row in rows]
    names = [primary, *(name for name in ("acc", "acc_norm", "right_probability") if name != primary)]
    return EvalResult(
        split=split,
        model=scorer.label,
        weights_digest=scorer.weights_digest,
        metrics={name: metric_of([row.scores[name] for row in rows], groups) for name in names},
        primary=primary,
        rows=tuple(rows),
        seconds=time.perf_counter() - began,
        settings={"metrics": ", ".join(names), **(settings or {})},
        reason="the choice that the model finds likeliest is its answer",
        cached=cached,
    )


def _choice_row(item: ChoiceItem, nats: list[float]) -> ScoredRow:
    lengths = [max(len(choice), 1) for choice in item.choices]
    plain = _best(nats)
    normed = _best([n / length for n, length in zip(nats, lengths, strict=True)])
    top = max(nats)
    shares = [math.exp(n - top) for n in nats]
    return ScoredRow(
        id=item.id,
        prompt=item.question or item.context,
        expected=item.choices[item.right],
        answer=item.choices[plain],
        scores={
            "acc": float(plain == item.right),
            "acc_norm": float(normed == item.right),
            "right_probability": shares[item.right] / sum(shares),
        },
        group=item.group,
        figures={f"nats of choice {number}": n for number, n in enumerate(nats, 1)},
    )


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


def judge_texts(
    scorer: Scorer,
    items: Sequence[TextItem],
    *,
    split: str,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> EvalResult:
    """How well texts are predicted: nats a token and bits a byte of UTF-8, less is better."""
    if not items:
        raise DataError(f"{split} has no texts", hint="name a file with rows")
    began = time.perf_counter()
    found, cached = _likelihoods(scorer, [("", item.text) for item in items], progress, cache_dir)
    rows = []
    for item, one in zip(items, found, strict=True):
        size = len(item.text.encode())
        loss = -one.nats / max(one.tokens, 1)
        rows.append(
            ScoredRow(
                id=item.id,
                prompt=item.text[:SHOWN] + ("..." if len(item.text) > SHOWN else ""),
                expected="",
                answer=f"{loss:.3f} nats a token",
                scores={"loss": loss, "bits_per_byte": -one.nats / math.log(2) / max(size, 1)},
                group=item.group,
                figures={"nats": -one.nats, "tokens": float(one.tokens), "bytes": float(size)},
            )
        )
    result = text_result(
        rows, split=split, model=scorer.label, weights_digest=scorer.weights_digest, cached=cached
    )
    return result.model_copy(update={"seconds": time.perf_counter() - began})


def text_result(
    rows: Sequence[ScoredRow],
    *,
    split: str,
    model: str,
    weights_digest: str,
    settings: dict[str, str | int | float | bool] | None = None,
    cached: int = 0,
) -> EvalResult:
    """The result of texts with their cross-entropies; its seconds are the caller's to fill in."""
    names = ("loss", "bits_per_byte")
    return EvalResult(
        split=split,
        model=model,
        weights_digest=weights_digest,
        metrics={name: set_metric_of(SET_METRICS[name], rows) for name in names},
        primary=names[0],
        rows=tuple(rows),
        seconds=0.0,
        settings={"metrics": ", ".join(names), **(settings or {})},
        reason="plain text has no answer to score: how well it is predicted is measured",
        cached=cached,
    )


def _likelihoods(
    scorer: Scorer, pairs: Sequence[tuple[str, str]], progress: Progress | None, cache_dir: Path | None
) -> tuple[list[Likelihood], int]:
    """A likelihood for each pair, in order, and how many came from the cache."""
    path = None
    if cache_dir is not None and scorer.weights_digest:
        path = cache_dir / f"likelihoods-{digest_of(scorer.weights_digest)[:32]}.jsonl"
    known = _load(path)
    digests = [digest_of(list(pair)) for pair in pairs]
    missing = {d: pair for d, pair in zip(digests, pairs, strict=True) if d not in known}
    cached = sum(d in known for d in digests)
    order, total = list(missing), len(missing)
    start = 0
    while start < total:
        end = min(start + CHUNK, total)
        # Choices of one context stay together: the context is computed once.
        while end < total and missing[order[end]][0] == missing[order[end - 1]][0]:
            end += 1
        part = order[start:end]
        tell = None if progress is None else Shifted(progress, start, total)
        given = scorer.score([missing[d] for d in part], progress=tell)
        fresh = dict(zip(part, given, strict=True))
        if path is not None:
            _add(path, fresh)
        known.update(fresh)
        start = end
    if progress is not None:
        progress(total, total)
    return [known[d] for d in digests], cached


def _load(path: Path | None) -> dict[str, Likelihood]:
    """Pair digest -> likelihood. A line torn by a kill is passed over: it is computed again."""
    if path is None or not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            digest, nats, tokens, greedy = json.loads(line)
            found[str(digest)] = Likelihood(float(nats), int(tokens), bool(greedy))
        except (ValueError, TypeError):
            continue
    return found


def _add(path: Path, found: dict[str, Likelihood]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps([digest, one.nats, one.tokens, one.greedy]) for digest, one in found.items()]
    # The leading newline ends a line that an earlier kill may have left torn.
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())

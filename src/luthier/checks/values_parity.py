"""Does an export that writes no text answer like the trained model? Token ids, vectors, scores, logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.schema.results import ParityCheck

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luthier.schema.recipe import Dtype
    from luthier.tasks.held import Held

SAME: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far an answer in float32 may be from the trained model's, as a share of the largest, by the type that
the trained model computes in."""
SAME_COSINE = 0.999
"""Least cosine of a vector at full precision to the trained model's."""
BROKEN_COSINE = 0.8
"""Least cosine below which a quantised embedder is broken, not quantised (MiniLM-L6 in Q4_K_M: 0.98)."""


def check_values(
    held: Held,
    ids: Sequence[Sequence[int]],
    values: NDArray[Any],
    *,
    allowed: float | None,
    by: str,
    least: float = SAME_COSINE,
) -> ParityCheck:
    """Hold an export's token ids and answers to the trained model's.

    ids: of each input, as the export reads it. values: shaped as ``held.values``. allowed: largest
    difference as a share of the largest answer; None where only the cosine counts (a vector in other
    arithmetic), which must then be ``least``. by: who answered, in words.
    """
    problems = []
    same = [list(mine) == list(theirs) for mine, theirs in zip(held.ids, ids, strict=True)]
    if not all(same):
        problems.append(_other_ids(held, ids, same.index(False), by))
    mine, theirs = np.asarray(held.values, np.float64), np.asarray(values, np.float64)
    if mine.shape != theirs.shape:
        problems.append(f"{by} answers in the shape {theirs.shape}, the trained model in {mine.shape}")
        theirs = np.full(mine.shape, np.nan)
    rows = np.abs(mine - theirs).reshape(len(mine), -1).max(axis=1)
    scale = max(1.0, float(np.abs(mine).max()))
    worst = float(rows.max())
    agreement = agreement_of(held.answers, mine, theirs)
    if held.answers == "embed":
        limit = least if allowed is None else -1.0
        if not agreement >= limit:
            problems.append(
                f"{by} gives vectors with a cosine of {agreement:.4f} to the trained model's at the worst, "
                f"under {least:g}; probable cause: pooling, prompt or special tokens"
            )
        close = rows <= (SAME["bfloat16"] if allowed is None else allowed) * scale
    if allowed is not None:
        close = rows <= allowed * scale
        if not close.all():
            problems.append(f"{by} differs by up to {worst:.2g} (the largest answer is {scale:.2g})")
    if held.answers == "classify":
        close = mine.argmax(axis=1) == theirs.argmax(axis=1)
    return ParityCheck(
        prompts=len(held.inputs),
        equal_token_ids=sum(same),
        compared_tokens=len(held.inputs),
        equal_tokens=int(close.sum()),
        near_ties=0,
        stops=True,
        passed=not problems,
        problems=tuple(problems),
        largest_difference=worst,
        agreement=agreement,
    )


def agreement_of(answers: str, mine: NDArray[Any], theirs: NDArray[Any]) -> float:
    """embed: least cosine; rerank: rank correlation (Spearman); classify: share of equal best labels."""
    if answers == "embed":
        norms = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
        return float((np.einsum("rd,rd->r", mine, theirs) / np.maximum(norms, 1e-12)).min())
    if answers == "rerank":
        if len(mine) < 2 or np.ptp(mine) == 0:
            return 1.0
        from scipy.stats import spearmanr

        return float(spearmanr(mine, theirs).statistic)
    return float((mine.argmax(axis=1) == theirs.argmax(axis=1)).mean())


def _other_ids(held: Held, ids: Sequence[Sequence[int]], place: int, by: str) -> str:
    mine, theirs = held.ids[place], ids[place]
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
    at = min(len(mine), len(theirs)) if at is None else at
    text = held.inputs[place] if isinstance(held.inputs[place], str) else " | ".join(held.inputs[place])
    found = [str(one[at]) if at < len(one) else "nothing" for one in (mine, theirs)]
    return (
        f"{text[:60]!r}: token {at} is {found[0]} in the trained model, {found[1]} with {by}; "
        "probable cause: tokenizer (case, splitting, special tokens) or longest input"
    )

"""Coverage of the intervals for correlations: the jackknife's shares against the percentile bootstrap.

python benchmarks/proof/correlation.py --simulations 300 --out benchmarks/proof/correlation.jsonl

Two models' scores of the same pairs with normal noise, half of them sharing part of it; the truth is the
mean difference of Spearman's correlation over large samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.retrieval import correlation, shares_of
from luthier.evaluation.statistics import mean_interval

Floats = NDArray[np.float64]
LARGE, RESAMPLES = 20_000, 300
CASES = ((0.9, 0.5, 0.5), (1.5, 0.5, 0.0), (0.5, 0.48, 0.8))
"""Noise of the first and of the second model, and the share of it that both have."""


def draw(rng: np.random.Generator, n: int, case: tuple[float, float, float], graded: bool) -> Any:
    """Scores of two models and the expected ones: normal, or 26 grades that pile up at the ends."""
    first, second, shared = case
    wanted = np.round(rng.beta(1.2, 1.0, n) * 25) / 5 if graded else rng.normal(size=n)
    common = np.sqrt(shared) * rng.normal(size=n)
    own = np.sqrt(1 - shared)
    base = wanted / (1.4 if graded else 1.0)
    return (
        base + first * (common + own * rng.normal(size=n)),
        base + second * (common + own * rng.normal(size=n)),
        wanted,
    )


def gain(before: Floats, after: Floats, wanted: Floats) -> float:
    """What is to be covered."""
    return correlation(after, wanted, by_rank=True) - correlation(before, wanted, by_rank=True)


def cell(rng: np.random.Generator, n: int, case: Any, *, graded: bool, simulations: int) -> dict[str, Any]:
    """Coverage in one setting."""
    truth = float(np.mean([gain(*draw(rng, LARGE, case, graded)) for _ in range(6)]))
    hits = {"jackknife": 0, "bootstrap": 0}
    for _ in range(simulations):
        before, after, wanted = draw(rng, n, case, graded)
        shares = shares_of(after, wanted, by_rank=True) - shares_of(before, wanted, by_rank=True)
        low, high = mean_interval(shares)
        hits["jackknife"] += bool(low <= truth <= high)
        picks = rng.integers(0, n, (RESAMPLES, n))
        gains = [gain(before[p], after[p], wanted[p]) for p in picks]
        low, high = np.quantile(gains, [0.025, 0.975])
        hits["bootstrap"] += bool(low <= truth <= high)
    facts = {"rows": n, "noise": case, "scores": "graded" if graded else "normal", "truth": round(truth, 4)}
    return {**facts, "simulations": simulations, **{k: round(v / simulations, 4) for k, v in hits.items()}}


def main() -> None:
    """Every setting, one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    with asked.out.open("w") as lines:
        for graded in (False, True):
            for n in (50, 200):
                for case in CASES:
                    found = cell(rng, n, case, graded=graded, simulations=asked.simulations)
                    lines.write(json.dumps(found) + "\n")
                    lines.flush()
                    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

"""Why not the bootstrap: coverage of the usual intervals beside Luthier's on the same samples.

python benchmarks/proof/bootstrap.py --simulations 1000 --out benchmarks/proof/bootstrap.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from coverage import GRADED, Population, fields

from luthier.evaluation.statistics import mean_interval

Floats = NDArray[np.float64]
RESAMPLES = 999


def t_interval(d: Floats) -> tuple[float, float]:
    """The paired t interval."""
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
    return float(d.mean() - half), float(d.mean() + half)


def bootstraps(d: Floats, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Percentile, BCa and studentised bootstrap intervals of the mean, from the same resamples."""
    n, mean = len(d), d.mean()
    error = d.std(ddof=1) / n**0.5
    if error == 0:
        return dict.fromkeys(("percentile", "BCa", "studentised"), (float(mean), float(mean)))
    drawn = d[rng.integers(0, n, (RESAMPLES, n))]
    means, errors = drawn.mean(axis=1), drawn.std(axis=1, ddof=1) / n**0.5
    t = np.divide(means - mean, errors, out=np.zeros_like(means), where=errors > 0)
    low_t, high_t = np.quantile(t, [0.025, 0.975])
    below = np.mean(means < mean) + np.mean(means == mean) / 2
    bias = stats.norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    centred = d - mean
    # Jackknife acceleration of a mean.
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    shares = stats.norm.cdf(bias + z / (1 - acceleration * z))
    percentile, bca = np.quantile(means, [0.025, 0.975]), np.quantile(means, shares)
    return {
        "percentile": (float(percentile[0]), float(percentile[1])),
        "BCa": (float(bca[0]), float(bca[1])),
        "studentised": (float(mean - high_t * error), float(mean - low_t * error)),
    }


def cell(population: Population, rows: int, simulations: int, seed: int) -> dict[str, object]:
    """Coverage of each interval on the same simulated samples."""
    rng = np.random.default_rng(seed)
    covered: dict[str, int] = {}
    for d in population.draw(rng, (simulations, rows)):
        low, high = mean_interval(d)
        found = {"Luthier": (float(low), float(high)), "t": t_interval(d), **bootstraps(d, rng)}
        for name, ends in found.items():
            covered[name] = covered.get(name, 0) + (ends[0] <= population.mean <= ends[1])
    shares = {name: count / simulations for name, count in covered.items()}
    return {"population": population.name, "rows": rows, "simulations": simulations, "coverage": shares}


def main() -> None:
    """Run every population at two sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/proof/bootstrap.jsonl"))
    arguments = parser.parse_args()
    with arguments.out.open("w") as file:
        for rows in arguments.sizes:
            for population in (fields(0.05, 0.0), *GRADED):
                found = cell(population, rows, arguments.simulations, rows)
                file.write(json.dumps(found) + "\n")
                file.flush()
                print(rows, population.name, found["coverage"], flush=True)


if __name__ == "__main__":
    main()

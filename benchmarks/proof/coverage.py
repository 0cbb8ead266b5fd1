"""Do the intervals cover what they say, and how often is "better" said of nothing?

Simulates paired scores whose true difference is known, over sizes and effects, and writes one line
of JSON for each cell:

    python benchmarks/proof/coverage.py --simulations 10000 --out benchmarks/proof/coverage.jsonl
    python benchmarks/proof/coverage.py --table benchmarks/proof/coverage.jsonl

Targets: coverage at least 93 % in every cell and at most 97.5 % from 100 rows on; "better" in at most
2.9 % of the simulations of a cell without a difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.statistics import (
    FEWEST_DISCORDANT,
    LEVEL,
    PairedScores,
    compare_scores,
    mean_interval,
    score_interval,
    sign_flip_p,
    tango_interval,
)

Floats = NDArray[np.float64]
SIZES = (30, 50, 100, 200, 500, 1000, 2000, 5000)
POWER_SIMULATIONS = 1_000
"""Where there is a difference, verdicts of this many simulations are enough for its power."""


@dataclass(frozen=True)
class Cell:
    """What one population of one size gave."""

    kind: str
    population: str
    rows: int
    simulations: int
    true_difference: float
    coverage: float
    width: float
    """Mean width of the interval."""
    changed: float
    """Mean number of changed rows."""
    false_better: float | None = None
    """Share of simulations called better where there is no difference."""
    power: float | None = None
    """Share called better where there is one."""


@dataclass(frozen=True)
class Population:
    """Differences of one row, drawn [simulations, rows] at a time."""

    name: str
    mean: float
    draw: Callable[[np.random.Generator, tuple[int, int]], Floats]


def fields(up: float, down: float, parts: int = 5) -> Population:
    """Share of right fields: a row gains or loses one to five fifths, or stays."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        u, size = rng.random(shape), rng.integers(1, parts + 1, shape) / parts
        return np.where(u < up, size, np.where(u < up + down, -size, 0.0))

    return Population(f"fields +{up:g} -{down:g}", (up - down) * (parts + 1) / (2 * parts), draw)


def likeness(mean: float, deviation: float) -> Population:
    """chrF-like: every row changes a little."""
    return Population(
        f"normal {mean:g} sd {deviation:g}", mean, lambda rng, shape: rng.normal(mean, deviation, shape)
    )


def one_sided(share: float, scale: float) -> Population:
    """Some rows gain, exponentially, and none loses: strong skewness."""
    return Population(
        f"exponential {scale:g} in {share:g}",
        share * scale,
        lambda rng, shape: rng.exponential(scale, shape) * (rng.random(shape) < share),
    )


def gains_and_losses(share: float, gain: float, loss: float) -> Population:
    """A few rows gain much, all others lose a little."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        gains = 2 * gain * rng.beta(2, 2, shape)
        return np.where(rng.random(shape) < share, gains, -2 * loss * rng.random(shape))

    mean = share * gain - (1 - share) * loss
    return Population(f"{share:g} gain {gain:g}, others lose {loss:.3g}", mean, draw)


GRADED = (
    fields(0.05, 0.05),
    fields(0.1, 0.1),
    fields(0.3, 0.3),
    fields(0.1, 0.0),
    fields(0.2, 0.1),
    fields(0.6, 0.05),
    fields(0.95, 0.0),
    likeness(0.0, 0.1),
    likeness(0.05, 0.2),
    likeness(0.3, 0.1),
    one_sided(0.5, 0.1),
    one_sided(1.0, 0.1),
    gains_and_losses(0.2, 0.4, 0.01),
    # The same shape without a difference: gains of the few pay for losses of the many.
    gains_and_losses(0.2, 0.4, 0.1),
)
RARE = gains_and_losses(0.05, 0.4, 0.01)
"""One sample of 30 rows in five holds none that gains: only what is allowed for unseen rows can cover."""

YES_NO = (
    (0.05, 0.05), (0.1, 0.1), (0.25, 0.25), (0.1, 0.05), (0.1, 0.0),
    (0.2, 0.1), (0.4, 0.05), (0.6, 0.02), (0.9, 0.0),
)  # fmt: skip


def batches(simulations: int, rows: int) -> Iterator[int]:
    """Simulations at a time, so that a batch stays within about 32 MB."""
    most = max(1, 4_000_000 // rows)
    for start in range(0, simulations, most):
        yield min(most, simulations - start)


def graded_cell(
    population: Population,
    rows: int,
    simulations: int,
    seed: int,
    *,
    cluster: int = 1,
    power: int = POWER_SIMULATIONS,
) -> Cell:
    """Graded scores; with cluster > 1 rows come in groups that share half of their difference."""
    rng = np.random.default_rng(seed)
    covered, width, changed, judged, better = 0, 0.0, 0.0, 0, 0
    for size in batches(simulations, rows):
        d = population.draw(rng, (size, rows))
        if cluster > 1:
            shared = np.repeat(population.draw(rng, (size, rows // cluster)), cluster, axis=1)
            d = np.where(rng.random(d.shape) < 0.5, shared, d)
        units = d.reshape(size, rows // cluster, cluster).mean(axis=2)
        low, high = mean_interval(units, reach=1.0)
        covered += int(((low <= population.mean) & (population.mean <= high)).sum())
        width += float((high - low).sum())
        discordant = (d != 0).sum(axis=1)
        changed += float(discordant.sum())
        # Three things make a verdict; the permutation p is only worth its time where the others agree.
        likely = (low > 0) & (discordant >= FEWEST_DISCORDANT)
        most = size if population.mean <= 0 else max(0, power - judged)
        likely[most:] = False
        judged += min(size, most)
        better += sum(sign_flip_p(units[i], seed=i) <= 1 - LEVEL for i in np.flatnonzero(likely))
    null = abs(population.mean) < 1e-12
    return Cell(
        kind="graded" if cluster == 1 else f"graded, groups of {cluster}",
        population=population.name,
        rows=rows,
        simulations=simulations,
        true_difference=population.mean,
        coverage=covered / simulations,
        width=width / simulations,
        changed=changed / simulations,
        false_better=better / judged if population.mean <= 0 else None,
        power=better / judged if population.mean > 0 and not null and judged else None,
    )


@cache
def mcnemar_p(improved: int, regressed: int) -> float:
    """The exact p of so many improved and regressed rows."""
    return sign_flip_p(np.array([1.0] * improved + [-1.0] * regressed))


def yes_no_cell(up: float, down: float, rows: int, simulations: int, seed: int) -> Cell:
    """Yes/no scores: rows improve, regress or stay."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(rows, [up, down, 1 - up - down], size=simulations)
    b, c = counts[:, 0], counts[:, 1]
    low, high = tango_interval(b, c, rows)
    true = up - down
    likely = np.flatnonzero((low > 0) & (b + c >= FEWEST_DISCORDANT))
    better = sum(mcnemar_p(int(b[i]), int(c[i])) <= 1 - LEVEL for i in likely) / simulations
    # Half-open rounding: a limit of exactly the true value counts as covering.
    inside = (low <= true + 1e-9) & (true - 1e-9 <= high)
    return Cell(
        kind="yes/no",
        population=f"improve {up:g}, regress {down:g}",
        rows=rows,
        simulations=simulations,
        true_difference=true,
        coverage=float(inside.mean()),
        width=float((high - low).mean()),
        changed=float((b + c).mean()),
        false_better=better if true == 0 else None,
        power=better if true > 0 else None,
    )


def several_cell(rows: int, simulations: int, seed: int) -> Cell:
    """Four metrics of the same JSON answers at once, no difference: how often any is called better."""
    rng = np.random.default_rng(seed)
    better, covered, width, changed = 0, 0, 0.0, 0.0
    for i in range(simulations):
        skill = rng.beta(2, 2, rows)
        right = rng.random((2, rows, 5)) < skill[:, None]
        valid = rng.random((2, rows)) < 0.5 + skill / 2
        share = right.mean(axis=2) * valid
        extra = rng.integers(0, 3, (2, rows))
        f1 = 2 * share * 5 / (10 + extra)
        scores = {
            "json_valid": valid * 1.0,
            "json_exact": (share == 1) * 1.0,
            "field_exact": share,
            "field_f1": f1,
        }
        found = compare_scores([PairedScores(name, s[0], s[1]) for name, s in scores.items()], seed=i)
        better += any(d.verdict == "better" for d in found)
        main = found[2]
        covered += main.delta.low <= 0 <= main.delta.high
        width += main.delta.high - main.delta.low
        changed += main.improved + main.regressed
    return Cell(
        kind="four metrics, Holm",
        population="same skill before and after",
        rows=rows,
        simulations=simulations,
        true_difference=0.0,
        coverage=covered / simulations,
        width=width / simulations,
        changed=changed / simulations,
        false_better=better / simulations,
    )


@dataclass(frozen=True)
class Score:
    """Scores of one model, and their true mean."""

    name: str
    mean: float
    draw: Callable[[np.random.Generator, int], Floats]


def score_cell(score: Score, rows: int, simulations: int, seed: int) -> Cell:
    """One model's own score, no pairing."""
    rng = np.random.default_rng(seed)
    covered, width = 0, 0.0
    for _ in range(simulations):
        low, high = score_interval(score.draw(rng, rows))
        covered += low - 1e-12 <= score.mean <= high + 1e-12
        width += high - low
    return Cell(
        kind="one score",
        population=score.name,
        rows=rows,
        simulations=simulations,
        true_difference=score.mean,
        coverage=covered / simulations,
        width=width / simulations,
        changed=rows,
    )


SCORES = (
    Score("yes/no 0.02", 0.02, lambda rng, n: (rng.random(n) < 0.02) * 1.0),
    Score("yes/no 0.5", 0.5, lambda rng, n: (rng.random(n) < 0.5) * 1.0),
    Score("yes/no 0.95", 0.95, lambda rng, n: (rng.random(n) < 0.95) * 1.0),
    Score("fields, 0.9 each", 0.9, lambda rng, n: rng.binomial(5, 0.9, n) / 5),
    Score("all or nothing 0.7, else half", 0.85, lambda rng, n: np.where(rng.random(n) < 0.7, 1.0, 0.5)),
    Score("beta(5, 2)", 5 / 7, lambda rng, n: rng.beta(5, 2, n)),
)


def cells(simulations: int, sizes: tuple[int, ...] = SIZES, seed: int = 20_261) -> Iterator[Cell]:
    """Every cell of the grid."""
    for rows in sizes:
        for up, down in YES_NO:
            yield yes_no_cell(up, down, rows, simulations, seed + rows)
        for population in (*GRADED, RARE):
            yield graded_cell(population, rows, simulations, seed + rows)
        for population in (fields(0.3, 0.3), likeness(0.05, 0.2)):
            yield graded_cell(population, rows, simulations, seed + rows, cluster=5)
        for score in SCORES:
            yield score_cell(score, rows, simulations, seed + rows)
        yield several_cell(rows, simulations, seed + rows)


def problems(cell: Cell) -> list[str]:
    """Which targets a cell misses by more than twice the error of its simulation."""
    found = []
    slack = 2 * (0.95 * 0.05 / cell.simulations) ** 0.5
    if cell.coverage < 0.93 - slack:
        found.append("covers too little")
    if cell.rows >= 100 and cell.coverage > 0.975 + slack:
        found.append("covers too much")
    if cell.false_better is not None and cell.false_better > 0.029 + slack:
        found.append("false better")
    return found


def table(path: Path) -> str:
    """The results as Markdown, one line a population, coverage by size."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    sizes = sorted({line["rows"] for line in lines})
    by_population: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for line in lines:
        by_population.setdefault((line["kind"], line["population"]), {})[line["rows"]] = line
    out = [
        f'| scores | population | {" | ".join(f"{n:,}" for n in sizes)} | worst false "better" |',
        f"|---|---|{'---:|' * len(sizes)}---:|",
    ]
    for (kind, population), row in sorted(by_population.items()):
        shown = [f"{row[n]['coverage'] * 100:.1f}" if n in row else "" for n in sizes]
        false = [r["false_better"] for r in row.values() if r.get("false_better") is not None]
        worst = f"{max(false) * 100:.2f} %" if false else ""
        out.append(f"| {kind} | {population} | {' | '.join(shown)} | {worst} |")
    return "\n".join(out)


def main() -> int:
    """Run the grid or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/proof/coverage.jsonl"))
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return 0
    missed, started = 0, time.perf_counter()
    with arguments.out.open("w") as file:
        for cell in cells(arguments.simulations, tuple(arguments.sizes)):
            file.write(json.dumps({k: v for k, v in asdict(cell).items() if v is not None}) + "\n")
            file.flush()
            said = problems(cell)
            missed += bool(said)
            print(
                f"{time.perf_counter() - started:6.0f} s  {cell.rows:5}  {cell.kind:22} {cell.population:32} "
                f"coverage {cell.coverage * 100:5.1f}  "
                f"{'' if cell.false_better is None else f'false better {cell.false_better * 100:.2f} '}"
                f"{'' if cell.power is None else f'power {cell.power:.2f} '}{', '.join(said)}",
                flush=True,
            )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

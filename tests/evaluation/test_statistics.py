from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from luthier.evaluation.statistics import (
    PairedScores,
    Spread,
    compare_scores,
    detectable_difference,
    holm,
    mean_interval,
    paired_interval,
    rows_needed,
    score_interval,
    sign_flip_p,
    spread_of,
    tango_interval,
    unit_values,
    verdict_of,
    wilson_interval,
)
from luthier.schema.results import Metric
from scripts import script


def coverage_module() -> ModuleType:
    return script("benchmarks/proof/coverage")


@pytest.mark.parametrize(
    ("improved", "regressed", "n", "low", "high"),
    [
        # Complete response before and after consolidation (Cavo et al. 2012), as worked in Fagerland,
        # Lydersen & Laake, "Statistical Analysis of Contingency Tables" (2017), chapter 8.
        (6, 16, 161, -0.1240, -0.0054),
        # Airway hyper-responsiveness (Bentur et al. 2009), Fagerland et al. 2014, Stat. Med. 33:2850.
        (1, 7, 21, -0.517, -0.026),
    ],
)
def test_tango_interval_of_published_examples(
    improved: int, regressed: int, n: int, low: float, high: float
) -> None:
    got = tango_interval(improved, regressed, n)
    digits = 5e-5 if n == 161 else 5e-4
    assert float(got[0]) == pytest.approx(low, abs=digits)
    assert float(got[1]) == pytest.approx(high, abs=digits)


def test_tango_interval_is_where_the_score_test_turns() -> None:
    # At a difference of zero the score test is McNemar's without continuity correction.
    for b, c in ((15, 5), (14, 6), (10, 10), (20, 7)):
        significant = (b - c) ** 2 / (b + c) > stats.chi2.ppf(0.95, 1)
        low, high = tango_interval(b, c, 100)
        assert (low > 0 or high < 0) == significant


def test_tango_interval_at_the_edges() -> None:
    low, high = tango_interval([0, 30, 0], [0, 0, 30], 30)
    # No change at all: z^2 / (n + z^2), Wilson's upper limit for 0 of n.
    wilson = float(wilson_interval(0, 30)[1])
    assert (low[0], high[0]) == pytest.approx((-wilson, wilson))
    assert (low[1], high[1]) == pytest.approx((-high[2], -low[2]))
    assert high[1] == pytest.approx(1)


def test_wilson_interval_equals_scipy() -> None:
    for k, n in ((0, 20), (81, 263), (20, 20), (1, 3)):
        reference = stats.binomtest(k, n).proportion_ci(method="wilson")
        got = wilson_interval(k, n)
        assert (float(got[0]), float(got[1])) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_score_interval_of_graded_scores() -> None:
    rng = np.random.default_rng(0)
    scores = rng.binomial(5, 0.6, 400) / 5
    low, high = score_interval(scores)
    half = stats.t.ppf(0.975, 399) * scores.std(ddof=1) / 20
    # Far from the edges Wilson's interval at the effective size is the t interval.
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.002)
    assert score_interval(np.ones(80))[1] == 1
    assert 0.93 < score_interval(np.ones(80))[0] < 0.96
    low, high = score_interval(np.array([2.0, 3.0, 4.0, 5.0] * 10))
    assert low < 3.5 < high


def test_groups_count_as_one() -> None:
    rng = np.random.default_rng(1)
    shared = rng.random(40)
    rows = np.repeat(shared, 5)
    groups = [f"g{i // 5}" for i in range(200)]
    alone = score_interval(shared)
    assert score_interval(rows, groups) == pytest.approx(alone, abs=0.01)
    assert score_interval(rows)[0] > alone[0]
    units, unit = unit_values(rows, groups)
    assert len(units) == 40
    assert units.mean() == pytest.approx(rows.mean())
    assert unit.max() == 39
    mixed, _ = unit_values(np.arange(4.0), ["a", "a", None, None])
    assert len(mixed) == 3
    assert mixed.mean() == pytest.approx(1.5)


def test_mean_interval_of_many_rows_is_the_t_interval() -> None:
    d = np.random.default_rng(2).normal(0.1, 0.3, 4_000)
    reference = stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d))
    low, high = mean_interval(d)
    assert (float(low), float(high)) == pytest.approx(reference, abs=3e-4)


def test_mean_interval_leans_with_the_skewness() -> None:
    d = np.random.default_rng(3).exponential(1, (2_000, 40))
    low, high = mean_interval(d)
    above, below = (high - d.mean(axis=1)).mean(), (d.mean(axis=1) - low).mean()
    assert above > 1.15 * below
    # Neither tail misses much more often than the other.
    assert 0.005 < (high < 1).mean() < 0.05
    assert 0.005 < (low > 1).mean() < 0.05


def test_no_change_at_all_still_leaves_doubt() -> None:
    low, high = mean_interval(np.zeros(50))
    assert low == pytest.approx(-high)
    assert 0.02 < float(high) < 0.1


@pytest.mark.parametrize("counts", [(9, 1), (15, 5), (300, 240), (3, 0)])
def test_sign_flips_of_yes_no_scores_are_mcnemars_exact_test(counts: tuple[int, int]) -> None:
    b, c = counts
    sums = np.array([1.0] * b + [-1.0] * c + [0.0] * 50)
    assert sign_flip_p(sums) == pytest.approx(stats.binomtest(b, b + c).pvalue)


def test_sign_flips_equal_scipys_permutation_test() -> None:
    rng = np.random.default_rng(4)
    few = np.round(rng.normal(0.4, 1, 10), 3)
    exact = stats.permutation_test(
        (few,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_p(few) == pytest.approx(exact.pvalue)
    many = rng.normal(0.15, 1, 150)
    drawn = stats.permutation_test(
        (many,), np.mean, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(5)
    )
    assert sign_flip_p(many) == pytest.approx(drawn.pvalue, abs=0.015)
    assert sign_flip_p(many) == sign_flip_p(many)
    more = np.concatenate([many, rng.normal(0.05, 1, 100)])
    drawn = stats.permutation_test(
        (more,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(6)
    )
    assert sign_flip_p(more) == pytest.approx(drawn.pvalue, abs=0.015)
    assert sign_flip_p(np.zeros(9)) == 1


def test_holm_of_a_worked_example() -> None:
    # Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def test_rows_needed_follow_connor() -> None:
    # Connor 1987: (1.96 sqrt(psi) + 0.8416 sqrt(psi - delta^2))^2 / delta^2, psi = 0.2, delta = 0.1.
    assert rows_needed(0.1, Spread(second_moment=0.2, size=1, changed_share=0.2)) == 155
    assert rows_needed(0.0, Spread(0.2, 1, 0.2)) is None
    assert rows_needed(-0.1, Spread(0.2, 1, 0.2)) == 155


def test_detectable_difference_is_found_four_times_in_five() -> None:
    n, psi = 200, 0.2
    delta = detectable_difference(n, Spread(psi, 1, psi))
    assert delta is not None
    rng = np.random.default_rng(7)
    counts = rng.multinomial(n, [(psi + delta) / 2, (psi - delta) / 2, 1 - psi], size=1_000)
    found = 0
    for b, c, _ in counts:
        low, _high = tango_interval(b, c, n)
        p = stats.binomtest(int(b), int(b + c)).pvalue
        found += bool(low > 0 and p <= 0.05 and b + c >= 10)
    assert 0.74 < found / 1_000 < 0.86


def test_few_rows_can_show_little() -> None:
    spread = spread_of(np.zeros(30))
    assert spread.second_moment > 0
    assert 0.3 < (detectable_difference(30, spread) or 0) < 0.4
    assert detectable_difference(5, spread) is None


def pair(baseline: list[float], tuned: list[float], **more: object) -> PairedScores:
    return PairedScores("m", np.array(baseline), np.array(tuned), **more)  # type: ignore[arg-type]


def test_verdicts() -> None:
    better = compare_scores([pair([0.0] * 40, [1.0] * 30 + [0.0] * 10)])[0]
    assert (better.verdict, better.improved, better.regressed) == ("better", 30, 0)
    worse = compare_scores([pair([1.0] * 40, [1.0] * 10 + [0.0] * 30)])[0]
    assert (worse.verdict, worse.improved, worse.regressed) == ("worse", 0, 30)
    lower = compare_scores([pair([3.0] * 40, [2.0] * 39 + [2.5], greater_is_better=False)])[0]
    assert (lower.verdict, lower.improved, lower.delta.value < 0) == ("better", 40, True)
    same = compare_scores([pair([0.0, 1.0] * 20, [0.0, 1.0] * 20)])[0]
    assert (same.verdict, same.p_value) == ("inconclusive", 1.0)


def test_fewer_than_ten_changed_rows_prove_nothing() -> None:
    nine = compare_scores([pair([0.0] * 9 + [1.0] * 21, [1.0] * 30)])[0]
    assert nine.delta.low > 0
    assert nine.p_value < 0.05
    assert nine.verdict == "inconclusive"
    ten = compare_scores([pair([0.0] * 10 + [1.0] * 20, [1.0] * 30)])[0]
    assert ten.verdict == "better"


def test_a_verdict_needs_the_corrected_p() -> None:
    delta = Metric(value=0.1, low=0.01, high=0.2, n=100)
    assert verdict_of(delta, 0.04, 40) == "better"
    assert verdict_of(delta, 0.06, 40) == "inconclusive"
    single = compare_scores([pair([0.0] * 16 + [1.0] * 54, [1.0] * 12 + [0.0] * 4 + [1.0] * 50 + [0.0] * 4)])
    assert single[0].p_value == pytest.approx(stats.binomtest(12, 16).pvalue)


def test_repeated_rows_widen_the_interval() -> None:
    rng = np.random.default_rng(8)
    base, tuned = (rng.random(50) < 0.3) * 1.0, (rng.random(50) < 0.5) * 1.0
    groups = tuple(f"g{i}" for i in range(50)) * 4
    narrow = paired_interval(PairedScores("m", np.tile(base, 4), np.tile(tuned, 4)))
    wide = paired_interval(PairedScores("m", np.tile(base, 4), np.tile(tuned, 4), groups))
    assert wide[1] - wide[0] > 1.8 * (narrow[1] - narrow[0])


def test_intervals_cover_in_simulation() -> None:
    coverage = coverage_module()
    simulations = 400
    cells = [
        coverage.yes_no_cell(0.1, 0.1, 100, simulations, 1),
        coverage.yes_no_cell(0.4, 0.05, 30, simulations, 2),
    ]
    cells += [coverage.graded_cell(p, 100, simulations, 3, power=0) for p in coverage.GRADED]
    cells.append(coverage.graded_cell(coverage.fields(0.3, 0.3), 200, simulations, 4, cluster=5))
    cells.append(coverage.several_cell(60, 60, 5))
    for cell in cells:
        slack = 3 * (0.95 * 0.05 / cell.simulations) ** 0.5
        assert cell.coverage > 0.93 - slack, cell
        assert cell.false_better is None or cell.false_better < 0.029 + slack, cell


def test_the_published_table_is_that_of_the_raw_results() -> None:
    coverage = coverage_module()
    root = Path(__file__).parents[2]
    raw = root / "benchmarks" / "proof" / "coverage.jsonl"
    assert coverage.table(raw) in (root / "docs" / "proof.md").read_text(encoding="utf-8")
    for line in raw.read_text(encoding="utf-8").splitlines():
        cell = coverage.Cell(**json.loads(line))
        assert cell.simulations == 10_000
        assert not coverage.problems(cell), cell


def test_the_simulation_would_notice_a_bad_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    coverage = coverage_module()

    def percentile(units: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
        assert reach == 1
        half = 1.96 * units.std(axis=-1) / np.sqrt(units.shape[-1])
        return units.mean(axis=-1) - half, units.mean(axis=-1) + half

    monkeypatch.setattr(coverage, "mean_interval", percentile)
    cell = coverage.graded_cell(coverage.fields(0.1, 0.0), 30, 2_000, 6, power=0)
    assert "covers too little" in coverage.problems(cell)


def test_few_rows_that_all_lose_a_little_may_have_missed_those_that_gain() -> None:
    losses = -np.linspace(0.005, 0.015, 30)
    low, high = mean_interval(losses)
    assert high < 0
    kept, widened = mean_interval(losses, reach=1.0)
    assert kept == low
    assert float(widened) == pytest.approx(losses.mean() + (1 - 0.025 ** (1 / 30)) / 2)
    # the other way round alike; one row that moved otherwise, many rows and unknown scales change nothing
    assert float(mean_interval(-losses, reach=1.0)[0]) == pytest.approx(-float(widened))
    mixed = np.append(losses, 0.3)
    assert mean_interval(mixed, reach=1.0) == mean_interval(mixed)
    many = np.tile(losses, 4)
    assert mean_interval(many, reach=1.0) == mean_interval(many)


def test_one_right_answer_of_fifty_may_have_been_luck() -> None:
    scores = np.zeros(50)
    scores[:3] = 1
    low, high = score_interval(scores)
    # 3 of 50 where 1 in 60 is right: Wilson's own limit of 2.06 % would leave it out
    assert float(wilson_interval(3, 50)[0]) > 0.02
    assert low == pytest.approx(0.8176914 / 50, abs=1e-5)
    assert high == pytest.approx(float(wilson_interval(3, 50)[1]))
    assert score_interval(1 - scores) == pytest.approx((1 - high, 1 - low))
    scores[3] = 1
    assert score_interval(scores) == pytest.approx(tuple(float(x) for x in wilson_interval(4, 50)))


@pytest.mark.parametrize("units", [3, 6, 10, 19])
def test_few_groups_are_given_an_interval_that_holds_students(units: int) -> None:
    draws = np.random.default_rng(units).normal(size=(4_000, units))
    low, high = mean_interval(draws)
    assert 0.94 < float(((low <= 0) & (high >= 0)).mean()) < 0.985

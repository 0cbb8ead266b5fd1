"""Scores of classifiers against scikit-learn, and verdicts on scores that are no means over rows."""

import itertools

import numpy as np
import pytest
from sklearn import metrics

from luthier.errors import UsageError
from luthier.evaluation.calibration import (
    best_threshold,
    choose_refusal,
    choose_thresholds,
    fit_temperature,
    probabilities,
    softmax,
)
from luthier.evaluation.classification import (
    Given,
    choose_metrics,
    confusion,
    confusions,
    given_by,
    judge_labels,
    label_scores,
    majority,
)
from luthier.evaluation.compare import compare
from luthier.evaluation.totals import SET_METRICS, PairedSets, set_metric_of, swap_p
from luthier.schema.classification import Decision
from luthier.schema.rows import LabelRow

NAMES = ("ant", "bee", "cat", "dog")


def row(index, *labels, group=None):
    return LabelRow(f"text {index}", labels, "rows.jsonl", index, f"id{index}", f"key{index}", group=group)


def multi_class(count=400, right=0.7, seed=0):
    draw = np.random.default_rng(seed)
    gold = draw.choice(4, size=count, p=[0.6, 0.25, 0.1, 0.05])
    answer = np.where(draw.random(count) < right, gold, draw.integers(0, 3, count))
    rows = [row(i, NAMES[g]) for i, g in enumerate(gold)]
    confidence = draw.uniform(0.3, 1, count)
    given = [Given((NAMES[a],), c, NAMES[a]) for a, c in zip(answer, confidence, strict=True)]
    return rows, given, gold, answer, confidence


def judged(rows, given, **more):
    settings = {"split": "test", "model": "m", "weights_digest": "d", "multi": False, **more}
    return judge_labels(rows, given, **settings)


def test_multi_class_scores_are_those_of_scikit_learn():
    rows, given, gold, answer, confidence = multi_class()
    result = judged(rows, given)
    assert result.metrics["accuracy"].value == pytest.approx(metrics.accuracy_score(gold, answer))
    assert result.metrics["macro_f1"].value == pytest.approx(metrics.f1_score(gold, answer, average="macro"))
    by_label = metrics.f1_score(gold, answer, average=None, labels=range(4))
    assert [result.fields[name].value for name in NAMES] == pytest.approx(by_label)
    assert (confusion(result.rows, NAMES) == metrics.confusion_matrix(gold, answer)).all()
    assert confusions(result.rows, 1)[0][2] == np.max(
        metrics.confusion_matrix(gold, answer) * (1 - np.eye(4, dtype=int))
    )
    for metric in result.metrics.values():
        assert metric.low <= metric.value <= metric.high
    edges = np.linspace(0, 1, 16)
    hit = gold == answer
    error = sum(
        abs((hit[inside] - confidence[inside]).sum()) / len(gold)
        for low, high in itertools.pairwise(edges)
        if (inside := (confidence > low) & (confidence <= high)).any()
    )
    assert result.metrics["calibration_error"].value == pytest.approx(error)
    assert not result.metrics["calibration_error"].greater_is_better


def test_multi_label_scores_are_those_of_scikit_learn():
    draw = np.random.default_rng(1)
    gold = (draw.random((300, 4)) < [0.4, 0.2, 0.1, 0.02]).astype(int)
    answer = np.where(draw.random((300, 4)) < 0.8, gold, 1 - gold)
    rows = [row(i, *(n for n, on in zip(NAMES, g, strict=True) if on)) for i, g in enumerate(gold)]
    given = [Given(tuple(n for n, on in zip(NAMES, a, strict=True) if on), 0.5, "ant") for a in answer]
    result = judged(rows, given, multi=True)
    score = {name: metric.value for name, metric in result.metrics.items()}
    assert score["micro_f1"] == pytest.approx(metrics.f1_score(gold, answer, average="micro"))
    assert score["macro_f1"] == pytest.approx(metrics.f1_score(gold, answer, average="macro"))
    assert score["labels_exact"] == pytest.approx(metrics.accuracy_score(gold, answer))
    assert score["label_f1"] == pytest.approx(
        metrics.f1_score(gold, answer, average="samples", zero_division=1)
    )
    assert result.rows[0].expected in ("(none)", ", ".join(sorted(rows[0].labels)))


def test_out_of_scope_rows_are_scored_on_their_own():
    rows = [row(0, "ant"), row(1, "oos"), row(2, "oos"), row(3, "bee")]
    given = [
        Given(("ant",), 0.9, "ant"), Given(("oos",), 0.2, "ant"),
        Given(("bee",), 0.8, "bee"), Given(("oos",), 0.3, "bee"),
    ]  # fmt: skip
    result = judged(rows, given, out_of_scope="oos")
    assert result.metrics["out_of_scope_recall"].value == 0.5
    assert result.metrics["in_scope_accuracy"].value == 0.5
    assert result.metrics["accuracy"].value == 0.5
    # Of the two rows inside, one is right at 0.9 and one (refused, yet its best label is right) at 0.3.
    assert result.metrics["calibration_error"].value == pytest.approx((0.1 + 0.7) / 2)


def test_an_interval_of_macro_f1_covers_what_more_rows_show():
    truth = set_metric_of(SET_METRICS["macro_f1"], judged(*multi_class(40_000, seed=9)[:2]).rows).value
    covered = 0
    for seed in range(60):
        found = judged(*multi_class(300, seed=seed)[:2]).metrics["macro_f1"]
        covered += found.low <= truth <= found.high
    assert 50 <= covered <= 60


def test_a_verdict_rests_on_rows_that_changed():
    rows, worse, *_ = multi_class(right=0.4, seed=3)
    better = multi_class(right=0.9, seed=3)[1]
    found = compare(judged(rows, worse), judged(rows, better))
    assert found.verdict == "better"
    by_name = {d.metric: d for d in found.differences}
    assert by_name["macro_f1"].verdict == "better"
    assert by_name["macro_f1"].delta.low > 0
    assert by_name["macro_f1"].improved > by_name["macro_f1"].regressed
    same = compare(judged(rows, worse), judged(rows, worse))
    assert {d.verdict for d in same.differences} == {"inconclusive"}
    assert {d.p_value for d in same.differences} == {1.0}


def test_two_equal_models_differ_as_often_as_the_p_value_says():
    low = 0
    for seed in range(40):
        rows, first, gold, *_ = multi_class(150, right=0.6, seed=seed)
        draw = np.random.default_rng(1000 + seed)
        answer = np.where(draw.random(150) < 0.6, gold, draw.integers(0, 3, 150))
        second = [Given((NAMES[a],), 0.5, NAMES[a]) for a in answer]
        pair = PairedSets(SET_METRICS["macro_f1"], judged(rows, first).rows, judged(rows, second).rows)
        low += swap_p(pair, seed=seed) < 0.2
    assert 2 <= low <= 16


def test_rows_of_a_group_count_as_one():
    rows = [row(i, NAMES[i % 2], group="all") for i in range(40)]
    given = [Given((NAMES[i % 2 if i % 3 else 0],), 0.5, "ant") for i in range(40)]
    loose = [row(i, NAMES[i % 2]) for i in range(40)]
    tied, free = judged(rows, given).metrics["macro_f1"], judged(loose, given).metrics["macro_f1"]
    assert tied.value == pytest.approx(free.value)
    assert tied.high - tied.low > free.high - free.low


def test_the_floor_gives_the_commonest_label():
    assert majority([row(1, "bee"), row(2, "ant"), row(3, "bee")], multi=False).labels == ("bee",)
    assert majority([row(1), row(2), row(3, "ant", "bee"), row(4, "bee")], multi=True).labels == ("bee",)


def test_temperature_is_the_one_that_made_the_logits_too_sure():
    draw = np.random.default_rng(0)
    true = draw.normal(size=(4000, 5)) * 2
    gold = np.array([draw.choice(5, p=p) for p in softmax(true)])
    assert fit_temperature(true * 3, gold, multi=False) == pytest.approx(3, rel=0.1)
    hot = (draw.random((4000, 5)) < 1 / (1 + np.exp(-true))).astype(float)
    assert fit_temperature(true * 0.5, hot, multi=True) == pytest.approx(0.5, rel=0.1)
    surely = fit_temperature(np.eye(5) * 10, np.arange(5), multi=False)
    assert 0.04 < surely < 1


def test_thresholds_have_the_highest_f1_of_all():
    draw = np.random.default_rng(2)
    for _ in range(20):
        chances = np.round(draw.random(60), 2)
        gold = (draw.random(60) < chances).astype(float)
        found = metrics.f1_score(gold, chances >= best_threshold(chances, gold), zero_division=0)
        cuts = [cut for cut in np.unique(chances) if (chances >= cut).sum() <= 2 * gold.sum()]
        most = max(metrics.f1_score(gold, chances >= cut, zero_division=0) for cut in cuts)
        assert found == pytest.approx(most)


def test_a_label_that_is_not_told_is_not_given_to_all():
    chances = np.full(100, 0.1) + np.linspace(0, 1e-3, 100)
    gold = np.zeros(100)
    gold[::10] = 1
    assert (chances >= best_threshold(chances, gold)).sum() <= 20
    assert (np.full(100, 0.1) >= best_threshold(np.full(100, 0.1), gold)).sum() == 0


def test_rare_labels_share_the_threshold_of_all():
    chances = np.array([[0.9, 0.3], [0.8, 0.4], [0.7, 0.2], [0.6, 0.1], [0.55, 0.1], [0.2, 0.1]])
    gold = np.array([[1, 1], [1, 0], [1, 0], [1, 0], [1, 0], [0, 0]])
    own, shared = choose_thresholds(chances, gold)
    assert 0.2 < own < 0.55
    assert shared == best_threshold(chances.ravel(), gold.ravel())


def test_refusal_parts_what_is_outside():
    cut = choose_refusal(np.array([0.9, 0.8, 0.3, 0.2]), np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))
    assert 0.3 < cut < 0.8
    assert cut == pytest.approx(0.55)


def test_logits_become_labels_by_what_was_chosen():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]))
    one = Decision(kind="multi-class", labels=("a", "b", "c"), refuse_below=0.5, out_of_scope="oos")
    found = given_by(logits, one)
    assert [g.labels for g in found] == [("a",), ("oos",)]
    assert found[1].best == "a"
    assert found[0].confidence == pytest.approx(0.7)
    cooler = one.model_copy(update={"temperature": 2.0})
    assert probabilities(logits, cooler)[0, 0] < 0.7
    many = Decision(kind="multi-label", labels=("a", "b"), thresholds=(0.6, 0.2))
    assert [g.labels for g in given_by(np.array([[0.0, -1.0], [3.0, -5.0]]), many)] == [("b",), ("a",)]


def test_metrics_of_other_purposes_are_refused_by_name():
    with pytest.raises(UsageError, match="chrf") as caught:
        choose_metrics(["chrf"], multi=False, out_of_scope=False)
    assert "accuracy" in caught.value.hint
    with pytest.raises(UsageError, match="cannot be the first"):
        choose_metrics(["macro_f1"], multi=True, out_of_scope=False)
    assert choose_metrics(["labels_exact", "macro_f1"], multi=True, out_of_scope=False)[0] == "labels_exact"


def test_labels_are_listed_with_how_often_they_are_expected():
    rows, given, gold, *_ = multi_class()
    found = label_scores(judged(rows, given).rows)
    assert next(iter(found)) == "ant"
    assert found["dog"].n == int((gold == 3).sum())

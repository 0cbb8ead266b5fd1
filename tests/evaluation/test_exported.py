"""What a quantisation keeps of the gain, and which file is recommended."""

import pytest

from luthier.evaluation.classification import Given, judge_labels
from luthier.evaluation.compare import compare
from luthier.evaluation.exported import quality_of, recommended
from luthier.evaluation.generation import restricted
from luthier.evaluation.statistics import metric_of
from luthier.schema.results import Artifact, EvalResult, Metric, Quality, ScoredRow
from luthier.schema.rows import LabelRow


def result(model, scores, settings=None):
    rows = tuple(
        ScoredRow(id=str(n), prompt="p", expected="e", answer="a", scores={"exact_match": score})
        for n, score in enumerate(scores)
    )
    return EvalResult(
        split="test", model=model, weights_digest=model, metrics={"exact_match": metric_of(scores)},
        primary="exact_match", rows=rows, seconds=1, settings=settings or {"max_new_tokens": 8},
    )  # fmt: skip


def test_the_share_of_the_gain_that_is_kept():
    base, tuned = result("base", [0.0] * 40), result("tuned", [1.0] * 32 + [0.0] * 8)
    file = result("gguf:Q4_K_M", [1.0] * 20 + [0.0] * 20, settings={"other": 1})
    found = quality_of(compare(base, tuned), tuned, file, 50.0)
    assert found.kept == pytest.approx(20 / 32)
    assert found.difference.value == pytest.approx(-0.3)
    assert found.verdict == "worse"
    nothing = quality_of(compare(base, base), base, base, None)
    assert (nothing.kept, nothing.verdict) == (None, "inconclusive")


def test_a_result_on_some_of_its_rows():
    part = restricted(result("base", [0.0, 1.0, 1.0, 0.0]), ["2", "3"])
    assert [one.id for one in part.rows] == ["2", "3"]
    assert part.metrics["exact_match"].value == 0.5
    with pytest.raises(KeyError):
        restricted(result("base", [0.0]), ["9"])


def artifact(kind, size, difference, verdict="inconclusive"):
    score = Metric(value=0.8 + difference, low=0, high=1, n=64)
    delta = Metric(value=difference, low=-1, high=1, n=64)
    quality = Quality(split="test", metric="exact_match", score=score, difference=delta, verdict=verdict)
    return Artifact(kind=kind, path=kind, bytes=size, sha256="0", quality=quality)


def test_the_smallest_that_is_not_worse_is_recommended():
    large, middle = artifact("gguf:F16", 300, 0.0), artifact("gguf:Q8_0", 160, -0.01)
    small, tiny = artifact("gguf:Q4_K_M", 100, -0.015), artifact("gguf:Q3_K_M", 80, -0.2, "worse")
    assert recommended([large, middle, small, tiny])[0] is small
    assert recommended([large, artifact("gguf:Q4_K_M", 100, -0.05)])[0] is large
    assert recommended([Artifact(kind="merged", path="m", bytes=1, sha256="0")]) is None
    worst, why = recommended([tiny, artifact("gguf:Q2_K", 60, -0.4, "worse")])
    assert worst is tiny
    assert "loses more than 2%" in why


def test_scores_of_a_set_are_computed_anew_on_some_of_its_rows() -> None:
    rows = [LabelRow("t", (label,), "f", n, f"{n}", f"{n}") for n, label in enumerate("aaabbb" * 10, 1)]
    given = [Given(("a",), 0.5, "a") for _ in rows]
    whole = judge_labels(rows, given, split="test", model="m", weights_digest="d", multi=False)
    part = restricted(whole, [row.id for row in rows if row.labels == ("a",)])
    assert whole.metrics["macro_f1"].value == pytest.approx(1 / 3)
    assert part.metrics["macro_f1"].value == 1.0
    assert part.metrics["accuracy"].n == 30

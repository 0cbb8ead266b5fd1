"""The tuned model is held against what costs no training, on the floor's own rows."""

from luthier.evaluation.statistics import metric_of
from luthier.runs.floors import compare_floors
from luthier.runs.report.words import floor_sentence
from luthier.schema.results import EvalResult, ScoredRow


def result(model, scores, settings):
    rows = tuple(
        ScoredRow(id=name, prompt="p", expected="e", answer="a", scores={"exact_match": score})
        for name, score in scores.items()
    )
    metrics = {"exact_match": metric_of(list(scores.values()))}
    return EvalResult(
        split="test", model=model, weights_digest="", metrics=metrics, primary="exact_match", rows=rows,
        seconds=1, settings=settings,
    )  # fmt: skip


def test_only_the_floors_rows_count_in_whatever_order():
    tuned = result("tuned", {str(n): float(n < 60) for n in range(80)}, {"max_new_tokens": 8})
    floor = result("floor: copy of the prompt", {str(n): 0.0 for n in range(49, 9, -1)}, {"other": 1})
    prompting = result("base with 3 examples", {str(n): 1.0 for n in range(40)}, {})
    copy, shots = compare_floors([floor, prompting], {"test": tuned})
    assert copy.comparison.verdict == "better"
    assert copy.comparison.main.delta.n == 40
    assert copy.comparison.main.tuned.value == 1.0
    assert shots.comparison.verdict == "inconclusive"
    assert floor_sentence(shots).startswith(
        "Without any training, the base with 3 examples cannot be told from the tuned model on 40 rows"
    )

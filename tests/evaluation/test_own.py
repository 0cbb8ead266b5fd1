"""A metric of the user's own: read from a file, asked row by row, compared like the others."""

import pytest

from luthier.errors import DataError, FileProblem, UsageError
from luthier.evaluation.compare import compare
from luthier.evaluation.own import OwnMetric, is_own, load_own, with_own
from luthier.evaluation.statistics import metric_of
from luthier.schema.results import EvalResult, ScoredRow

FILE = '''
"""Words of the answer."""
def score(expected, answer):
    return float(len(answer.split()))

def shout(expected, answer):
    return float(answer.isupper())

def broken(expected, answer):
    return 1 / 0

def nothing(expected, answer):
    return float("nan")
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "words.py"
    path.write_text(FILE)
    return path


def result(answers, model="m"):
    rows = [
        ScoredRow(id=str(n), prompt="p", expected="e", answer=text, scores={"exact_match": 0.0})
        for n, text in enumerate(answers)
    ]
    zero = metric_of([0.0] * len(rows))
    return EvalResult(
        split="test", model=model, weights_digest=model, primary="exact_match", rows=tuple(rows),
        seconds=0.0, metrics={"exact_match": zero}, settings={"metrics": "exact_match"},
    )  # fmt: skip


def test_a_file_names_its_metric(file):
    assert is_own(str(file))
    assert is_own(f"{file}:shout")
    assert not is_own("chrf")
    assert load_own(str(file)).name == "words"
    assert load_own(f"{file}:shout").name == "shout"


def test_it_decides_and_the_others_stay(file):
    judged = with_own(result(["<think>a b c</think> one", "one two three"]), [load_own(str(file))])
    assert judged.primary == "words"
    assert [row.scores["words"] for row in judged.rows] == [1.0, 3.0]
    assert judged.metrics["words"].value == 2.0
    assert list(judged.metrics) == ["words", "exact_match"]
    assert judged.settings["metrics"] == "words, exact_match"


def test_two_results_are_compared_by_it(file):
    own = [load_own(f"{file}:shout")]
    before, after = result(["no"] * 20), result(["YES"] * 18 + ["no"] * 2)
    found = compare(with_own(before, own), with_own(after, own))
    assert found.primary == "shout"
    assert found.verdict == "better"
    assert found.main.delta.value == pytest.approx(0.9)
    assert with_own(before, []) is before


def test_what_fails_is_told_in_words(file, tmp_path):
    with pytest.raises(UsageError, match="no function shot") as error:
        load_own(f"{file}:shot")
    assert "shout" in str(error.value.hint)
    with pytest.raises(FileProblem, match="no such file"):
        load_own(str(tmp_path / "gone.py"))
    with pytest.raises(DataError, match="broken failed: ZeroDivisionError"):
        with_own(result(["a"]), [load_own(f"{file}:broken")])
    with pytest.raises(DataError, match="gave nan"):
        with_own(result(["a"]), [load_own(f"{file}:nothing")])
    (tmp_path / "wrong.py").write_text("import nowhere_to_be_found")
    with pytest.raises(FileProblem, match="does not run: ModuleNotFoundError"):
        load_own(str(tmp_path / "wrong.py"))


def test_scores_may_be_of_any_size():
    lengths = OwnMetric("length", lambda expected, answer: -float(len(answer)))
    judged = with_own(result(["aaaa", "aa"]), [lengths])
    assert judged.metrics["length"].value == -3.0
    assert judged.metrics["length"].low < -3.0 < judged.metrics["length"].high

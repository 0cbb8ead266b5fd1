"""Where rows of benchmarks are found, and what is said where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.errors import FileProblem, UsageError
from luthier.evaluation.benchmarks.tasks import BENCHMARKS
from luthier.runs.benchmarks import benchmarks_named, prepare


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def numbers(count: int) -> list[dict[str, object]]:
    return [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(count)]


def test_code_runs_only_where_it_is_asked_for() -> None:
    with pytest.raises(UsageError) as caught:
        benchmarks_named(["arc,mbpp"], run_code=False)
    assert "--run-code" in str(caught.value.hint)
    assert [one.name for one in benchmarks_named(["arc,mbpp"], run_code=True)] == ["arc", "mbpp"]


def test_examples_from_the_judged_file_are_not_judged(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", numbers(20))
    task = BENCHMARKS["gsm8k"]
    posed = prepare(task, str(tmp_path), max_rows=None, shots=3)
    assert len(posed.rows) == 17
    assert {one.text for one in posed.examples[""]} == {"q0", "q1", "q2"}
    few = prepare(task, str(tmp_path), max_rows=5, shots=3)
    assert {row.id for row in few.rows} <= {row.id for row in posed.rows}
    assert few.examples == posed.examples


def test_the_test_file_comes_before_others_and_examples_from_train(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", numbers(8))
    write(tmp_path / "gsm8k" / "test.jsonl", [{"question": "x", "answer": "#### 1"}])
    posed = prepare(BENCHMARKS["gsm8k"], str(tmp_path), max_rows=None, shots=None)
    assert [row.asked.text for row in posed.rows] == ["x"]
    assert len(posed.examples[""]) == 5


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileProblem) as caught:
        prepare(BENCHMARKS["boolq"], str(tmp_path), max_rows=None, shots=None)
    assert "boolq" in str(caught.value.hint)
    with pytest.raises(UsageError) as unnamed:
        prepare(BENCHMARKS["boolq"], None, max_rows=None, shots=None)
    assert "hub" in str(unnamed.value.hint)


def test_examples_of_mbpp_are_the_second_to_fourth_of_their_file(tmp_path: Path) -> None:
    row = {"code": "def f(): pass", "test_list": ["f()"], "test_setup_code": ""}
    write(tmp_path / "mbpp" / "test.jsonl", [{**row, "text": "judged"}])
    write(tmp_path / "mbpp" / "prompt.jsonl", [{**row, "text": f"shown {n}"} for n in range(10)])
    posed = prepare(BENCHMARKS["mbpp"], str(tmp_path), max_rows=None, shots=None)
    assert [one.plain.split(" Your")[0][-1] for one in posed.examples[""]] == ["1", "2", "3"]


def test_humaneval_is_found_as_its_authors_name_it(tmp_path: Path) -> None:
    row = {
        "prompt": "def f():\n",
        "canonical_solution": "    pass",
        "test": "def check(c): c()",
        "entry_point": "f",
    }
    write(tmp_path / "humaneval" / "HumanEval.jsonl", [row])
    posed = prepare(BENCHMARKS["humaneval"], str(tmp_path), max_rows=None, shots=None)
    assert [one.asked.before for one in posed.rows] == ["def f():\n"]
    assert benchmarks_named(["humaneval"], run_code=True)[0].longest == 1024

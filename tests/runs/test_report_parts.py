"""Labels, confusions, calibration, slices and what was broken, as the report shows them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from luthier.evaluation.classification import Given, judge_labels
from luthier.evaluation.compare import compare
from luthier.evaluation.judge import summed
from luthier.evaluation.statistics import metric_of
from luthier.runs.report import answers, labels, scores
from luthier.runs.report.context import ReportContext
from luthier.runs.report.render import render_html, render_markdown
from luthier.schema.judgement import JudgedRow, Judgement, Ruling
from luthier.schema.recipe import Recipe
from luthier.schema.results import Artifact, EvalResult, Quality, ScoredRow
from luthier.schema.rows import LabelRow

RECIPE = Recipe.model_validate(
    {
        "model": {"id": "m"},
        "data": {"train": ["t.jsonl"]},
        "method": {"name": "full"},
        "task": "multi-class-classification",
    }
)
NAMES = tuple("abcdefghijklmnopqr")


def label_row(number: int) -> LabelRow:
    return LabelRow(f"text {number}", (NAMES[number % 18],), "t.jsonl", number, f"r{number}", f"r{number}")


def classified(model: str, right: float, seed: int) -> EvalResult:
    """540 rows over 18 labels; a is always taken for b."""
    draw = random.Random(seed)
    rows, given = [], []
    for number in range(540):
        row = label_row(number)
        own = row.labels[0]
        confidence = draw.uniform(0.2, 1.0)
        said = "b" if own == "a" else own if draw.random() < right else draw.choice(NAMES)
        rows.append(row)
        given.append(Given(labels=(said,), best=said, confidence=confidence))
    return judge_labels(rows, given, split="test", model=model, weights_digest=model, multi=False)


def context_of(**values: Any) -> ReportContext:
    return ReportContext("run", RECIPE, **values)


@pytest.fixture(scope="module")
def context() -> ReportContext:
    base, tuned = classified("base", 0.1, 1), classified("tuned", 0.9, 2)
    return context_of(baseline={"test": base}, tuned={"test": tuned}, comparisons=(compare(base, tuned),))


def test_labels_stand_worst_first_with_precision_and_recall(context: ReportContext) -> None:
    [table] = labels.label_tables(context)
    lines = (*table.shown, *table.more)
    assert lines[0].name == "a"
    assert lines[0].recall == "0.0 %"
    values = [float(line.tuned.value.removesuffix(" %")) for line in lines]
    assert values == sorted(values)
    assert {line.n for line in lines} == {30}
    b = next(line for line in lines if line.name == "b")
    assert float(b.precision.removesuffix(" %")) < 55 < float(b.recall.removesuffix(" %"))
    assert scores.field_tables(context) == []


def test_the_matrix_adds_up_and_names_the_commonest_mistake(context: ReportContext) -> None:
    [matrix] = labels.matrices(context)
    assert matrix.of == 18
    assert len(matrix.labels) == labels.MOST_CONFUSED
    assert matrix.pairs[0][:2] == ("a", "b")
    for row in matrix.rows:
        assert sum(cell.count for cell in row) == 30
        assert sum(cell.right for cell in row) == 1
        assert len(row) == labels.MOST_CONFUSED + 1
    a = matrix.rows[matrix.labels.index("a")]
    assert a[matrix.labels.index("b")].share == 100.0


def test_confidence_that_says_nothing_is_a_flat_line() -> None:
    pairs = [(place / 100, float(place % 2)) for place in range(100)] + [(0.999, 1.0)]
    found = labels.reliability(pairs)
    assert [n for _, _, n in found] == [10] * 9 + [11]
    assert all(abs(share - 0.5) < 0.06 for _, share, _ in found)
    assert labels.reliability([(0.95, 1.0)] * 4) == []


def test_the_page_has_them_all(context: ReportContext) -> None:
    page = render_html(context)
    assert "Labels on test, worst first" in page
    assert "the 14 of 18 labels that are mistaken most" in page
    assert "Confidence and right answers on test" in page
    assert "Fields on" not in page
    told = render_markdown(context)
    assert "| a | b | 30 |" in told
    assert "part, worst first" in told


def plain(model: str, marks: list[float], *, prompts: list[str], groups: list[str | None]) -> EvalResult:
    rows = tuple(
        ScoredRow(
            id=f"r{number}",
            prompt=prompts[number],
            expected="",
            answer=f"{model} {number}",
            scores={"exact_match": mark},
            group=groups[number],
        )
        for number, mark in enumerate(marks)
    )
    return EvalResult(
        split="test", model=model, weights_digest=model, primary="exact_match", rows=rows, seconds=1.0,
        metrics={"exact_match": metric_of(marks, groups)},
    )  # fmt: skip


def test_slices_by_language_and_source_each_worst_first() -> None:
    prompts = ["what is the name of the man?", "was ist der Name von dem Mann und der Frau?"] * 40
    groups: list[str | None] = [f"shop {number // 40}" for number in range(80)]
    before = plain("base", [0.0] * 80, prompts=prompts, groups=groups)
    after = plain("tuned", [1.0, 0.0] * 40, prompts=prompts, groups=groups)
    found = scores.slice_rows(
        context_of(baseline={"test": before}, tuned={"test": after}, comparisons=(compare(before, after),))
    )
    by_name = {row.name: row for row in found}
    assert by_name["language en"].tuned == "100.0 %"
    assert by_name["language de"].tuned == "0.0 %"
    names = [row.name for row in found]
    assert names.index("language de") < names.index("language en")
    assert {"source shop 0", "source shop 1"} <= set(names)


def test_copies_of_a_row_are_no_source() -> None:
    row = ScoredRow(id="r", prompt="", expected="", answer="", scores={}, group="row 12ab")
    assert scores.source_of(row) is None


def test_what_was_broken_has_its_own_section_with_both_answers() -> None:
    prompts: list[str] = [f"question {number}" for number in range(40)]
    none: list[str | None] = [None] * 40
    before = plain("base", [1.0] * 40, prompts=prompts, groups=none)
    after = plain("tuned", [1.0] * 10 + [0.0] * 30, prompts=prompts, groups=none)
    context = context_of(
        abilities=(compare(before, after),),
        abilities_before={"test": before},
        abilities_after={"test": after},
    )
    [changed] = answers.broken_rows(context)
    assert (changed.improved, changed.regressed) == (0, 30)
    page = render_html(context)
    part = page[page.index('<section id="broke">') :]
    assert "What got worse beyond doubt is marked so." in part
    assert "tuned 10" in part
    assert "Expected" not in part[: part.index("</section>")]
    assert "<mark>" not in part[: part.index("</section>")]
    assert "## What it broke" in render_markdown(context)


def judgement(**values: Any) -> Judgement:
    rows = [
        JudgedRow(
            id=f"r{n}", prompt=f"ask {n} <b>", first="no", second="yes <script>",
            outcome="second" if n < 12 else "tie",
            rulings=(Ruling(swapped=False, choice="second", reason=f"kinder {n}"),),
        )
        for n in range(14)
    ]  # fmt: skip
    found = summed(rows)
    return found.model_copy(
        update={
            "split": "test",
            "first": "base",
            "second": "tuned",
            "judge": "a judge",
            "criteria": "kindness",
        }
        | values
    )


def test_what_judges_said_is_told_with_its_doubts() -> None:
    doubted = judgement(agreement=metric_of([0.0] * 30), judge="a coin")
    context = context_of(judgements=(judgement(), doubted))
    page = render_html(context)
    assert "tuned against base" in page
    assert "12 and 0, 2 ties (0 with the same answer)" in page
    assert "Judged by" in page
    assert "kindness" in page
    assert "kinder 0" in page
    assert "<script>" not in page
    assert page.count('<span class="pill worse">doubt</span>') == 1
    told = render_markdown(context)
    assert "a judge: tuned against base on test" in told
    assert "a coin: with the answers swapped the judge agrees with itself on 0% of the rows" in told
    assert 'id="judge"' not in render_html(context_of())


def test_what_each_file_costs_stands_in_a_table_of_its_own() -> None:
    quality = Quality(
        split="test", metric="exact_match", score=metric_of([1.0] * 60 + [0.0] * 40),
        difference=metric_of([0.0] * 100), verdict="inconclusive", kept=0.987,
        tokens_per_second=47.2, perplexity=1.0831,
    )  # fmt: skip
    file = Artifact(kind="gguf:Q4_K_M", path="a.gguf", bytes=10, sha256="0" * 64, quality=quality)
    plain = Artifact(kind="adapter", path="adapter", bytes=10, sha256="0" * 64)
    context = context_of(artifacts=(plain, file))
    page = render_html(context)
    assert "What each file costs" in page
    for figure in ("60.0 %", "99 %", "1.083", "47", "To use: gguf:Q4_K_M"):
        assert figure in page
    assert "| gguf:Q4\\_K\\_M | 60.0 % (" in render_markdown(context)
    assert "What each file costs" not in render_html(context_of(artifacts=(plain,)))

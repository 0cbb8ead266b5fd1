"""What was broken stands at the head of the report."""

from __future__ import annotations

import numpy as np

from luthier.evaluation.statistics import PairedScores, compare_scores
from luthier.runs.report.context import ReportContext
from luthier.runs.report.verdict import Banner, banner
from luthier.schema.recipe import Recipe
from luthier.schema.results import Comparison


def comparison(split: str, metric: str, before: list[float], after: list[float]) -> Comparison:
    [difference] = compare_scores([PairedScores(metric, np.array(before), np.array(after))])
    return Comparison(split=split, primary=metric, differences=(difference,), verdict=difference.verdict)


def head(*abilities: Comparison) -> tuple[str, ...]:
    return whole(*abilities).sentences


def whole(*abilities: Comparison) -> Banner:
    recipe = Recipe.model_validate(
        {"model": {"id": "m"}, "data": {"train": ["t.jsonl"]}, "method": {"name": "lora"}}
    )
    task = comparison("test", "exact_match", [0.0] * 40, [1.0] * 40)
    context = ReportContext("run", recipe, comparisons=(task,), abilities=abilities)
    return banner(context)


def test_a_loss_is_the_first_sentence() -> None:
    said = head(comparison("general questions", "acc", [1.0] * 40 + [0.0] * 8, [1.0] * 10 + [0.0] * 38))
    assert said[0].startswith("Warning: the tuning cost general ability. On general questions")
    assert "83.3 % to 20.8 %" in said[0]


def test_a_loss_is_in_the_headline_and_takes_one_sentence_a_split() -> None:
    before, after = [1.0] * 40 + [0.0] * 8, [1.0] * 10 + [0.0] * 38
    arrays = (np.array(before), np.array(after))
    differences = compare_scores([PairedScores("acc", *arrays), PairedScores("acc_norm", *arrays)])
    questions = Comparison(
        split="general questions", primary="acc", differences=tuple(differences), verdict="worse"
    )
    found = whole(questions, comparison("everyday requests", "stopped", before, after))
    assert found.headline == "The tuning helped, and it broke something else"
    assert found.kind == "mixed"
    warnings = [sentence for sentence in found.sentences if sentence.startswith("Warning")]
    assert len(warnings) == 2
    assert "right choices went" in warnings[0]
    assert "ended by itself went" in warnings[1]


def test_no_loss_is_no_sentence() -> None:
    same = comparison("general questions", "acc", [1.0] * 48, [1.0] * 48)
    better = comparison("general questions", "acc", [0.0] * 48, [1.0] * 48)
    assert head(same) == head(better) == head()
    assert not any("general ability" in sentence for sentence in head())

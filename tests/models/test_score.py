"""Log-probabilities of continuations, held against lm-evaluation-harness and against the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from luthier.data.tokenizer import load_tokenizer
from luthier.evaluation.benchmarks.judge import judge_by_likelihood
from luthier.evaluation.benchmarks.tasks import BENCHMARKS
from luthier.evaluation.likelihood import TextItem, judge_texts
from luthier.models.load import load_causal, weights_digest
from luthier.models.score import TorchScorer
from luthier.runs.benchmarks import prepare
from tiny import save_tiny_model

ROWS = Path(__file__).parent.parent / "evaluation" / "benchmark_rows"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def scorer_on(folder: Path, *, shares: bool | None = None) -> TorchScorer:
    model = load_causal(folder, dtype="float32", device="cpu", attention="sdpa")
    made = TorchScorer(model, load_tokenizer(folder), label="tiny", weights_digest="")
    made._shares = made._shares if shares is None else shares
    return made


@pytest.mark.parametrize("name", ["mmlu", "arc", "hellaswag", "truthfulqa", "boolq"])
def test_scores_are_those_of_the_harness(folder: Path, name: str) -> None:
    """The numbers were recorded by ``benchmarks/proof/harness.py`` on the same weights and rows."""
    recorded = json.loads((ROWS / "harness.json").read_text())
    assert weights_digest(folder) == recorded["weights"], "the tiny model is another: record again"
    result = judge_by_likelihood(
        scorer_on(folder), prepare(BENCHMARKS[name], str(ROWS), max_rows=None, shots=None)
    )
    rows = recorded["benchmarks"][name]["rows"]
    assert len(result.rows) == len(rows) > 0
    for mine, theirs in zip(result.rows, rows, strict=True):
        assert list(mine.figures.values()) == pytest.approx(theirs["nats"], abs=1e-3)
        assert mine.scores["acc"] == theirs["acc"]
        if "acc_norm" in theirs:
            assert mine.scores["acc_norm"] == theirs["acc_norm"]


def test_a_shared_row_gives_the_figures_of_rows_of_their_own(folder: Path) -> None:
    pairs = [
        *(("the old ball is", f" {colour} and so is the {colour} door") for colour in ("red", "green", "b")),
        ("the hat is", " pink"),
        ("the hat is", " white"),
        ("", "the boat is gold"),
        ("a much longer context, with words that others do not have: the box is ", "grey"),
    ]
    shared, apart = scorer_on(folder), scorer_on(folder, shares=False)
    one, other = shared.score(pairs), apart.score(pairs)
    assert shared._shares
    assert [x.nats for x in one] == pytest.approx([x.nats for x in other], abs=1e-4)
    assert [(x.tokens, x.greedy) for x in one] == [(x.tokens, x.greedy) for x in other]


def test_the_sum_is_the_model_s_own_cross_entropy(folder: Path) -> None:
    scorer = scorer_on(folder)
    context, rest = "the kite is", " blue and the lamp is black"
    ids = scorer.tokenizer.encode(context + rest)
    start = len(scorer.tokenizer.encode(context))
    with torch.inference_mode():
        logs = scorer.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = sum(float(logs[place - 1, ids[place]]) for place in range(start, len(ids)))
    [found] = scorer.score([(context, rest)])
    assert found.nats == pytest.approx(expected, abs=1e-4)
    assert found.tokens == len(ids) - start


def test_a_context_that_is_too_long_loses_its_beginning(folder: Path) -> None:
    scorer = scorer_on(folder)
    scorer.context = 16
    long, short = scorer.score([("the door is red " * 40 + "the cup is", " green"), ("the cup is", " green")])
    assert long.tokens == short.tokens
    assert long.nats != short.nats


def test_texts_are_judged_by_loss_and_bits(folder: Path) -> None:
    items = [TextItem("a", "the ball is red"), TextItem("b", "zebra quartz")]
    result = judge_texts(scorer_on(folder), items, split="texts")
    assert result.metrics["loss"].value > 0
    assert not result.metrics["loss"].greater_is_better
    assert len(result.rows) == 2

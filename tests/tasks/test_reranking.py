"""A cross-encoder from rows to a folder that sentence-transformers' CrossEncoder scores alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.data.inputs import load_inputs
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import DataError, Interrupted, RecipeError, Unsupported, UsageError
from luthier.planning.pairs import settle_pairs
from luthier.schema.protocols import Progress, Splits
from luthier.schema.recipe import Recipe
from luthier.tasks.reranking import RerankingTask, load_saved_reranker
from tiny_encoders import rows_of, save_tiny_decoder, save_tiny_encoder, sentences

TEXTS = sentences(120)
# PEFT asks transformers by a name that it has given up.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def told(words: str) -> Progress:
    del words
    return lambda done, total: None


def ranked(count: int = 20, wrong: int = 2) -> list[dict[str, Any]]:
    """A text answers the query that names its colour."""
    return [
        {
            "query": f"{TEXTS[i].split()[1]} {TEXTS[i].split()[2]}",
            "positive": TEXTS[i],
            "negatives": [TEXTS[i + 9 * (j + 1)] for j in range(wrong)],
        }
        for i in range(count)
    ]


def graded(count: int = 20) -> list[dict[str, Any]]:
    return [
        {"query": f"query {i // 4} {TEXTS[i // 4]}", "document": TEXTS[i], "score": float(i % 4)}
        for i in range(count)
    ]


def make(
    folder: Path, rows: list[dict[str, Any]], model: Path | None = None, **changes: Any
) -> tuple[Recipe, Path, Splits]:
    folder.mkdir(exist_ok=True, parents=True)
    model = model or save_tiny_encoder(folder / "model")
    recipe = Recipe.model_validate(
        {
            "task": "reranking",
            "model": {"id": str(model), "dtype": "float32", "attention": "sdpa"},
            "method": changes.pop("method", {"name": "full"}),
            "data": {
                "train": str(rows_of(folder / "train.jsonl", rows)),
                "test": str(rows_of(folder / "test.jsonl", rows[:8])),
                "validation_share": 0.2,
            },
            "training": {
                "epochs": 2,
                "batch_size": 4,
                "micro_batch_size": 4,
                "learning_rate": 2e-3,
                "sequence_length": changes.pop("length", 48),
                "evaluate_every": 4,
                "checkpoint_every": 1,
                **changes.pop("training", {}),
            },
            "reranking": changes,
        }
    )
    data = load_inputs(
        recipe, load_tokenizer(model), base=Path("/"), sequence_length=recipe.training.sequence_length
    )
    return settle_pairs(recipe, data.splits.train, data.splits.kind), model, data.splits


def task_of(recipe: Recipe, model: Path, splits: Splits) -> RerankingTask:
    task = RerankingTask(recipe, model, load_tokenizer(model))
    task.splits = splits
    return task


def fitted(recipe: Recipe, model: Path, splits: Splits, run: Path, **words: Any) -> RerankingTask:
    task = task_of(recipe, model, splits)
    task.fit(splits, run, recipe_digest="d", on_metrics=words.pop("on_metrics", lambda _: None), **words)
    return task


CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    ("binary", ranked(), {}),
    ("binary-graded", graded(), {}),
    ("mse", graded(), {"loss": "mse"}),
    ("lambda", ranked(), {"loss": "lambda"}),
    ("lambda-graded", graded(), {"loss": "lambda"}),
    ("list-net", ranked(), {"loss": "list-net"}),
    ("margin-mse", graded(), {"loss": "margin-mse"}),
    ("distillation", graded(), {"loss": "distillation"}),
]


@pytest.mark.parametrize(("name", "rows", "changes"), CASES, ids=[case[0] for case in CASES])
def test_every_loss_learns_and_the_saved_folder_scores_alike(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    library = pytest.importorskip("sentence_transformers")
    epochs = 24 if name in ("margin-mse", "distillation", "lambda", "lambda-graded") else 6
    recipe, model, splits = make(
        tmp_path, rows, training={"epochs": epochs, "learning_rate": 5e-3}, **changes
    )
    seen: list[dict[str, Any]] = []
    run = tmp_path / "run"
    base = task_of(recipe, model, splits).judge_base(splits, splits.tests, told=told)["test"]
    assert base.model == "floor: words (BM25)", "an untrained head says nothing"
    task = fitted(recipe, model, splits, run, on_metrics=seen.append)
    losses = [one["loss"] for one in seen if one["kind"] == "step"]
    epoch = len(losses) // epochs
    assert sum(losses[-epoch:]) < sum(losses[:epoch])
    tuned = task.judge_tuned(run, splits.tests, told=told)["test"]
    assert tuned.primary == base.primary == "ndcg@10"
    assert [row.id for row in tuned.rows] == [row.id for row in base.rows]
    saved = task.save_merged(tmp_path / "merged")
    check = task.check_saved(saved, splits.tests["test"])
    assert check is not None
    assert check.passed, check.problems
    theirs = library.CrossEncoder(str(saved), device="cpu", local_files_only=True)
    pairs = [(TEXTS[i], TEXTS[i + 3]) for i in range(5)]
    ours = load_saved_reranker(saved, load_tokenizer(saved)).score(pairs)
    np.testing.assert_allclose(ours, theirs.predict(pairs), atol=1e-5)
    assert (
        "Identity"
        in json.loads((saved / "config.json").read_text())["sentence_transformers"]["activation_fn"]
    ) == (name in ("mse", "margin-mse"))


@pytest.mark.parametrize("form", ["classification", "yes-no"])
def test_decoders_score_too(tmp_path: Path, form: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = save_tiny_decoder(tmp_path / "m", causal_head=True)
    recipe, model, splits = make(
        tmp_path / "r", ranked(), model, form=form, length=200, training={"epochs": 4}
    )
    task = fitted(recipe, model, splits, tmp_path / "run")
    saved = task.save_merged(tmp_path / "merged")
    check = task.check_saved(saved, splits.tests["test"])
    assert check is not None
    assert check.passed, check.problems
    pairs = [(TEXTS[i], TEXTS[i + 3]) for i in range(5)]
    theirs = library.CrossEncoder(str(saved), device="cpu", local_files_only=True).predict(pairs)
    np.testing.assert_allclose(task.tuned_reranker(tmp_path / "run").score(pairs), theirs, atol=1e-5)
    again = load_saved_reranker(saved, load_tokenizer(saved))
    assert again.settings.form == form
    np.testing.assert_allclose(again.score(pairs), theirs, atol=1e-5)
    base = task_of(recipe, model, splits).judge_base(splits, splits.tests, told=told)["test"]
    assert base.model == ("base" if form == "yes-no" else "floor: words (BM25)")


def test_the_adapter_loads_in_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    recipe, model, splits = make(tmp_path, ranked(), method={"name": "lora", "rank": 4})
    task = fitted(recipe, model, splits, tmp_path / "run")
    folder = task.save_adapter(tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["classifier"]
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    tuned = peft.PeftModel.from_pretrained(base, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = [(TEXTS[i], TEXTS[i + 3]) for i in range(5)]
    with torch.inference_mode():
        inputs = tokenizer([q for q, _ in pairs], [d for _, d in pairs], padding=True, return_tensors="pt")
        theirs = tuned(**inputs).logits.squeeze(-1).sigmoid().numpy()
    np.testing.assert_allclose(task.tuned_reranker(tmp_path / "run").score(pairs), theirs, atol=1e-5)


def test_a_run_goes_on_exactly(tmp_path: Path) -> None:
    recipe, model, splits = make(tmp_path, ranked(), loss="lambda")
    whole = fitted(recipe, model, splits, tmp_path / "whole")
    steps = 0

    def stop() -> Any:
        nonlocal steps
        steps += 1
        return "stop" if steps == 3 else None

    with pytest.raises(Interrupted):
        fitted(recipe, model, splits, tmp_path / "parts", control=stop)
    parts = fitted(recipe, model, splits, tmp_path / "parts")
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("loss", ["binary", "lambda", "list-net"])
def test_the_parts_of_a_batch_add_up_to_it(tmp_path: Path, loss: str) -> None:
    recipe, model, splits = make(tmp_path, ranked(wrong=3), loss=loss)
    task = task_of(recipe, model, splits)
    (batch,) = task.source(splits).batches(0, 0)  # type: ignore[attr-defined]
    objective = task.objective()
    with torch.no_grad():
        whole = objective(task.model, batch)
        parts = [objective(task.model, part) for part in batch.cut(1)]
    assert len(parts) == batch.pieces == 4
    assert sum(part.weight for part in parts) == whole.weight
    torch.testing.assert_close(sum(part.total for part in parts), whole.total, rtol=1e-5, atol=1e-6)


def test_rows_without_wrong_texts_get_the_nearest_by_words(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "negatives"} for row in ranked()]
    recipe, model, splits = make(tmp_path, rows, negatives=3)
    assert all(len(row.negatives) == 3 for row in splits.train)
    assert all(row.positives[0] not in row.negatives for row in splits.train)
    judged = task_of(recipe, model, splits).judge_base(splits, splits.tests, told=told)["test"]
    assert judged.settings["candidates"] == "the first 50 of 8 texts by words (BM25)"


def test_what_rows_and_settings_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="learns from a teacher's scores"):
        make(tmp_path, ranked(), loss="distillation")
    with pytest.raises(DataError, match="is outside a relevance grade"):
        make(tmp_path, [{**row, "score": row["score"] - 1} for row in graded()], loss="lambda")
    with pytest.raises(DataError, match=r"is outside reranking\.score_range") as caught:
        make(tmp_path, graded(), score_range=[0, 2])
    assert caught.value.where is not None
    recipe, model, splits = make(tmp_path, ranked(), form="yes-no")
    with pytest.raises(Unsupported, match="bert writes no text"):
        task_of(recipe, model, splits)
    lonely = [{"query": TEXTS[i], "document": TEXTS[i + 3], "score": float(i % 3)} for i in range(20)]
    with pytest.raises(DataError, match="every query has only one"):
        make(tmp_path, lonely, loss="lambda")


def test_a_model_without_a_trained_head_is_not_asked(tmp_path: Path) -> None:
    model = save_tiny_encoder(tmp_path / "m")
    with pytest.raises(UsageError, match="its scores would be random"):
        load_saved_reranker(model, load_tokenizer(model))


def test_pairs_that_stand_alone_are_judged_by_correlation(tmp_path: Path) -> None:
    rows = [{"sentence1": TEXTS[i], "sentence2": TEXTS[i + 1], "score": float(i % 6)} for i in range(20)]
    recipe, model, splits = make(tmp_path, rows)
    base = task_of(recipe, model, splits).judge_base(splits, splits.tests, told=told)["test"]
    assert base.primary == "spearman"


def test_a_long_pair_is_cut_alike_wherever_the_folder_is_read(tmp_path: Path) -> None:
    """The base reads fewer tokens than its tokenizer says, as embedders on BERT do."""
    library = pytest.importorskip("sentence_transformers")
    model = save_tiny_encoder(tmp_path / "base")
    (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    recipe, model, splits = make(tmp_path, ranked(), model=model, training={"epochs": 1})
    task = fitted(recipe, model, splits, tmp_path / "run")
    saved = task.save_merged(tmp_path / "merged")
    pairs = [(TEXTS[i], " ".join(TEXTS[i + 1 : i + 9])) for i in range(6)]
    mine = task.tuned_reranker(tmp_path / "run").score(pairs)
    theirs = library.CrossEncoder(str(saved), device="cpu", local_files_only=True)
    np.testing.assert_allclose(mine, theirs.predict(pairs), atol=1e-5)
    np.testing.assert_allclose(
        mine, load_saved_reranker(saved, load_tokenizer(saved)).score(pairs), atol=1e-5
    )

"""A bi-encoder from rows to a folder that sentence-transformers loads with the same vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.data.inputs import load_inputs
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import DataError, Interrupted, RecipeError
from luthier.planning.pairs import settle_pairs
from luthier.schema.protocols import Progress, Splits
from luthier.schema.recipe import Recipe
from luthier.schema.results import EvalResult
from luthier.sizing.padding import chunks_of
from luthier.tasks.similarity import SimilarityTask, asked_of
from luthier.tasks.texts import TextBatches, right_too, texts_of
from tiny_encoders import rows_of, save_tiny_decoder, save_tiny_encoder, sentences, write_steps

TEXTS = sentences(120)
# PEFT asks transformers by a name that it has given up.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def told(words: str) -> Progress:
    del words
    return lambda done, total: None


def scored(count: int = 24) -> list[dict[str, Any]]:
    return [{"sentence1": TEXTS[i], "sentence2": TEXTS[i + 1], "score": float(i % 6)} for i in range(count)]


def triplets(count: int = 24) -> list[dict[str, Any]]:
    return [{"anchor": TEXTS[i], "positive": TEXTS[i + 30], "negative": TEXTS[i + 60]} for i in range(count)]


def make(
    folder: Path, rows: list[dict[str, Any]], *, model: Path | None = None, **changes: Any
) -> tuple[Recipe, Path, Splits]:
    """A resolved recipe over those rows, its model and its splits."""
    folder.mkdir(exist_ok=True, parents=True)
    if model is None:
        model = write_steps(save_tiny_encoder(folder / "model"), query="query: ", document="passage: ")
    train = rows_of(folder / "train.jsonl", rows)
    test = rows_of(folder / "test.jsonl", [dict(row) for row in rows[:8]])
    recipe = Recipe.model_validate(
        {
            "task": "similarity",
            "model": {"id": str(model), "dtype": "float32", "attention": "sdpa"},
            "method": changes.pop("method", {"name": "full"}),
            "data": {"train": str(train), "test": str(test), "validation_share": 0.2},
            "training": {
                "epochs": 2,
                "batch_size": 8,
                "micro_batch_size": 8,
                "learning_rate": 1e-3,
                "sequence_length": 24,
                "evaluate_every": 2,
                "checkpoint_every": 1,
                **changes.pop("training", {}),
            },
            "similarity": changes,
        }
    )
    data = load_inputs(recipe, load_tokenizer(model), base=Path("/"), sequence_length=24)
    return settle_pairs(recipe, data.splits.train, data.splits.kind), model, data.splits


def task_of(recipe: Recipe, model: Path, splits: Splits) -> SimilarityTask:
    task = SimilarityTask(recipe, model, load_tokenizer(model))
    task.splits = splits
    return task


def fitted(recipe: Recipe, model: Path, splits: Splits, run: Path, **words: Any) -> SimilarityTask:
    task = task_of(recipe, model, splits)
    task.fit(splits, run, recipe_digest="d", on_metrics=words.pop("on_metrics", lambda _: None), **words)
    return task


def judged(task: SimilarityTask, splits: Splits, run: Path) -> tuple[EvalResult, EvalResult]:
    base = task.judge_base(splits, splits.tests, told=told)["test"]
    return base, task.judge_tuned(run, splits.tests, told=told)["test"]


def labelled(count: int = 36) -> list[dict[str, Any]]:
    """Three classes, told by words that each text of one has."""
    words = ("amber", "birch", "cedar")
    return [{"text": f"{TEXTS[i]} {words[i % 3]}", "label": words[i % 3]} for i in range(count)]


CASES: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    (scored(), {}, "cosent"),
    (scored(), {"loss": "cosine"}, "cosine"),
    (triplets(), {"symmetric": True, "dimensions": [8, 16]}, "in-batch-negatives"),
    (triplets(), {"loss": "triplet"}, "triplet"),
    (labelled(), {}, "batch-all-triplet"),
]


@pytest.mark.parametrize(("rows", "changes", "loss"), CASES, ids=[case[2] for case in CASES])
def test_every_loss_learns_and_the_saved_folder_gives_the_same_vectors(
    tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], loss: str
) -> None:
    library = pytest.importorskip("sentence_transformers")
    recipe, model, splits = make(tmp_path, rows, **changes, training={"epochs": 12})
    assert recipe.similarity is not None
    assert recipe.similarity.loss == loss
    seen: list[dict[str, Any]] = []
    run = tmp_path / "run"
    task = fitted(recipe, model, splits, run, on_metrics=seen.append)
    losses = [one["loss"] for one in seen if one["kind"] == "step"]
    assert losses[-1] < losses[0] * 0.9
    assert any(one["kind"] == "validation" for one in seen)
    before, after = judged(task_of(recipe, model, splits), splits, run)
    assert before.primary == ("spearman" if loss.startswith("cos") else "ndcg@10")
    assert after.metrics[after.primary].value > before.metrics[before.primary].value
    saved = task.save_merged(tmp_path / "merged")
    check = task.check_saved(saved, splits.tests["test"])
    assert check is not None
    assert check.passed, check.problems
    theirs = library.SentenceTransformer(str(saved), device="cpu", local_files_only=True)
    assert theirs.prompts["query"] == "query: "
    ours = task.tuned_embedder(run)
    for role, name in (("query", "query"), ("document", "document")):
        expected = theirs.encode(TEXTS[:9], prompt_name=name)
        np.testing.assert_allclose(ours.encode(TEXTS[:9], role=role), expected, atol=1e-5)


def test_the_adapter_loads_in_peft_and_in_sentence_transformers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    library = pytest.importorskip("sentence_transformers")
    from transformers import AutoModel

    recipe, model, splits = make(tmp_path, triplets(), method={"name": "lora", "rank": 4})
    task = fitted(recipe, model, splits, tmp_path / "run")
    folder = task.save_adapter(tmp_path / "adapter")
    ours = task.tuned_embedder(tmp_path / "run").encode(TEXTS[:6])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"
    config["base_model_name_or_path"] = str(model)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    theirs = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(theirs.encode(TEXTS[:6]), ours, atol=1e-5)
    names = {
        name
        for name, _ in peft.PeftModel.from_pretrained(
            AutoModel.from_pretrained(model), folder
        ).named_parameters()
    }
    assert not any("pooler" in name and "lora" in name for name in names), "no vector comes from the pooler"
    base = task_of(recipe, model, splits).judge_base(splits, splits.tests, told=told)["test"]
    assert base.model == "base"


def test_a_decoder_is_tuned_too(tmp_path: Path) -> None:
    model = write_steps(save_tiny_decoder(tmp_path / "m"), pooling="lasttoken", query="query: ")
    recipe, model, splits = make(tmp_path / "r", triplets(), model=model)
    task = fitted(recipe, model, splits, tmp_path / "run")
    check = task.check_saved(task.save_merged(tmp_path / "merged"), splits.tests["test"])
    assert check is not None
    assert check.passed, check.problems


def test_a_run_goes_on_exactly(tmp_path: Path) -> None:
    recipe, model, splits = make(tmp_path, triplets(), method={"name": "lora", "rank": 2, "dropout": 0.2})
    whole = fitted(recipe, model, splits, tmp_path / "whole")
    steps = 0

    def stop() -> Any:
        nonlocal steps
        steps += 1
        return "stop" if steps == 3 else None

    with pytest.raises(Interrupted):
        fitted(recipe, model, splits, tmp_path / "parts", control=stop)
    parts = fitted(recipe, model, splits, tmp_path / "parts")
    for (name, one), (_, other) in zip(
        whole.model.named_parameters(), parts.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)


def test_fewer_texts_at_once_change_no_gradient(tmp_path: Path) -> None:
    found = []
    for micro in (8, 2):
        recipe, model, splits = make(tmp_path / str(micro), triplets(), training={"micro_batch_size": micro})
        task = task_of(recipe, model, splits)
        task.model.requires_grad_(True)
        (batch,) = task.source(splits).batches(0, 0)
        assert batch.recompute == (micro == 2)
        objective = task.objective()
        loss = objective(task.model, batch)
        loss.total.backward()
        found.append((loss.total.item(), [p.grad for p in task.model.parameters() if p.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_texts_that_are_right_too_are_not_wrong(tmp_path: Path) -> None:
    """A batch that holds a text twice: with batches of its own making that cannot be, with others it can."""
    rows = [
        {"anchor": "the red ball", "positive": "red", "negative": "blue"},
        {"anchor": "a red ball", "positive": "red", "negative": "green"},
    ]
    recipe, model, splits = make(tmp_path, rows * 4)
    task = task_of(recipe, model, splits)
    texts, found = texts_of(splits.train[:8], task.settings, task.choice)
    source = TextBatches(
        found[:2],
        task.reader.encode(texts),
        texts,
        task.reader,
        batch_size=2,
        texts_at_once=9,
        seed=1,
        apart=True,
    )
    assert source.steps(0) == 2, "rows with an equal positive never meet"
    together = right_too(source.batch([0, 1]))
    assert together is not None
    assert together.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert right_too(source.batch([0])) is None


def test_what_rows_and_settings_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cosent is for scored pairs, and the training rows are triplets"):
        make(tmp_path, triplets(), loss="cosent")
    with pytest.raises(RecipeError, match="in-batch-negatives is for queries with texts"):
        make(tmp_path, scored(), loss="in-batch-negatives")
    with pytest.raises(RecipeError, match="batch-all-triplet is for labelled texts") as caught_loss:
        make(tmp_path, triplets(), loss="batch-all-triplet")
    assert caught_loss.value.hint == "use in-batch-negatives or triplet, or leave it out"
    with pytest.raises(DataError, match=r"the score -1 is below 0") as caught:
        make(
            tmp_path,
            [
                *scored(),
                {"sentence1": "a", "sentence2": "b", "score": -1},
                *[{"sentence1": f"a{i}", "sentence2": "b", "score": -1} for i in range(9)],
            ],
            loss="cosine",
        )
    assert "score_range" in (caught.value.hint or "")
    assert caught.value.where is not None
    with pytest.raises(DataError, match="needs a negative in every row"):
        make(tmp_path, [{"query": TEXTS[i], "positive": TEXTS[i + 30]} for i in range(20)], loss="triplet")
    recipe, model, splits = make(tmp_path, triplets(), dimensions=[64])
    with pytest.raises(RecipeError, match="64 cannot be cut from vectors of 32 numbers"):
        task_of(recipe, model, splits)


def test_labelled_texts_are_judged_by_the_others_of_their_class(tmp_path: Path) -> None:
    recipe, model, splits = make(tmp_path, labelled())
    task = task_of(recipe, model, splits)
    held = splits.retrieval["test"]
    assert held.among
    with pytest.raises(DataError, match="no two held-out texts have the same label"):
        asked_of(splits.tests["test"][:1], None)
    judged = task.judge_base(splits, splits.tests, told=told)["test"]
    assert judged.settings["corpus"] == 8
    for row in judged.rows:
        assert row.prompt not in row.answer.split("\n"), "no text is its own answer"
    (batch,) = task.source(splits).batches(0, 0)
    assert torch.equal(batch.left, batch.right)
    assert sum(end - first for first, end, _ in batch.chunks) == 8


def test_an_empty_text_is_told_with_its_line(tmp_path: Path) -> None:
    rows = triplets()
    rows[5]["positive"] = "  "
    with pytest.raises(DataError) as caught:
        make(tmp_path, rows)
    assert "6" in str(caught.value)


def test_a_gpu_gets_few_chunks_and_a_cpu_little_padding() -> None:
    lengths = [40] * 16 + [20] * 16 + [10] * 32
    assert chunks_of(lengths, 64) == ((0, 16, 40), (16, 32, 20), (32, 64, 10))
    assert chunks_of(lengths, 64, filled=8192) == ((0, 64, 40),)
    assert chunks_of([256] * 32 + [20] * 32, 64, filled=8192) == ((0, 32, 256), (32, 64, 20))
    assert chunks_of(lengths, 24, filled=8192) == ((0, 24, 40), (24, 48, 20), (48, 64, 10))

"""A tuned embedder leaves as an ONNX graph that gives its vectors; one that does not is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from luthier.catalog.purposes import check_supported
from luthier.data.inputs import load_inputs
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import ParityError, Unsupported
from luthier.planning.pairs import settle_pairs
from luthier.runs.shipping_values import held_values, onnx_parity, ship_onnx
from luthier.schema.recipe import ExportChoice, Recipe
from luthier.tasks.similarity import SimilarityTask
from tiny_encoders import rows_of, save_tiny_encoder, sentences, write_steps

pytest.importorskip("onnxruntime", reason="pip install 'luthier[onnx]'")
pytest.importorskip("onnxscript", reason="pip install 'luthier[onnx]'")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny embedder, trained for a step or two, as the ship stage finds it."""
    root = tmp_path_factory.mktemp("run")
    model = write_steps(save_tiny_encoder(root / "model"), query="query: ", document="passage: ")
    texts = sentences(60)
    rows = [{"query": texts[i], "positive": texts[i + 20], "negative": texts[i + 40]} for i in range(16)]
    train, test = rows_of(root / "train.jsonl", rows), rows_of(root / "test.jsonl", rows[:6])
    recipe = Recipe.model_validate(
        {
            "task": "similarity",
            "model": {"id": str(model), "dtype": "float32", "attention": "sdpa"},
            "method": {"name": "full"},
            "data": {"train": str(train), "test": str(test), "validation_share": 0.2},
            "training": {
                "max_steps": 2,
                "batch_size": 4,
                "micro_batch_size": 4,
                "learning_rate": 1e-2,
                "sequence_length": 24,
                "evaluate_every": 2,
                "checkpoint_every": 2,
            },
        }
    )
    tokenizer = load_tokenizer(model)
    data = load_inputs(recipe, tokenizer, base=Path("/"), sequence_length=24)
    recipe = settle_pairs(recipe, data.splits.train, data.splits.kind)
    task = SimilarityTask(recipe, model, tokenizer)
    task.splits = data.splits
    task.fit(data.splits, root, recipe_digest="-", on_metrics=lambda one: None)
    (root / "artifacts").mkdir()
    return SimpleNamespace(
        recipe=recipe,
        task=task,
        data=data,
        tests=data.splits.tests,
        tokenizer=tokenizer,
        run=SimpleNamespace(path=root, id="run"),
        board=SimpleNamespace(
            event=lambda *words, **more: None, progress=lambda *words: lambda done, total: None
        ),
    )


def test_an_embedder_leaves_as_onnx(work: Any) -> None:
    held = held_values(work, ExportChoice())
    assert set(held.roles) == {"query", "document"}
    merged = work.task.save_merged(work.run.path / "artifacts" / "merged")
    out, parity = ship_onnx(work, merged, held)
    assert parity.passed
    assert parity.prompts == parity.equal_token_ids == parity.equal_tokens == len(held.inputs)
    assert parity.largest_difference is not None
    assert 0 < parity.largest_difference < 1e-5
    assert parity.agreement == pytest.approx(1)
    names = {path.name for path in out.iterdir()}
    assert {"model.onnx", "luthier_onnx.json", "tokenizer.json", "config.json"} <= names
    from luthier.exporting.onnx import OnnxModel

    # a prompt left out is what most often goes wrong with embedders elsewhere
    (out / "luthier_onnx.json").write_text((out / "luthier_onnx.json").read_text().replace('"query: "', '""'))
    wrong = onnx_parity(OnnxModel(out), held)
    assert not wrong.passed
    assert wrong.equal_token_ids < wrong.prompts
    with pytest.raises(ParityError, match="does not answer like the trained model"):
        ship_onnx(work, merged, replace(held, values=np.roll(held.values, 1, axis=0)))


def test_a_run_without_held_out_rows_is_told(work: Any) -> None:
    splits = SimpleNamespace(validation=[])
    bare = SimpleNamespace(**{**vars(work), "tests": {}, "data": SimpleNamespace(splits=splits)})
    with pytest.raises(Unsupported, match="no row is held out"):
        held_values(bare, ExportChoice())


def test_a_decoder_that_writes_text_has_no_onnx() -> None:
    recipe = Recipe.model_validate(
        {"model": {"id": "x"}, "data": {"train": "rows.jsonl"}, "export": {"onnx": True}}
    )
    with pytest.raises(Unsupported, match="goes out as GGUF"):
        check_supported(recipe)

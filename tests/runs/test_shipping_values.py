"""A tuned embedder leaves as an ONNX graph that gives its vectors; one that does not is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from luthier.catalog.purposes import check_supported
from luthier.data.inputs import load_inputs
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import ParityError, ToolchainError, Unsupported
from luthier.llamacpp.convert import convert
from luthier.llamacpp.setup import Converter, converter
from luthier.models.vector_settings import VectorSettings
from luthier.planning.pairs import settle_pairs
from luthier.runs.shipping_values import (
    check_vector_gguf,
    held_values,
    onnx_parity,
    ship_onnx,
    ship_vector_ggufs,
)
from luthier.schema.recipe import ExportChoice, Recipe
from luthier.tasks.similarity import SimilarityTask
from tiny_encoders import rows_of, save_tiny_encoder, sentences, write_steps

pytest.importorskip("onnxruntime", reason="pip install 'luthier[onnx]'")
pytest.importorskip("onnxscript", reason="pip install 'luthier[onnx]'")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny embedder, trained for a step or two, as the ship stage finds it."""
    root = tmp_path_factory.mktemp("run")
    model = write_steps(
        save_tiny_encoder(root / "model", numbered_as_bert=True), query="query: ", document="passage: "
    )
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


def test_an_embedder_leaves_as_gguf(work: Any) -> None:
    pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
    try:
        converter()
    except ToolchainError as error:
        pytest.skip(f"{error}: {error.hint}")
    held = held_values(work, ExportChoice())
    merged = work.task.save_merged(work.run.path / "artifacts" / "merged")
    export = ExportChoice(gguf=("F16", "Q8_0"), quality_rows=0)
    f16, q8 = ship_vector_ggufs(work, export, merged, held)
    for made, least in ((f16, 0.9999), (q8, 0.99)):
        assert made.parity is not None
        assert made.parity.passed
        assert made.parity.equal_token_ids == len(held.inputs)
        assert made.parity.agreement is not None
        assert made.parity.agreement > least
    pooled = merged / "1_Pooling" / "config.json"
    words = pooled.read_text()
    # another pooling in the file than in the training: every vector is a vector, and none is right
    pooled.write_text(words.replace('"pooling_mode_mean_tokens": true', '"pooling_mode_cls_token": true'))
    with pytest.raises(ParityError, match=r"cosine of .* under 0\.999; probable cause: pooling"):
        ship_vector_ggufs(work, export, merged, held)
    # the refused file is there for a look, and the next export does not take it for a good one
    manifest = json.loads((work.run.path / "artifacts" / "gguf.json").read_text())
    assert set(manifest) == {"Q8_0"}
    assert list((work.run.path / "artifacts").glob("*-F16.gguf"))
    pooled.write_text(words)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pooling": ("weightedmean",)}, "weightedmean"),
        ({"pooling": ("mean", "cls")}, "not by mean and cls"),
        ({"include_prompt": False, "prompts": {"query": "query: "}}, "pools the prompt's tokens too"),
    ],
)
def test_what_llama_cpp_does_not_pool_is_refused(change: dict[str, Any], why: str) -> None:
    settings = replace(VectorSettings(("mean",), True, None), **change)
    with pytest.raises(Unsupported, match=why):
        check_vector_gguf(settings, Path("model"))


def test_a_bert_reranker_has_no_gguf(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "task": "reranking",
            "model": {"id": "x"},
            "data": {"train": "rows.jsonl"},
            "export": {"gguf": "F16"},
        }
    )
    with pytest.raises(Unsupported, match="pooler and second token type"):
        check_supported(recipe)
    folder = save_tiny_encoder(tmp_path / "reranker")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("BertModel", "BertForSequenceClassification"))
    using = Converter("here", tmp_path)
    with pytest.raises(Unsupported, match="does not survive GGUF"):
        convert(folder, tmp_path / "x.gguf", using=using)


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

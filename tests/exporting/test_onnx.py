"""An ONNX folder answers like the saved model, alone and in batches, without torch; what differs is told."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.checks.values_parity import SAME, agreement_of, check_values
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import FileProblem, Unsupported
from luthier.exporting.onnx import OnnxModel, onnx_folder, write_spec
from luthier.models.classifier import load_classifier
from luthier.models.onnx_graph import write_graph
from luthier.models.rerank import read_rerank_settings, write_rerank_settings
from luthier.schema.onnx import GRAPH_FILE
from luthier.tasks.encoded import encode
from luthier.tasks.held import Held
from luthier.tasks.lists import with_tokens
from luthier.tasks.reranking import load_saved_reranker
from luthier.tasks.vectors import load_embedder
from tiny_encoders import save_tiny_decoder, save_tiny_encoder, sentences, write_steps

pytest.importorskip("onnxruntime", reason="pip install 'luthier[onnx]'")
pytest.importorskip("onnxscript", reason="pip install 'luthier[onnx]'")

TEXTS = [*sentences(12), "old", "the big red boat is a new query passage " * 6]
PAIRS = [(TEXTS[i % 5], TEXTS[i]) for i in range(len(TEXTS))]


def written(folder: Path, answers: Any) -> OnnxModel:
    out = folder.parent / f"{folder.name}-onnx"
    tokenizer = load_tokenizer(folder)
    with onnx_folder(folder, out) as scratch:
        spec = write_graph(
            folder,
            scratch / GRAPH_FILE,
            answers,
            pad_id=tokenizer.pad_id,
            gives_segments=tokenizer.gives_segments,
            limit=tokenizer.max_length,
        )
        write_spec(scratch, spec)
    assert not any(path.suffix == ".safetensors" for path in out.iterdir())
    return OnnxModel(out, threads=1)


@pytest.mark.parametrize(("kind", "pooling"), [("modernbert", "cls"), ("qwen3", "lasttoken")])
def test_vectors_are_those_of_the_saved_model(kind: str, pooling: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    save_tiny_decoder(folder) if kind == "qwen3" else save_tiny_encoder(folder, kind=kind)
    write_steps(folder, pooling=pooling, query="query: ", passage="passage: ")
    model = written(folder, "embed")
    own = load_embedder(folder, load_tokenizer(folder), model_id=kind)
    for role in (None, "query", "document"):
        vectors = model.run(TEXTS, role=role)
        assert np.abs(vectors - own.encode(TEXTS, role=role)).max() < 1e-6
        assert np.abs(model.run(TEXTS[:1], role=role) - vectors[:1]).max() < 1e-6
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.abs(model.run(TEXTS, role="query") - model.run(TEXTS)).max() > 1e-4


def classifier(folder: Path, labels: tuple[str, ...]) -> Path:
    model, _ = load_classifier(folder, labels, multi=False, dtype="float32", pad_id=0, seed=3)
    model.classifier.weight.data.mul_(4000)  # a fresh head's scores all lie at the middle
    model.save_pretrained(folder)
    return folder


def test_scores_are_those_of_the_saved_reranker(tmp_path: Path) -> None:
    folder = classifier(save_tiny_encoder(tmp_path / "reranker"), ("LABEL_0",))
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("PreTrainedTokenizerFast", "BertTokenizerFast"))
    write_rerank_settings(folder, replace(read_rerank_settings(folder), activation="identity"))
    model = written(folder, "rerank")
    own = load_saved_reranker(folder, load_tokenizer(folder)).score(PAIRS)
    assert model.spec.inputs[-1] == "token_type_ids"
    assert np.ptp(own) > 0.01
    assert np.abs(model.run(PAIRS) - own).max() < 1e-4


@pytest.mark.slow
def test_a_decoder_that_says_yes_or_no_scores_alike(tmp_path: Path) -> None:
    folder = save_tiny_decoder(tmp_path / "tiny-reranker", causal_head=True)
    write_rerank_settings(folder, with_tokens(read_rerank_settings(folder), load_tokenizer(folder)))
    model = written(folder, "rerank")
    own = load_saved_reranker(folder, load_tokenizer(folder)).score(PAIRS)
    assert np.abs(model.run(PAIRS) - own).max() < 1e-6


def test_logits_are_those_of_the_saved_classifier_and_a_reader_needs_no_torch(tmp_path: Path) -> None:
    folder = classifier(save_tiny_encoder(tmp_path / "classifier"), ("north", "south", "west"))
    model = written(folder, "classify")
    assert model.spec.labels == ("north", "south", "west")
    kept, _ = load_classifier(folder, model.spec.labels, multi=False, dtype="float32", pad_id=0, seed=3)
    (read,) = encode([TEXTS[0]], load_tokenizer(folder), most=None)
    import torch

    with torch.inference_mode():
        own = kept(torch.tensor([read.ids]), torch.ones(1, len(read.ids), dtype=torch.long)).logits.numpy()
    assert np.abs(model.run(TEXTS)[:1] - own).max() < 1e-4
    program = (
        "import sys; from pathlib import Path; from luthier.exporting.onnx import OnnxModel;"
        "print(OnnxModel(Path(sys.argv[1])).run([sys.argv[2]])[0].tolist());"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    out = tmp_path / "classifier-onnx"
    said = subprocess.run(
        [sys.executable, "-c", program, str(out), TEXTS[0]], capture_output=True, text=True, check=True
    )
    assert np.allclose(json.loads(said.stdout), own[0], atol=1e-4)


def test_a_prompt_that_is_not_pooled_is_refused(tmp_path: Path) -> None:
    folder = write_steps(save_tiny_encoder(tmp_path / "instructor"), query="query: ")
    settings = folder / "1_Pooling" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "include_prompt": False}))
    with pytest.raises(Unsupported, match="where the prompt ends"):
        written(folder, "embed")
    assert not [path for path in tmp_path.iterdir() if path != folder]


def test_a_folder_without_graph_is_no_onnx_model(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"has no model\.onnx"):
        OnnxModel(tmp_path)


def held(answers: Any, values: Any) -> Held:
    inputs = tuple(f"text {i}" for i in range(len(values)))
    return Held(
        answers, inputs, (None,) * len(values), ((1, 2, 3),) * len(values), np.asarray(values), "float32"
    )


def test_other_answers_and_other_ids_are_told() -> None:
    vectors = np.eye(4)
    trained = held("embed", vectors)
    same = check_values(trained, trained.ids, vectors + 1e-6, allowed=SAME["float32"], by="onnxruntime")
    assert same.passed
    assert same.agreement == pytest.approx(1)
    turned = vectors.copy()
    turned[2] = [0, 0, 0.9, 0.44]
    other = check_values(trained, trained.ids, turned, allowed=SAME["float32"], by="onnxruntime")
    assert not other.passed
    assert other.equal_tokens == 3
    assert "differs by up to 0.44" in other.problems[0]
    cosine = check_values(trained, trained.ids, turned, allowed=None, by="llama.cpp")
    assert "pooling, prompt or special tokens" in cosine.problems[0]
    ids = [*trained.ids[:3], (1, 2, 7)]
    read = check_values(trained, ids, vectors, allowed=SAME["float32"], by="onnxruntime")
    assert read.equal_token_ids == 3
    assert "'text 3': token 2 is 3 in the trained model, 7 with onnxruntime" in read.problems[0]
    narrow = check_values(trained, trained.ids, vectors[:, :2], allowed=SAME["float32"], by="onnxruntime")
    assert not narrow.passed


def test_rank_correlation_and_labels() -> None:
    scores = held("rerank", [0.1, 0.4, 0.3, 0.9])
    assert agreement_of("rerank", scores.values, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(1)
    assert agreement_of("rerank", scores.values, -scores.values) == pytest.approx(-1)
    labels = replace(held("classify", np.eye(2)), dtype="bfloat16")
    found = check_values(labels, labels.ids, np.eye(2)[::-1], allowed=SAME["bfloat16"], by="onnxruntime")
    assert (found.equal_tokens, found.agreement, found.passed) == (0, 0.0, False)

"""Embedders and classifiers answer behind the gateway as they do in this process."""

import asyncio
import base64
import json
import struct
import subprocess
import sys

import httpx2
import numpy as np
import pytest

from luthier.errors import ToolchainError, UsageError
from luthier.runs.served import build, choose
from luthier.serving.gateway import Gateway
from tiny_encoders import save_tiny_encoder, sentences, write_steps

pytest.importorskip("torch", reason="pip install 'luthier[train]'")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_steps(save_tiny_encoder(tmp_path_factory.mktemp("served") / "embedder"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    from transformers import BertConfig, BertForSequenceClassification

    folder = save_tiny_encoder(tmp_path_factory.mktemp("served") / "classifier")
    settings = json.loads((folder / "config.json").read_text())
    labels = {0: "calm", 1: "angry", 2: "glad"}
    config = BertConfig(**settings | {"id2label": labels, "label2id": {v: k for k, v in labels.items()}})
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def answers(gateway, *requests):
    """Statuses and bodies of (path, body), asked all at once."""

    async def work():
        await gateway.start()
        try:
            transport = httpx2.ASGITransport(app=gateway.app())
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                found = await asyncio.gather(*(http.post(path, json=body) for path, body in requests))
                metrics = await http.get("/metrics")
        finally:
            await gateway.close()
        return [(one.status_code, one.json()) for one in found], metrics.text

    return asyncio.run(work())


def test_vectors_are_those_of_this_process(folder):
    from luthier.data.tokenizer import load_tokenizer
    from luthier.tasks.vectors import load_embedder

    texts = sentences(6)
    served, plans = build([choose(f"e={folder}")])
    path = "/v1/embeddings"
    (plain, packed, short, empty, missing), metrics = answers(
        Gateway(served),
        (path, {"model": "e", "input": texts}),
        (path, {"model": "e", "input": texts[0], "encoding_format": "base64"}),
        (path, {"model": "e", "input": texts, "dimensions": 8}),
        (path, {"model": "e", "input": ["a", " "]}),
        (path, {"model": "e"}),
    )
    own = load_embedder(folder, load_tokenizer(folder), model_id="e").encode(texts)
    got = np.array([one["embedding"] for one in plain[1]["data"]], dtype=np.float32)
    np.testing.assert_allclose(got, own, atol=1e-6)
    raw = base64.b64decode(packed[1]["data"][0]["embedding"])
    np.testing.assert_allclose(struct.unpack(f"<{len(raw) // 4}f", raw), own[0], atol=1e-6)
    cut = np.array([one["embedding"] for one in short[1]["data"]])
    np.testing.assert_allclose(cut, own[:, :8] / np.linalg.norm(own[:, :8], axis=1, keepdims=True), atol=1e-5)
    assert plain[1]["usage"]["prompt_tokens"] > len(texts)
    assert (empty[0], missing[0]) == (400, 400)
    assert "is empty" in empty[1]["error"]["message"]
    assert 'luthier_tokens{kind="prompt",model="e"}' in metrics
    assert plans == {}


def test_a_classifier_gives_labels_and_probabilities(classifier):
    from luthier.tasks.labels import SavedClassifier

    texts = sentences(3)
    served, _ = build([choose(f"c={classifier}")])
    ((status, found), (wrong, _)), _ = answers(
        Gateway(served),
        ("/v1/classify", {"model": "c", "input": texts}),
        ("/v1/embeddings", {"model": "c", "input": texts}),
    )
    assert (status, wrong) == (200, 400)
    own = SavedClassifier(classifier).classify(texts)
    for got, wanted in zip(found["data"], own, strict=True):
        assert got["labels"] == wanted["labels"]
        assert got["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-6)


def graph(folder, source, kind, columns):
    """A graph that looks tokens up and takes their mean, with the settings of an export."""
    onnx = pytest.importorskip("onnx", reason="pip install 'luthier[onnx]'")
    from luthier.exporting.onnx import write_spec
    from luthier.schema.onnx import OnnxSpec

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    output = "vectors" if kind == "embed" else "logits"
    table = np.random.default_rng(1).standard_normal((200, columns)).astype(np.float32)
    made = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Gather", ["table", "input_ids"], ["found"]),
            onnx.helper.make_node("ReduceMean", ["found", "axes"], [output], keepdims=0),
        ],
        "graph",
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["rows", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["rows", columns])],
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(np.array([1]), "axes")],
    )
    whole = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(whole, folder / "model.onnx")
    inputs = ("input_ids", "attention_mask")
    write_spec(folder, OnnxSpec(answers=kind, inputs=inputs, output=output, pad_id=0))
    return folder


def test_graphs_answer_by_onnxruntime(folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'luthier[onnx]'")
    from luthier.exporting.onnx import OnnxModel
    from luthier.schema.classification import DECISION_FILE, Decision

    vectors, classes = (
        graph(tmp_path / kind, folder, kind, columns) for kind, columns in (("embed", 5), ("classify", 3))
    )
    decision = Decision(kind="multi-class", labels=("calm", "angry", "glad"), temperature=2.0)
    (classes / DECISION_FILE).write_text(decision.model_dump_json())
    texts = sentences(3)
    chosen = [choose(f"e={vectors}"), choose(f"c={classes}")]
    assert [one.kind for one in chosen] == ["embed", "classify"]
    served, _ = build(chosen)
    (embedded, labelled), _ = answers(
        Gateway(served),
        ("/v1/embeddings", {"model": "e", "input": texts}),
        ("/v1/classify", {"model": "c", "input": texts}),
    )
    got = np.array([one["embedding"] for one in embedded[1]["data"]])
    np.testing.assert_allclose(got, OnnxModel(vectors).run(texts), atol=1e-6)
    chances = np.exp(OnnxModel(classes).run(texts) / 2)
    chances /= chances.sum(axis=1, keepdims=True)
    for one, own in zip(labelled[1]["data"], chances, strict=True):
        assert one["labels"] == [decision.labels[own.argmax()]]
        assert [one["probabilities"][label] for label in decision.labels] == pytest.approx(own, abs=1e-6)
    (classes / DECISION_FILE).unlink()
    with pytest.raises(ToolchainError, match="has no luthier_classifier"):
        answers(Gateway(build([choose(f"c={classes}")])[0]))


def test_a_graph_is_answered_without_torch(tmp_path):
    code = "import sys, luthier.tasks.stay, luthier.tasks.decision, luthier.exporting.onnx; "
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_served(folder, tmp_path):
    with pytest.raises(UsageError, match="would be called e"):
        build([choose(f"e={folder}"), choose(f"e={folder}")])
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(UsageError, match="served as GGUF"):
        choose(str(tmp_path))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "modules.json").write_text("[]")
    served, _ = build([choose(f"b={broken}")])
    with pytest.raises(ToolchainError, match="does not load"):
        answers(Gateway(served))

"""Each purpose from a shipped recipe to an answer, on tiny models: train, prove, ship, ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import says
from encoders import label_rows, save_encoder
from luthier.catalog.shipped import shipped_recipe
from tiny import COLOURS, THINGS, save_tiny_model

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]

FAST = (
    "training.epochs=6", "training.learning_rate=4e-3", "training.batch_size=8", "training.evaluate_every=20",
    "model.dtype=float32",
)  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_of(folder: Path) -> Path:
    (path,) = (folder / "runs").iterdir()
    return path


def outcome(folder: Path, name: str) -> Any:
    return json.loads((run_of(folder) / f"{name}.json").read_text())["result"]


def test_multi_class_from_recipe_to_answer(tmp_path: Path) -> None:
    save_encoder(tmp_path / "model", "roberta")
    rows = [{"text": row.text, "label": row.labels[0]} for row in label_rows(200, seed=1)]
    write(tmp_path / "labelled.jsonl", rows)
    recipe = shipped_recipe("multi-class-xlm-roberta-base-lora").path
    says(
        tmp_path, "train", str(recipe), "model.id=model", "data.train=labelled.jsonl", *FAST,
        "training.sequence_length=24",
    )  # fmt: skip
    (comparison,) = outcome(tmp_path, "comparison")
    assert comparison["verdict"] == "better"
    merged = next(a for a in outcome(tmp_path, "artifacts") if a["kind"] == "merged")
    assert merged["parity"]["passed"]
    assert merged["parity"]["largest_difference"] < 1e-3
    assert (run_of(tmp_path) / "report.html").stat().st_size > 1000
    said = json.loads(says(tmp_path, "classify", "latest", "cat cat", "blue red", "--json"))
    assert [answer["labels"] for answer in said["answers"]] == [["animal"], ["colour"]]
    assert sum(said["answers"][0]["probabilities"].values()) == pytest.approx(1)
    (tmp_path / "ask.txt").write_text("jam soup\n\nthe hen cow\n")
    assert "food" in says(tmp_path, "classify", "latest", "--file", "ask.txt").splitlines()[0]
    held_out = write(tmp_path / "more.jsonl", [{"text": "pie pie", "label": "food"}] * 3)
    assert "accuracy" in says(tmp_path, "evaluate", "latest", "--data", str(held_out))
    wrong = says(tmp_path, "export", "latest", "--gguf", "Q8_0", code=2)
    assert "llama.cpp has no classifier" in wrong


def test_multi_label_from_recipe_to_answer(tmp_path: Path) -> None:
    save_encoder(tmp_path / "model", "modernbert")
    rows = [{"text": row.text, "labels": list(row.labels)} for row in label_rows(240, multi=True, seed=1)]
    write(tmp_path / "tagged.jsonl", rows)
    recipe = shipped_recipe("multi-label-modernbert-base-full").path
    says(
        tmp_path, "train", str(recipe), "model.id=model", "data.train=tagged.jsonl", *FAST,
        "training.sequence_length=24",
    )  # fmt: skip
    (comparison,) = outcome(tmp_path, "comparison")
    assert comparison["verdict"] == "better"
    said = json.loads(says(tmp_path, "classify", "latest", "cat dog red pink", "--json"))
    assert sorted(said["answers"][0]["labels"]) == ["animal", "colour"]


def test_completion_of_a_base_model_from_recipe_to_answer(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    pairs = [
        {"prompt": f"{number} old {thing} is", "completion": f" {colour}"}
        for number in range(32)
        for thing, colour in zip(THINGS, COLOURS, strict=True)
    ]
    write(tmp_path / "texts.jsonl", pairs)
    recipe = shipped_recipe("completion-qwen3-1.7b-full").path
    says(
        tmp_path, "train", str(recipe), "model.id=model", "data.train=texts.jsonl", *FAST,
        "training.sequence_length=64", "export.gguf=[]", "evaluation.max_new_tokens=8",
    )  # fmt: skip
    (comparison,) = outcome(tmp_path, "comparison")
    assert comparison["verdict"] == "better"
    assert comparison["primary"] == "exact_match"
    answer = says(tmp_path, "generate", "latest", "3 old hat is", "--max-new-tokens", "8")
    assert answer == f"3 old hat is {COLOURS[THINGS.index('hat')]}\n"


@pytest.mark.parametrize("tokenizer", ["characters", "bpe"])
def test_pretraining_from_scratch_from_recipe_to_answer(tmp_path: Path, tokenizer: str) -> None:
    texts = [
        {"text": f"the {thing} is {colour} and number {number} of the {colour} {thing} is old."}
        for number in range(5)
        for thing in THINGS
        for colour in COLOURS
    ]
    write(tmp_path / "texts.jsonl", texts)
    recipe = shipped_recipe("pretrain-characters-cpu").path
    words = (
        "data.train=texts.jsonl", "model.dtype=float32", "training.max_steps=60",
        f"model.from_scratch.tokenizer={tokenizer}", "model.from_scratch.vocabulary=300",
        "model.from_scratch.hidden_size=32", "model.from_scratch.layers=2", "training.evaluate_every=30",
        "model.from_scratch.parameters=30k", "training.learning_rate=1e-2", "training.schedule=wsd",
    )  # fmt: skip
    says(tmp_path, "train", str(recipe), *words)
    (comparison,) = outcome(tmp_path, "comparison")
    assert comparison["primary"] == "loss"
    assert comparison["verdict"] == "better"
    first, last = (comparison["differences"][0][side]["value"] for side in ("baseline", "tuned"))
    assert first > 3
    assert last < 0.5 * first
    assert says(tmp_path, "generate", "latest", "the ba", "--max-new-tokens", "20").startswith("the ba")
    drawn = [
        says(tmp_path, "generate", "latest", "the", "--temperature", "1", "--seed", str(seed))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    refused = says(tmp_path, "train", str(recipe), *words, "method.name=lora", code=2)
    assert "set method.name: full" in refused


def test_a_chat_from_scratch_has_the_marks_of_its_template(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{number} old {thing}", "completion": colour}
        for number in range(5)
        for thing, colour in zip(THINGS, COLOURS, strict=True)
    ]
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text(
        "task: chat\nmodel: {from_scratch: {parameters: 30k, vocabulary: 300, hidden_size: 32, layers: 2}, "
        "chat_template: chatml}\nmethod: {name: full}\ndata: {train: rows.jsonl}\n"
        "training: {max_steps: 2, learning_rate: 1e-3, batch_size: 4}\nexport: {gguf: []}\n"
    )
    assert "Predicted peak" in says(tmp_path, "plan", "recipe.yaml")
    (shown,) = json.loads(says(tmp_path, "data", "show", "recipe.yaml", "--json", "-n", "1"))["rows"]
    said = [token["text"] for token in shown["tokens"]]
    assert said[0] == "<|im_start|>"
    assert "".join(token["text"] for token in shown["tokens"] if token["trained"]) == "red<|im_end|>"


def test_what_a_purpose_cannot_do_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    encoder, decoder = save_encoder(tmp_path / "encoder"), save_tiny_model(tmp_path / "decoder")
    one = write(tmp_path / "one.jsonl", [{"text": f"a {i}", "label": "same"} for i in range(40)])
    good = [{"text": row.text, "label": row.labels[0]} for row in label_rows(60)]
    train = write(tmp_path / "train.jsonl", good)
    unseen = write(tmp_path / "unseen.jsonl", [*good[:5], {"text": "a fish", "label": "anima"}])
    empty = write(tmp_path / "empty.jsonl", [{"text": f"a {i}", "joy": 0, "fear": 0} for i in range(40)])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"task: multi-class-classification\nmodel: {{id: {encoder}}}\nmethod: {{name: full}}\n"
        f"data: {{train: {train}}}\ntraining: {{max_steps: 2}}\n"
    )

    def refused(*words: str, code: int) -> str:
        return says(tmp_path, "plan", str(recipe), *words, code=code)

    assert "one label" in refused(f"data.train={one}", code=4)
    said = refused(f"data.test={unseen}", code=4)
    assert "unseen.jsonl:6" in said
    assert "did you mean animal?" in said
    said = refused(
        "task=multi-label-classification", f"data.train={empty}", "data.columns.labels=joy, fear", code=4
    )
    assert "no training row has a label" in said
    scored = write(
        tmp_path / "scored.jsonl",
        [{"sentence1": row["text"], "sentence2": "a", "score": n / 60} for n, row in enumerate(good)],
    )
    said = refused("task=similarity", f"data.train={scored}", "similarity.loss=triplet", code=2)
    assert "triplet is for queries with texts, and the training rows are scored-pairs" in said
    said = refused("task=reranking", f"data.train={scored}", "reranking.score_range=[0.5, 1]", code=4)
    assert "is outside reranking.score_range" in said
    assert "it cannot write text" in refused("task=text-generation", "data.format=text", code=2)
    assert "no GGUF export" in refused("export.gguf=Q8_0", code=2)
    assert "another purpose" in refused(
        "task=chat", "classification.label_smoothing=0.1", f"model.id={decoder}", code=2
    )
    assert "scratch" in refused("model.from_scratch.parameters=30k", code=2)

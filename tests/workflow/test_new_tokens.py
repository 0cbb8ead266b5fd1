"""New tokens from a recipe to an answer: trained, proved, exported to GGUF under the same ids, asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command import luthier, says
from families import build
from luthier.data.tokenizer import load_tokenizer
from luthier.models.load import load_causal
from tiny import COLOURS, save_tiny_model

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]


def write_rows(path: Path, answer: str) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"the {size} hat {n} is {colour}"},
                {"role": "assistant", "content": answer.format(colour)},
            ]
        }
        for n in range(9)
        for size in ("old", "new")
        for colour in COLOURS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WORDS = (
    "model.id=model", "data.train=chats.jsonl", "model.dtype=float32", "training.epochs=8",
    "training.learning_rate=1e-2", "training.batch_size=8", "training.evaluate_every=20",
    "evaluation.max_new_tokens=16", "evaluation.floor_rows=0", "evaluation.probe_rows=0",
)  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_tags_become_tokens_beside_adapters(tmp_path: Path, method: str) -> None:
    model = save_tiny_model(tmp_path / "model")
    build("Llama", vocab_size=338, max_position_embeddings=256, hidden_size=64).save_pretrained(model)
    write_rows(tmp_path / "chats.jsonl", "<tool>{}</tool>")
    (tmp_path / "recipe.yaml").write_text(
        'model: {id: model, new_tokens: ["<tool>", "</tool>"]}\n'
        f"method: {{name: {method}, rank: 8}}\ndata: {{train: chats.jsonl}}\n"
    )
    luthier(tmp_path, "setup", "gguf", own_cache=False)
    done = luthier(tmp_path, "train", "recipe.yaml", *WORDS, "export.gguf=F16", own_cache=False)
    assert "2 new tokens: <tool> is 338 (was" in done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    (comparison,) = json.loads((run / "comparison.json").read_text())["result"]
    assert comparison["verdict"] == "better"
    made = {one["kind"]: one for one in json.loads((run / "artifacts.json").read_text())["result"]}
    parity = made["gguf:F16"]["parity"]
    assert parity["passed"], parity["problems"]
    assert parity["equal_token_ids"] == parity["prompts"] > 3
    merged = run / "artifacts" / "merged"
    tokens = load_tokenizer(merged)
    assert tokens.encode("<tool>red</tool>")[0] == 338
    assert load_tokenizer(run / "artifacts" / "adapter").encode("</tool>") == [339]
    base, tuned = (load_causal(folder, dtype="float32") for folder in (model, merged))
    assert tuned.config.vocab_size == 340
    table = tuned.get_input_embeddings().weight
    assert table[:338].equal(base.get_input_embeddings().weight)
    said = says(tmp_path, "chat", "latest", "--once", "the old hat 3 is red")
    assert said.strip() == "<tool>red</tool>"
    shutil.rmtree(run)


def test_a_base_model_learns_the_marks_of_chatml(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", hidden=64)
    forget_marks(folder)
    write_rows(tmp_path / "chats.jsonl", "{}")
    asked = ("model.chat_template=chatml", "method.name=full")
    (tmp_path / "recipe.yaml").write_text("model: {id: model}\ndata: {train: chats.jsonl}\n")
    refused = luthier(tmp_path, "train", "recipe.yaml", *WORDS, *asked, code=2).stderr
    assert "model.new_tokens=<|im_start|>,<|im_end|>" in refused.replace("\n", "")
    luthier(tmp_path, "setup", "gguf", own_cache=False)
    luthier(
        tmp_path, "train", "recipe.yaml", *WORDS, *asked, "model.new_tokens=<|im_start|>,<|im_end|>",
        "export.gguf=F16", own_cache=False,
    )  # fmt: skip
    (run,) = (tmp_path / "runs").iterdir()
    made = {one["kind"]: one for one in json.loads((run / "artifacts.json").read_text())["result"]}
    parity = made["gguf:F16"]["parity"]
    assert parity["passed"], parity["problems"]
    assert parity["equal_token_ids"] == parity["prompts"] > 3
    tokens = load_tokenizer(run / "artifacts" / "merged")
    assert tokens.special_texts >= {"<|im_start|>", "<|im_end|>"}
    assert says(tmp_path, "chat", "latest", "--once", "the old hat 3 is red").strip() == "red"


def test_two_processes_train_the_rows_as_one(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "chats.jsonl", "<tool>{}</tool>")
    (tmp_path / "recipe.yaml").write_text("model: {id: model}\ndata: {train: chats.jsonl}\n")
    losses = []
    for number, words in enumerate(([], ["--gpus", "2"])):
        luthier(
            tmp_path, "train", "recipe.yaml", *WORDS, "model.new_tokens=<tool>,</tool>", f"name=run{number}",
            "training.max_steps=3", "training.micro_batch_size=4", "evaluation.max_rows=1",
            "export.merged=false", *words,
        )  # fmt: skip
        (run,) = (tmp_path / "runs").glob(f"run{number}-*")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([(line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "step"])
    assert len(losses[0]) == 3
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def forget_marks(folder: Path) -> None:
    """Take chatml's marks out of a tokenizer, as a base model has it."""
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    for number, mark in enumerate(("<|im_start|>", "<|im_end|>")):
        vocabulary[f"unused{number}"] = vocabulary.pop(mark)
    tree["added_tokens"] = [one for one in tree["added_tokens"] if "im_" not in one["content"]]
    path.write_text(json.dumps(tree))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 256})
    )
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": 0}))

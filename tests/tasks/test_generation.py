"""Texts: judged by transformers' own cross-entropy, completed as they stand; weights from scratch by seed."""

import json
import math
from itertools import pairwise

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM

from luthier.data.tokenizer import load_tokenizer
from luthier.data.vocabulary import character_tokenizer, save_tokenizer
from luthier.errors import Unsupported
from luthier.models.scratch import MARK, ensure_weights
from luthier.schema.protocols import ChatRow, Splits
from luthier.schema.recipe import (
    DataChoice,
    EvaluationChoice,
    FromScratch,
    Full,
    Lora,
    ModelChoice,
    Recipe,
    TrainingChoice,
)
from luthier.sizing.scratch import scratch_config
from luthier.tasks.generation import TextTask, continue_texts
from luthier.training.optimizer import learning_rate
from tiny import save_tiny_model

TEXT = "the old boat is red. the new boat is blue. "


def save_scratch(folder, *, seed=1, layers=2):
    save_tokenizer(character_tokenizer([TEXT]), folder, context=64)
    tokenizer = load_tokenizer(folder)
    choice = FromScratch(parameters=14_000 * layers, hidden_size=32, layers=layers, context=64)
    found = scratch_config(choice, vocabulary=tokenizer.vocab_size, bos=None, eos=0, pad=1)
    (folder / "config.json").write_text(json.dumps(found))
    (folder / MARK).write_text(json.dumps({"seed": seed}))
    ensure_weights(folder)
    return folder


def task(folder, method=None):
    recipe = Recipe(
        task="text-generation",
        model=ModelChoice(id=str(folder), dtype="float32", attention="sdpa"),
        method=method or Full(),
        data=DataChoice(train=("texts.txt",), packing=False),
        training=TrainingChoice(
            epochs=1, learning_rate=1e-2, batch_size=4, micro_batch_size=4, sequence_length=16,
            activation_checkpointing="none",
        ),
        evaluation=EvaluationChoice(batch_size=4, max_new_tokens=8),
    )  # fmt: skip
    return TextTask(recipe, folder, load_tokenizer(folder))


def text_row(text, name="1"):
    return ChatRow([{"role": "text", "content": text}], "texts.txt", 1, name)


def told(words):
    return lambda done, total: None


@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
def test_the_loss_of_a_text_is_that_of_transformers(tmp_path, method):
    folder = save_scratch(tmp_path / "model")
    rows = {"test": [text_row(TEXT), text_row("the boat", "2")]}
    found = task(folder, method).judge_base(Splits([], []), rows, told=told)["test"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    end = tokenizer.decode([0], skip_special=False)
    nats = tokens = size = 0
    for row in rows["test"]:
        ids = tokenizer.encode(row.messages[0]["content"] + end)
        for start in range(0, len(ids), 16):
            piece = torch.tensor([ids[start : start + 16]])
            if piece.shape[1] > 1:
                with torch.no_grad():
                    nats += float(model(piece, labels=piece).loss) * (piece.shape[1] - 1)
                tokens += piece.shape[1] - 1
                size += len(tokenizer.decode(piece[0, 1:].tolist(), skip_special=False).encode())
    assert found.primary == "loss"
    assert found.metrics["loss"].value == pytest.approx(nats / tokens, rel=1e-5)
    assert found.metrics["bits_per_byte"].value == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert not found.metrics["loss"].greater_is_better
    assert found.rows[0].prompt == TEXT


def test_prompts_are_completed_without_a_template(tmp_path):
    folder = save_scratch(tmp_path / "model")
    asked = ChatRow(
        [{"role": "text", "content": "the old", "weight": 0}, {"role": "assistant", "content": " boat"}],
        "rows.jsonl", 1, "1",
    )  # fmt: skip
    found = task(folder).judge_base(Splits([], []), {"test": [asked]}, told=told)["test"]
    assert found.rows[0].expected == " boat"
    (greedy,) = continue_texts(folder, ["the old"], device="cpu", max_new_tokens=8)
    assert found.rows[0].answer == greedy["text"]
    drawn = [
        continue_texts(folder, ["the"], device="cpu", max_new_tokens=20, temperature=1.0, seed=seed)[0][
            "text"
        ]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_weights_from_scratch_are_small_and_the_same_for_a_seed(tmp_path):
    first = save_scratch(tmp_path / "a", seed=1, layers=8)
    again = save_scratch(tmp_path / "b", seed=1, layers=8)
    other = save_scratch(tmp_path / "c", seed=2, layers=8)
    same = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert same[0] == same[1] != same[2]
    weights = dict(AutoModelForCausalLM.from_pretrained(first).named_parameters())
    inner = weights["model.layers.3.self_attn.q_proj.weight"].std().item()
    outward = weights["model.layers.3.mlp.down_proj.weight"].std().item()
    assert inner == pytest.approx(0.02, rel=0.1)
    assert outward == pytest.approx(0.02 / 4, rel=0.1)
    before = (first / "model.safetensors").stat().st_mtime_ns
    ensure_weights(first)
    assert (first / "model.safetensors").stat().st_mtime_ns == before


def test_the_rate_stays_high_until_the_decay():
    choice = TrainingChoice(learning_rate=1.0, schedule="wsd", warmup_share=0.1, decay_share=0.2)
    rates = [learning_rate(step, 100, choice) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[10:80]) == {1.0}
    assert all(a > b for a, b in pairwise(rates[80:]))
    assert 0 < rates[-1] < 0.1


def test_a_gap_is_filled_at_the_models_own_marks(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    with pytest.raises(Unsupported, match="no marks for a gap"):
        continue_texts(folder, ["the ball"], device="cpu", suffix="red")
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    fast.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    fast.save(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(fast.get_vocab_size(), mean_resizing=False)
    model.save_pretrained(folder)
    (filled,) = continue_texts(folder, ["the ball"], device="cpu", suffix="red", max_new_tokens=6)
    (same,) = continue_texts(
        folder, ["<|fim_prefix|>the ball<|fim_suffix|>red<|fim_middle|>"], device="cpu", max_new_tokens=6
    )
    assert filled == same
    assert filled != continue_texts(folder, ["the ball"], device="cpu", max_new_tokens=6)[0]

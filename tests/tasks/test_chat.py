"""One model from baseline to merged weights, from a folder on disk."""

import json

import numpy as np
import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from luthier.errors import Interrupted, RecipeError, Unsupported
from luthier.schema.protocols import Splits, TokenRow
from luthier.schema.recipe import (
    DataChoice,
    EvaluationChoice,
    Full,
    Lora,
    ModelChoice,
    QLora,
    Recipe,
    TrainingChoice,
)
from luthier.tasks.base import MERGE
from luthier.tasks.chat import ChatTask

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
WORDS = ["<pad>", "<s>", "</s>", *[f"w{i}" for i in range(3, 60)]]


class Words:
    """Words to ids, one each."""

    eos_ids = frozenset({2})
    pad_id = 0

    def encode(self, text):
        return [WORDS.index(word) for word in text.split()]

    def encode_offsets(self, texts):
        raise NotImplementedError

    def decode(self, ids, *, skip_special=True):
        return " ".join(WORDS[i] for i in ids)

    def render(self, messages, *, tools=None, add_generation_prompt=False):
        return "<s> " + " ".join(message["content"] for message in messages)


def save_model(directory, family="llama"):
    kinds = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}
    kind, config = kinds[family]
    torch.manual_seed(0)
    model = kind(
        config(
            vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
            tie_word_embeddings=True, initializer_range=0.3,
        )
    )  # fmt: skip
    model.save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text("{{ messages }} é\r\n", newline="")
    return directory


def rows(starts):
    """``<s> w`` is answered by the next three words and the end."""
    found = []
    for line, start in enumerate(starts, 1):
        ids = np.array([1, start, start + 1, start + 2, start + 3, 2], dtype=np.int32)
        trained = np.array([False, False, True, True, True, True])
        found.append(TokenRow(ids, trained, "rows.jsonl", line, f"{start}"))
    return found


def recipe(directory, method=None, **training):
    values = {
        "epochs": 30, "learning_rate": 1e-2, "batch_size": 4, "micro_batch_size": 2, "sequence_length": 16,
        "warmup_share": 0.1, "evaluate_every": 20, "activation_checkpointing": "none",
    }  # fmt: skip
    return Recipe(
        model=ModelChoice(id=str(directory), dtype="float32"),
        method=method or Lora(),
        data=DataChoice(train=("rows.jsonl",), packing=True),
        training=TrainingChoice(**{**values, **training}),
        evaluation=EvaluationChoice(batch_size=4),
        seed=3,
    )


SPLITS = Splits(rows(range(3, 27)), rows([9, 15]))
CHATS = [[{"role": "user", "content": f"w{i}"}] for i in (5, 11, 20)]
ANSWERS = ["w6 w7 w8", "w12 w13 w14", "w21 w22 w23"]


def texts(generator):
    return [answer.text for answer in generator.generate(CHATS, max_new_tokens=8)]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "method", [Lora(), Lora(dora=True), Full(), QLora()], ids=["lora", "dora", "full", "qlora"]
)
def test_from_baseline_to_merged(tmp_path, family, method):
    model_directory = save_model(tmp_path / "base", family)
    chosen = recipe(model_directory, method, **({"learning_rate": 5e-3} if method.name == "full" else {}))
    run = tmp_path / "run"
    task = ChatTask(chosen, model_directory, Words())
    before = texts(task.base_generator())
    assert before != ANSWERS
    events = []
    result = task.fit(SPLITS, run, recipe_digest="r", on_metrics=events.append)
    assert result.last_loss < 0.2 < result.first_loss
    tuned = task.tuned_generator(run)
    assert texts(tuned) == ANSWERS
    assert tuned.weights_digest != task.base_generator().weights_digest
    assert texts(task.base_generator()) == before

    again = ChatTask(chosen, model_directory, Words())
    assert texts(again.tuned_generator(run)) == ANSWERS
    assert again.tuned_generator(run).weights_digest == tuned.weights_digest
    ids = torch.tensor([[1, 7, 8, 9]])
    expected = again.model(ids).logits
    if method.name == "lora":
        adapter = again.save_adapter(tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(model_directory)
        torch.testing.assert_close(
            peft.PeftModel.from_pretrained(base, adapter)(ids).logits, expected, rtol=1e-4, atol=1e-4
        )
        config = json.loads((adapter / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "base"
    elif method.name == "qlora":
        adapter = again.save_adapter(tmp_path / "adapter")
        assert (adapter / "adapter_model.safetensors").is_file()
    else:
        with pytest.raises(Unsupported, match="no adapter"):
            again.save_adapter(tmp_path / "adapter")
    merged = again.save_merged(tmp_path / "merged")
    alone = AutoModelForCausalLM.from_pretrained(merged)
    if method.name == "qlora":
        assert json.loads((merged / MERGE).read_text())["same_first_choice"] == 1.0
    torch.testing.assert_close(alone(ids).logits, expected, rtol=1e-4, atol=1e-4)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (model_directory / name).read_bytes()
    for name in ("config.json", "generation_config.json"):
        assert str(tmp_path) not in (merged / name).read_text()
    assert texts(again.tuned_generator(run)) == ANSWERS
    assert texts(again.base_generator()) == before
    again.free()


@pytest.mark.parametrize("kind", [Lora, QLora])
def test_stopped_and_gone_on_in_a_new_process(tmp_path, kind):
    model_directory = save_model(tmp_path / "base")
    chosen = recipe(model_directory, kind(rank=4, dropout=0.1), epochs=4, evaluate_every=3)
    whole = ChatTask(chosen, model_directory, Words())
    events = []
    whole.fit(SPLITS, tmp_path / "whole", recipe_digest="r", on_metrics=events.append)
    steps = [event["loss"] for event in events if event["kind"] == "step"]

    calls = iter([None, None, None, "stop"])
    cut = ChatTask(chosen, model_directory, Words())
    with pytest.raises(Interrupted):
        cut.fit(
            SPLITS,
            tmp_path / "cut",
            recipe_digest="r",
            on_metrics=lambda _: None,
            control=lambda: next(calls),
        )
    after = []
    resumed = ChatTask(chosen, model_directory, Words())
    resumed.fit(SPLITS, tmp_path / "cut", recipe_digest="r", on_metrics=after.append)
    assert after[0] == {"kind": "resumed", "step": 4, "total_steps": len(steps)}
    assert [event["loss"] for event in after if event["kind"] == "step"] == steps[4:]
    assert texts(resumed.tuned_generator(tmp_path / "cut")) == texts(
        whole.tuned_generator(tmp_path / "whole")
    )


def test_what_cannot_be_done_is_said(tmp_path):
    model_directory = save_model(tmp_path / "base")
    for method in (Lora(base="float8"), Full(products="float8")):
        with pytest.raises(Unsupported, match="eight-bit numbers"):
            ChatTask(recipe(model_directory, method), model_directory, Words())
    with pytest.raises(RecipeError, match=r"training.learning_rate, training.batch_size has no value"):
        ChatTask(recipe(model_directory, learning_rate=None, batch_size=None), model_directory, Words())

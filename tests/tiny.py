"""A tiny random chat model with a real tokenizer and template, and rows it can learn in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = ("red", "green", "blue", "black", "white", "pink", "grey", "gold")
THINGS = ("ball", "hat", "box", "cup", "kite", "lamp", "door", "boat")


def chat(thing: str, colour: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": f"the {thing} is {colour}"},
            {"role": "assistant", "content": f'{{"colour":"{colour}"}}'},
        ]
    }


def write_rows(path: Path, count: int, *, seed: int = 0) -> Path:
    """``count`` distinct conversations."""
    draw = random.Random(seed)
    pairs = [(f"{a} {t} {i}", c) for i in range(40) for a in ("old", "new") for t in THINGS for c in COLOURS]
    draw.shuffle(pairs)
    path.write_text("".join(json.dumps(chat(*pair)) + "\n" for pair in pairs[:count]))
    return path


def save_tiny_model(folder: Path, *, hidden: int = 32, layers: int = 2, seed: int = 3) -> Path:
    """A Llama of a few ten thousand weights, saved as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [f'the {t} is {c} {{"colour":"{c}"}} user assistant' for t in THINGS for c in COLOURS]
    words.train_from_iterator(text, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "model_max_length": 256,
                "chat_template": TEMPLATE,
            }
        )
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, model: Path, **training: object) -> Path:
    """A recipe over fresh rows: train, validation and one test split."""
    write_rows(folder / "train.jsonl", 96, seed=1)
    write_rows(folder / "validation.jsonl", 12, seed=2)
    write_rows(folder / "test.jsonl", 12, seed=3)
    settings = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4, **training}
    lines = [f"  {key}: {value}" for key, value in settings.items()]
    (folder / "recipe.yaml").write_text(
        "\n".join(
            [
                "name: tiny",
                f"model: {{id: {model}}}",
                "method: {name: lora, rank: 4, dropout: 0.1}",
                "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}",
                "training:",
                *lines,
                "evaluation: {max_new_tokens: 16}",
                "",
            ]
        )
    )
    return folder / "recipe.yaml"

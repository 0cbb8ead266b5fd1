"""Tiny random encoders and decoders with a real tokenizer, and rows that they learn in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from luthier.schema.rows import LabelRow

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOPICS = {
    "animal": ["cat", "dog", "cow", "hen"],
    "colour": ["red", "blue", "grey", "pink"],
    "food": ["pie", "jam", "rice", "soup"],
}
FILLER = ["the", "a", "is", "was", "very", "good", "bad", "old", "new", "and", "my", "your", "zzz", "qqq"]
WORDS = [*SPECIAL, *FILLER, *(word for words in TOPICS.values() for word in words)]
SHAPE: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
    "initializer_range": 0.1,
}  # fmt: skip


def save_tokenizer(folder: Path, *, around: bool, segments: bool = False) -> None:
    """One id a word. around: [CLS] before and [SEP] after each text; segments: two texts are told apart."""
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if around:
        fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        named |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    else:
        named |= {"eos_token": "[SEP]"}
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 60, **named}
    if segments:
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_encoder(folder: Path, family: str = "bert", *, seed: int = 0) -> Path:
    """A base model without any head over labels, as they are published."""
    torch.manual_seed(seed)
    if family == "llama":
        config = LlamaConfig(**SHAPE, num_key_value_heads=2, bos_token_id=2, eos_token_id=3)
        model: Any = LlamaForCausalLM(config)
    elif family == "modernbert":
        ends = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
        model = ModernBertForMaskedLM(ModernBertConfig(**SHAPE, **ends, local_attention=8))
    elif family == "roberta":
        model = RobertaForMaskedLM(RobertaConfig(**SHAPE, bos_token_id=2, eos_token_id=3))
    else:
        model = BertForMaskedLM(BertConfig(**SHAPE))
    save_tokenizer(folder, around=family != "llama", segments=family == "bert")
    model.save_pretrained(folder)
    return folder


def text_about(topics: list[str], draw: random.Random) -> str:
    words = draw.choices(FILLER, k=draw.randint(0, 1))
    words += [draw.choice(TOPICS[topic]) for topic in topics for _ in range(2)]
    draw.shuffle(words)
    return " ".join(words) or "the"


def label_rows(count: int, *, multi: bool = False, seed: int = 0) -> list[LabelRow]:
    """Texts with two words of their topic (multi: of any number of topics)."""
    draw = random.Random(seed)
    names = list(TOPICS)
    rows = []
    for line in range(1, count + 1):
        topics = sorted(draw.sample(names, draw.randint(0, 3))) if multi else [draw.choice(names)]
        text = text_about(topics, draw)
        rows.append(LabelRow(text, tuple(topics), "rows.jsonl", line, f"{seed}-{line}", f"{seed}-{line}"))
    return rows

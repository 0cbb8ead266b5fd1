"""Tiny random encoders and decoders with real tokenizers, for vectors and for scores of pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import COLOURS, THINGS

WORDS = (*COLOURS, *THINGS, "the", "is", "a", "old", "new", "query", "passage", "yes", "no", "big", "small")


def sentences(count: int) -> list[str]:
    """Distinct sentences of different lengths out of few words."""
    found = []
    for i in range(count):
        rest = " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(i % 5))
        found.append(f"the {COLOURS[i % 8]} {THINGS[i // 8 % 8]} is {COLOURS[i * 3 % 8]} {rest}".strip())
    return found


def save_tiny_encoder(
    folder: Path, *, kind: str = "bert", hidden: int = 32, seed: int = 3, numbered_as_bert: bool = False
) -> Path:
    """A BERT (``bert``) or ModernBERT (``modernbert``) of few weights, saved as a Hugging Face folder.

    numbered_as_bert: special tokens have the numbers of BERT's own vocabulary, which llama.cpp counts on.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

    unused = [f"[unused{i}]" for i in range(99)] if numbered_as_bert else []
    special = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [
        *special,
        *WORDS,
        *"abcdefghijklmnopqrstuvwxyz0123456789:.,",
        *[f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"],
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    _settings(folder, {**names, "model_max_length": 64})
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    if kind == "bert":
        model: Any = BertModel(BertConfig(**shape))
    else:
        model = ModernBertModel(
            ModernBertConfig(**shape, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)
        )
    model.save_pretrained(folder)
    return folder


def save_tiny_decoder(folder: Path, *, causal_head: bool = False, hidden: int = 32, seed: int = 3) -> Path:
    """A Qwen3 of few weights whose tokenizer ends every text, as its embedders do."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {
        piece: i
        for i, piece in enumerate(("[UNK]", *WORDS, *(chr(c) for c in range(33, 127) if chr(c) not in WORDS)))
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.add_special_tokens([AddedToken(name, special=True) for name in names])
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    end = words.token_to_id("<|endoftext|>")
    if not causal_head:
        words.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    _settings(
        folder,
        {
            "unk_token": "[UNK]",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 256,
            "padding_side": "left",
        },
    )
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=words.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=words.token_to_id("<|im_end|>"),
        pad_token_id=end,
    )
    (Qwen3ForCausalLM(config) if causal_head else Qwen3Model(config)).save_pretrained(folder)
    return folder


def _settings(folder: Path, values: dict[str, Any]) -> None:
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **values}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def write_steps(folder: Path, *, pooling: str = "mean", normalize: bool = True, **prompts: str) -> Path:
    """modules.json and what belongs to it, as sentence-transformers of old wrote them."""
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    steps = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *([("2_Normalize", "Normalize")] if normalize else []),
    ]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    keys = {
        "mean": "mean_tokens",
        "cls": "cls_token",
        "max": "max_tokens",
        "lasttoken": "lasttoken",
        "weightedmean": "weightedmean_tokens",
    }
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": hidden, f"pooling_mode_{keys[pooling]}": True})
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 24, "do_lower_case": False})
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": prompts, "default_prompt_name": None})
    )
    return folder


def rows_of(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

"""Further rows of the grid, added before anything was measured: purposes, images, rows of several lengths,
131,072 tokens, and two GPUs.

The rule that keeps some blind is that of ``grid_rows.py``, word for word: its model, its method, and every
third row by the digest of its settings. The shapes here stand beside its own, so that neither choice changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from grid_rows import CONFIGS, METHODS, SMALL_QWEN, Row, config
from grid_rows import rows as first_rows

from luthier.schema.estimate import TrainingShape
from luthier.sizing.flops import training_flops
from luthier.sizing.model_config import architecture_from_config

BERT = {"vocab_size": 30522, "type_vocab_size": 2, "max_position_embeddings": 512, "model_type": "bert"}
ROBERTA = {"vocab_size": 250002, "type_vocab_size": 1, "max_position_embeddings": 514,
           "model_type": "xlm-roberta"}  # fmt: skip
QWEN3 = {"model_type": "qwen3", "vocab_size": 151669, "max_position_embeddings": 32768,
         "tie_word_embeddings": True}  # fmt: skip


def _encoder(base: dict[str, Any], layers: int, width: int, inner: int, heads: int) -> dict[str, Any]:
    shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    return base | shape | {"num_attention_heads": heads}


READING: dict[str, dict[str, Any]] = {
    "MiniLM-L6": _encoder(BERT, 6, 384, 1536, 12),
    "BERT-base": _encoder(BERT, 12, 768, 3072, 12),
    "XLM-R-base": _encoder(ROBERTA, 12, 768, 3072, 12),
    "XLM-R-large": _encoder(ROBERTA, 24, 1024, 4096, 16),
    "ModernBERT-base": _encoder(
        {"model_type": "modernbert", "vocab_size": 50368, "max_position_embeddings": 8192,
         "global_attn_every_n_layers": 3, "local_attention": 128, "tie_word_embeddings": True},
        22, 768, 1152, 12,
    ),
    "Qwen3-0.6B": config(QWEN3, 28, 1024, 3072, 16, 8, head_dim=128),
}  # fmt: skip
"""Shapes of sentence-transformers' MiniLM, BERT, XLM-RoBERTa (bge-m3's), ModernBERT and Qwen3-Embedding."""

_MROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
SEEING: dict[str, dict[str, Any]] = {
    "Qwen2.5-VL-3B": {
        "model_type": "qwen2_5_vl", "tie_word_embeddings": True,
        "image_token_id": 151655, "video_token_id": 151656,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "text_config": config(SMALL_QWEN | {"model_type": "qwen2_5_vl_text"}, 36, 2048, 11008, 16, 2,
                              rope_parameters=_MROPE, rope_scaling=_MROPE),
        "vision_config": {
            "model_type": "qwen2_5_vl", "depth": 32, "hidden_size": 1280, "intermediate_size": 3420,
            "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "Gemma-3-4B": {
        "model_type": "gemma3", "mm_tokens_per_image": 256, "boi_token_index": 255999,
        "eoi_token_index": 256000, "image_token_index": 262144, "tie_word_embeddings": True,
        "text_config": {
            "model_type": "gemma3_text", "num_hidden_layers": 34, "hidden_size": 2560,
            "intermediate_size": 10240, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "vocab_size": 262208, "sliding_window": 1024, "max_position_embeddings": 131072,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
            "vision_use_head": False,
        },
    },
    "SmolVLM-2.2B": {
        "model_type": "smolvlm", "scale_factor": 3, "image_token_id": 49190, "pad_token_id": 2,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama", "num_hidden_layers": 24, "hidden_size": 2048, "intermediate_size": 8192,
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64, "vocab_size": 49280,
            "max_position_embeddings": 16384, "tie_word_embeddings": False, "pad_token_id": 2,
        },
        "vision_config": {
            "model_type": "smolvlm_vision", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
        },
    },
}  # fmt: skip
"""Shapes as the models' own config.json give them."""

TINY: dict[str, dict[str, Any]] = {
    "tiny": CONFIGS["tiny"],
    "tiny-bert": _encoder(BERT | {"vocab_size": 512}, 2, 64, 128, 4),
    "tiny-roberta": _encoder(ROBERTA | {"vocab_size": 512}, 2, 64, 128, 4),
    "tiny-modernbert": _encoder(READING["ModernBERT-base"] | {"vocab_size": 512, "local_attention": 32},
                                3, 64, 128, 4)
    | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    "tiny-qwen3": config(QWEN3 | {"vocab_size": 512}, 2, 64, 128, 4, 2, head_dim=16),
    "tiny-qwen-vl": SEEING["Qwen2.5-VL-3B"] | {
        "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4,
        "text_config": SEEING["Qwen2.5-VL-3B"]["text_config"] | {
            "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
            "vocab_size": 512, "rope_parameters": _MROPE | {"mrope_section": [2, 3, 3]},
            "rope_scaling": _MROPE | {"mrope_section": [2, 3, 3]},
        },
        "vision_config": SEEING["Qwen2.5-VL-3B"]["vision_config"] | {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
    },
    "tiny-gemma": SEEING["Gemma-3-4B"] | {
        "image_token_index": 6, "boi_token_index": 4, "eoi_token_index": 5, "mm_tokens_per_image": 4,
        "text_config": SEEING["Gemma-3-4B"]["text_config"] | {
            "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "sliding_window": 32,
        },
        "vision_config": SEEING["Gemma-3-4B"]["vision_config"] | {
            "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
            "image_size": 56,
        },
    },
    "tiny-smolvlm": SEEING["SmolVLM-2.2B"] | {
        "image_token_id": 4, "pad_token_id": 0,
        "text_config": SEEING["SmolVLM-2.2B"]["text_config"] | {
            "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 512, "pad_token_id": 0,
        },
        "vision_config": SEEING["SmolVLM-2.2B"]["vision_config"] | {
            "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
            "image_size": 84,
        },
    },
}  # fmt: skip
"""Small likenesses of each kind, to see that a row runs; none is a row of the grid."""

ALL = CONFIGS | READING | SEEING | TINY

Purpose = Literal["chat", "classification", "multi-label", "similarity", "reranking", "yes-no", "vision"]


def uneven(longest: int, count: int, *, spread: int) -> list[int]:
    """Tokens of each text: the first as long as the longest, the others up to ``spread`` tokens shorter."""
    return [longest - (index * 4) % spread for index in range(count)]


@dataclass(frozen=True)
class Further(Row):
    """A row that says more than the first ones could.

    micro: rows at once on one device, of ``texts`` texts each; length: tokens of the longest text.
    """

    purpose: Purpose = "chat"
    texts: int = 1
    """Texts of a row: query, document and negatives, or the candidates of a query."""
    image: int = 0
    """Side of each row's one image in pixels."""
    tower: Literal["frozen", "adapters"] = "frozen"
    ragged: bool = False
    """Whether rows end at different places, some tokens before the longest one."""
    devices: int = 1
    shard: int = 1

    @property
    def reads(self) -> bool:
        """Whether texts are read as a whole, side by side under a mask."""
        return self.purpose not in ("chat", "vision")

    @property
    def patches(self) -> int:
        """Patches that the vision tower reads for a row."""
        if not self.image:
            return 0
        vision = ALL[self.model]["vision_config"]
        return int((self.image // vision["patch_size"]) ** 2)

    @property
    def image_tokens(self) -> int:
        """Places of a row that hold its image."""
        given = ALL[self.model]
        if not self.image:
            return 0
        if (tokens := given.get("mm_tokens_per_image")) is not None:
            return int(tokens)
        merge = given.get("scale_factor") or given["vision_config"]["spatial_merge_size"]
        return int(self.patches // merge**2)

    def lengths(self, texts: int) -> tuple[int, ...]:
        """Tokens of texts that are read as a whole, longest first: up to half as long as the longest."""
        return tuple(sorted(uneven(self.length, texts, spread=self.length // 2), reverse=True))

    @property
    def shape(self) -> TrainingShape:
        batch = self.micro * self.accumulation
        changed: dict[str, Any] = {"shard": self.shard, "patches": self.patches}
        changed["patches_per_token"] = self.patches / self.length
        changed["added_up"] = self.devices > 1
        if self.reads:
            # As a plan counts them: the texts of a row together, and every query against every document.
            compared = batch * batch * max(1, self.texts - 1) if self.purpose == "similarity" else 0
            changed |= {
                "padded": True, "documents": self.texts, "sequence_length": self.length * self.texts,
                "compared": compared, "trained_share": 1.0,
            }  # fmt: skip
        if self.purpose == "similarity":
            changed["text_lengths"] = self.lengths(batch * self.texts)
        return super().shape.model_copy(update=changed)


@dataclass(frozen=True)
class Gathered(Further):
    """A row whose divided weights stay gathered (``training.parallel.reshard``)."""

    reshard: Literal["layer", "backward", "step"] = "layer"

    @property
    def shape(self) -> TrainingShape:
        return super().shape.model_copy(update={"reshard": self.reshard})


def kind_of(row: Row) -> str:
    """The row's kind, for ``--kind``: chat, long, reading, vision, ragged or sharded."""
    if not isinstance(row, Further):
        return "chat"
    if row.devices > 1:
        return "sharded"
    if row.length > 100_000:
        return "long"
    if row.reads:
        return "reading"
    return "vision" if row.image else "ragged"


def further_rows() -> Iterator[Further]:
    """Rows of other purposes, and of rows of several lengths, for one card."""
    labels, many, pairs, ranks = "classification", "multi-label", "similarity", "reranking"
    yield Further("MiniLM-L6", "full", 64, 128, purpose=labels, steps=13)
    yield Further("MiniLM-L6", "full", 64, 128, purpose=pairs, texts=2)
    yield Further("MiniLM-L6", "lora", 32, 256, compiled=False, purpose=pairs, texts=2, accumulation=8)
    yield Further("MiniLM-L6", "full", 16, 128, compiled=False, purpose=ranks, texts=5)
    yield Further("BERT-base", "full", 32, 256, purpose=labels, steps=13)
    yield Further("BERT-base", "lora", 32, 512, compiled=False, purpose=labels)
    yield Further("BERT-base", "full", 16, 512, "full", purpose=many)
    yield Further("BERT-base", "full", 16, 128, purpose=pairs, texts=2, accumulation=4, steps=13)
    yield Further("XLM-R-base", "lora", 8, 256, purpose=ranks, texts=5)
    yield Further("XLM-R-large", "full", 32, 128, purpose=pairs, texts=2)
    yield Further("ModernBERT-base", "full", 16, 1024, compiled=False, purpose=labels)
    yield Further("ModernBERT-base", "lora", 32, 512, purpose=many)
    yield Further("ModernBERT-base", "full", 4, 512, "full", compiled=False, purpose=ranks, texts=5)
    yield Further("Qwen3-0.6B", "lora", 16, 512, purpose=pairs, texts=2, steps=13)
    yield Further("Qwen3-0.6B", "lora", 16, 256, purpose=pairs, texts=3, accumulation=8)
    yield Further("Qwen3-0.6B", "qlora", 8, 1024, "full", purpose=pairs, texts=2)
    yield Further("Qwen3-0.6B", "full", 8, 512, compiled=False, purpose=labels)
    yield Further("Qwen3-0.6B", "lora", 4, 512, purpose="yes-no", texts=5)
    for model, image, more in (
        ("Qwen2.5-VL-3B", 448, 1008), ("Gemma-3-4B", 896, 896), ("SmolVLM-2.2B", 378, 378),
    ):  # fmt: skip
        yield Further(model, "lora", 2, 1024, compiled=False, purpose="vision", image=image)
        yield Further(model, "lora", 2, 2048, "full", compiled=False, purpose="vision", image=more)
        yield Further(model, "lora", 1, 1024, compiled=False, purpose="vision", image=image, tower="adapters")
    yield Further("Qwen2.5-VL-3B", "lora", 4, 1024, "full", compiled=False, purpose="vision", image=448)
    yield Further("Qwen2.5-0.5B", "lora", 8, 1024, ragged=True)
    yield Further("Qwen2.5-3B", "full", 4, 1024, compiled=False, ragged=True)
    yield Further("Qwen3-8B", "lora", 4, 2048, "selective", ragged=True, steps=13)
    yield Further("Llama-3.1-8B", "qlora", 4, 1024, ragged=True)
    yield Further("Llama-3.1-8B", "qlora", 1, 131072, "offload", steps=1)


def sharded_rows() -> Iterator[Further]:
    """Rows for two GPUs: weights divided over both (FSDP2), or whole on each."""
    yield Further("Llama-3.1-8B", "lora", 4, 2048, devices=2, shard=2, steps=13)
    yield Further("Qwen2.5-3B", "full", 4, 2048, devices=2, shard=2)
    yield Further("Qwen3-8B", "lora", 2, 2048, accumulation=4, devices=2, shard=2)
    yield Further("Qwen2.5-3B", "full", 2, 2048, "full", accumulation=4, devices=2, shard=2, steps=13)
    yield Further("Qwen3-8B", "full", 1, 2048, "full", devices=2, shard=2)
    yield Further("Qwen2.5-14B", "lora", 2, 2048, "full", devices=2, shard=2)
    yield Further("Qwen2.5-1.5B", "full", 4, 1024, devices=2)
    yield Further("Qwen3-8B", "qlora", 2, 2048, "full", compiled=False, devices=2, shard=2)
    yield Gathered("Qwen3-8B", "lora", 2, 2048, accumulation=4, devices=2, shard=2, reshard="step", steps=13)
    yield Gathered("Qwen2.5-3B", "full", 2, 2048, accumulation=2, devices=2, shard=2, reshard="backward")


def tiny_rows() -> Iterator[Row]:
    """One small row of each kind."""
    for method in METHODS:
        for compiled in (False, True):
            yield Row("tiny", method, 2, 128, compiled=compiled)
    yield Row("tiny", "lora", 2, 128, "full", compiled=False, documents=2, accumulation=2)
    yield Further("tiny", "lora", 4, 128, compiled=False, ragged=True)
    for model in ("tiny-bert", "tiny-roberta", "tiny-modernbert", "tiny-qwen3"):
        yield Further(model, "full", 4, 64, compiled=False, purpose="classification")
        yield Further(model, "lora", 4, 64, compiled=False, purpose="similarity", texts=2, accumulation=2)
    yield Further("tiny-bert", "lora", 4, 64, purpose="multi-label")
    yield Further("tiny-bert", "full", 2, 64, compiled=False, purpose="reranking", texts=3)
    yield Further("tiny-qwen3", "lora", 2, 64, compiled=False, purpose="yes-no", texts=3)
    yield Further("tiny-qwen3", "qlora", 2, 64, "full", compiled=False, purpose="similarity", texts=3)
    for model, image in (("tiny-qwen-vl", 56), ("tiny-gemma", 56), ("tiny-smolvlm", 84)):
        yield Further(model, "lora", 2, 128, compiled=False, purpose="vision", image=image)
        yield Further(model, "lora", 1, 128, compiled=False, purpose="vision", image=image, tower="adapters")
    yield Further("tiny", "lora", 2, 128, compiled=False, devices=2, shard=2)
    yield Further("tiny", "full", 2, 128, compiled=False, accumulation=2, devices=2, shard=2)
    yield Further("tiny", "full", 2, 128, compiled=False, devices=2)
    yield Gathered("tiny", "lora", 2, 128, compiled=False, accumulation=2, devices=2, shard=2, reshard="step")


def every_row() -> list[Row]:
    """All rows of the grid."""
    return [*first_rows(), *further_rows(), *sharded_rows()]


def cost(row: Row) -> float:
    """Seconds of a row's steps on a Hopper card, coarsely: to put dear ones last and share the rest out."""
    given = ALL[row.model]
    text = given.get("text_config") or given
    kind = {"qwen2_5_vl_text": "qwen2"}.get(text["model_type"], text["model_type"])
    arch = architecture_from_config(text | {"model_type": kind})
    again = row.shape.activation_checkpointing in ("full", "offload")
    each = training_flops(arch, METHODS[row.method], length=row.length, checkpointing=again).total
    slow = 0.35 if row.compiled else 0.22
    return row.steps * row.accumulation * row.shape.tokens * each / (slow * 989e12)

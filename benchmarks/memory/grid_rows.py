"""The rows of the grid, and which of them are blind: chosen by a rule before anything was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Lora, Method, QLora

LLAMA = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072}
QWEN = {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 32768}
SMALL_QWEN = QWEN | {"vocab_size": 151936, "tie_word_embeddings": True}


def config(  # noqa: PLR0917 (a table)
    base: dict[str, Any], layers: int, width: int, inner: int, heads: int, kv: int, **more: Any
) -> dict[str, Any]:
    """A config.json of that shape."""
    return base | {
        "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": False,
    } | {key: base[key] for key in ("tie_word_embeddings",) if key in base} | more  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": config(SMALL_QWEN, 24, 896, 4864, 14, 2),
    "Qwen2.5-1.5B": config(SMALL_QWEN, 28, 1536, 8960, 12, 2),
    "Qwen2.5-3B": config(SMALL_QWEN, 36, 2048, 11008, 16, 2),
    "Llama-3.1-8B": config(LLAMA, 32, 4096, 14336, 32, 8, head_dim=128),
    "Qwen3-8B": config(
        {"model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960},
        36, 4096, 12288, 32, 8, head_dim=128,
    ),
    "Qwen2.5-14B": config(QWEN, 48, 5120, 13824, 40, 8),
    "Qwen2.5-32B": config(QWEN, 64, 5120, 27648, 40, 8),
    "Llama-3.1-70B": config(LLAMA, 80, 8192, 28672, 64, 8, head_dim=128),
    "tiny": config(LLAMA | {"vocab_size": 512}, 2, 64, 128, 4, 2),
}  # fmt: skip
METHODS: dict[str, Method] = {
    "full": Full(),
    "lora": Lora(rank=16),
    "lora-attention": Lora(rank=64, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
    "qlora": QLora(rank=16),
    "float8": Lora(rank=16, base="float8"),
}


@dataclass(frozen=True)
class Row:
    """One training step to measure. tokens/s is asserted where steps is 13."""

    model: str
    method: str
    micro: int
    length: int
    keep: str = "none"
    compiled: bool = True
    documents: int = 1
    accumulation: int = 1
    optimizer: str = "adamw"
    recomputed: int | None = None
    steps: int = 3

    @property
    def shape(self) -> TrainingShape:
        return TrainingShape.model_validate(
            {
                "micro_batch_size": self.micro, "sequence_length": self.length, "documents": self.documents,
                "batch_size": self.micro * self.accumulation, "activation_checkpointing": self.keep,
                "recomputed_layers": self.recomputed, "compiled": self.compiled,
                "optimizer": self.optimizer, "trained_share": 0.5,
            }
        )  # fmt: skip

    @property
    def key(self) -> str:
        """What tells the row from all others, in words that do not change with the code."""
        return json.dumps(vars(self), sort_keys=True)

    @property
    def blind(self) -> bool:
        """Whether nothing may be fitted or mended on this row: a third of all, one model, one method."""
        return self.model == BLIND_MODEL or self.method == BLIND_METHOD or _digest(self.key) % 3 == 0


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


BLIND_MODEL = min((name for name in CONFIGS if name != "tiny"), key=_digest)
BLIND_METHOD = min(METHODS, key=_digest)


def rows() -> Iterator[Row]:
    """All rows for one card of 80 GB, the small ones of each model first."""
    for model in ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-3B"):
        timed = 13 if model != "Qwen2.5-1.5B" else 3
        yield Row(model, "lora", 4, 2048, steps=timed)
        yield Row(model, "lora", 16, 512, compiled=False)
        yield Row(model, "lora", 1, 8192, "full", accumulation=2)
        yield Row(model, "lora", 8, 1024, "selective", documents=4, accumulation=2)
        yield Row(model, "lora-attention", 2, 4096, "none")
        yield Row(model, "qlora", 4, 2048, "none", steps=timed)
        yield Row(model, "qlora", 2, 4096, "full", compiled=False)
        yield Row(model, "float8", 4, 2048, "none")
        yield Row(model, "full", 4, 1024, "none", compiled=False)
        yield Row(model, "full", 4, 2048, "full", accumulation=2, steps=timed)
        yield Row(model, "full", 2, 2048, "none", optimizer="adamw-bf16", steps=timed)
        yield Row(model, "full", 1, 16384, "full", optimizer="adamw-bf16")
        yield Row(model, "full", 8, 512, "selective", documents=2)
    for model in ("Llama-3.1-8B", "Qwen3-8B"):
        timed = 13 if model == "Llama-3.1-8B" else 3
        yield Row(model, "lora", 1, 512, "none", compiled=False)
        yield Row(model, "lora", 4, 2048, "none", steps=timed)
        yield Row(model, "lora", 2, 2048, "none", compiled=False)
        yield Row(model, "lora", 1, 2048, "selective", accumulation=4, steps=timed)
        yield Row(model, "lora", 2, 4096, "full", recomputed=22, steps=timed)
        yield Row(model, "lora", 1, 16384, "full")
        yield Row(model, "lora", 16, 512, "offload", compiled=False)
        yield Row(model, "lora-attention", 4, 2048, "full")
        yield Row(model, "qlora", 3, 2048, "full", steps=timed)
        yield Row(model, "qlora", 4, 2048, "none", documents=4, steps=timed)
        yield Row(model, "qlora", 1, 8192, "full", compiled=False)
        yield Row(model, "float8", 4, 2048, "none", steps=timed)
        yield Row(model, "float8", 4, 2048, "full")
        yield Row(model, "full", 1, 1024, "full", optimizer="adamw-bf16")
    yield Row("Qwen2.5-14B", "lora", 1, 2048, "none", steps=13)
    yield Row("Qwen2.5-14B", "lora", 4, 2048, "full", steps=13)
    yield Row("Qwen2.5-14B", "lora", 1, 8192, "selective")
    yield Row("Qwen2.5-14B", "qlora", 2, 2048, "none", steps=13)
    yield Row("Qwen2.5-14B", "qlora", 4, 2048, "full", compiled=False)
    yield Row("Qwen2.5-14B", "float8", 1, 2048, "full")
    yield Row("Qwen2.5-32B", "qlora", 1, 2048, "none", steps=13)
    yield Row("Qwen2.5-32B", "qlora", 4, 2048, "full", steps=13)
    yield Row("Qwen2.5-32B", "qlora", 1, 16384, "full")
    yield Row("Llama-3.1-70B", "qlora", 1, 2048, "full", steps=13)
    yield Row("Llama-3.1-70B", "qlora", 4, 1024, "full", compiled=False)
    yield Row("Llama-3.1-70B", "qlora", 1, 8192, "full")

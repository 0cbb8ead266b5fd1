"""Which storage type each tensor of a quantised GGUF file gets.

The rules are llama.cpp's (MIT), of ``llama_tensor_get_type`` in src/llama-quant.cpp at build b10605, for a
quantisation without an importance matrix. What writes files and what foretells their size both go by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Category = Literal["token-embedding", "output", "value", "key", "attention-output", "ffn-down", "other"]

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""ggml's type number -> name, values in a block, bytes of a block."""
"""llama.cpp's number of a type -> (name, numbers in a block, bytes of a block)."""
TYPE_IDS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
BLOCK_OF = {name: numbers for name, numbers, _ in TENSOR_TYPES.values()}
BYTES_OF = {name: size for name, _, size in TENSOR_TYPES.values()}


@dataclass(frozen=True, slots=True)
class FileType:
    """One quantised file type."""

    name: str
    number: int
    """llama.cpp's ``llama_ftype``."""
    base: str
    """Type of the tensors that no rule names."""


FILE_TYPES = {
    kind.name: kind
    for kind in (
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q6_K", 18, "Q6_K"),
        FileType("Q8_0", 7, "Q8_0"),
    )
}
"""What can be written by quantising an F16, BF16 or F32 file."""

FALLBACK = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""For rows that do not divide into blocks of 256."""

SEVENTY_B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
"""Architecture -> layers at which llama.cpp speaks of the 70B model."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What the rules ask of the model whose tensors are quantised."""

    architecture: str
    layers: int
    experts: int
    seventy_b: bool
    tied: bool
    value_tensors: int


def category_of(name: str) -> Category:
    """What the rules call a tensor, by its name in the file."""
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token-embedding"
    if any(part in name for part in ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")):
        return "value"
    if "attn_k.weight" in name:
        return "key"
    if "attn_output.weight" in name:
        return "attention-output"
    if "ffn_up" not in name and "ffn_gate" not in name and "ffn_down" in name:
        return "ffn-down"
    return "other"


def stored_type(
    kind: FileType, category: Category, row: int, model: Quantised, *, values: int, downs: int
) -> str:
    """The type of one tensor.

    row: its numbers in a row. values, downs: how many value and MLP-down tensors were met before it.
    """
    chosen = _chosen(kind, category, row, model, values=values, downs=downs)
    if row % BLOCK_OF[chosen] == 0:
        return chosen
    smaller = FALLBACK.get(chosen, "F16")
    return smaller if row % BLOCK_OF[smaller] == 0 else "F16"


def is_seventy_b(architecture: str, *, layers: int, heads: int, kv_heads: int) -> bool:
    """Whether llama.cpp takes the model for one that shares each value head among eight query heads."""
    return SEVENTY_B.get(architecture) == layers and (architecture != "llama" or heads != kv_heads)


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth, and every third between them."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _chosen(
    kind: FileType, category: Category, row: int, model: Quantised, *, values: int, downs: int
) -> str:
    """What the rules give, whether the row divides into its blocks or not."""
    if category == "output" or (category == "token-embedding" and model.tied):
        if model.architecture == "falcon" or row % BLOCK_OF[kind.base] or kind.base == "Q8_0":
            return "Q8_0"
        return "Q6_K"
    if category == "value":
        return _for_values(kind, model, values)
    if category == "key" and model.experts == 8:
        return "Q8_0"
    if category == "ffn-down":
        return _for_down(kind, model, downs)
    if category == "attention-output" and model.architecture != "falcon":
        if model.experts == 8:
            return "Q5_K" if kind.name in ("Q3_K_M", "Q4_K_S", "Q4_K_M") else kind.base
        if kind.name == "Q3_K_M":
            return "Q4_K"
    return kind.base


def _for_values(kind: FileType, model: Quantised, index: int) -> str:
    chosen = kind.base
    if kind.name == "Q3_K_M":
        chosen = "Q5_K" if index < 2 else "Q4_K"
    elif kind.name in ("Q4_K_M", "Q5_K_M") and _more_bits(index, model.value_tensors):
        chosen = "Q6_K"
    elif kind.name == "Q4_K_S" and index < 4:
        chosen = "Q5_K"
    if model.seventy_b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return "Q8_0" if model.experts == 8 else chosen


def _for_down(kind: FileType, model: Quantised, index: int) -> str:
    layers, falcon = model.layers, model.architecture == "falcon"
    if kind.name == "Q3_K_M":
        if index < layers // 16:
            return "Q5_K"
        return "Q4_K" if not falcon or _more_bits(index, layers) else "Q3_K"
    if kind.name == "Q4_K_M" and falcon:
        if index < layers // 16:
            return "Q6_K"
        return "Q5_K" if _more_bits(index, layers) else "Q4_K"
    if kind.name in ("Q4_K_M", "Q5_K_M") and _more_bits(index, layers):
        return "Q6_K"
    if kind.name == "Q4_K_S" and not falcon and index < layers // 8:
        return "Q5_K"
    return kind.base

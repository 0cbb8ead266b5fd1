"""Which storage type each tensor gets in a quantised file.

The rules are llama.cpp's (MIT), of ``llama_tensor_get_type`` in src/llama-quant.cpp at build b10605,
for a quantisation without an importance matrix, so that a file of ours equals one of ``llama-quantize``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.errors import Unsupported
from luthier.llamacpp.gguf_file import TENSOR_TYPES, TYPE_IDS, Header, Tensor

Category = Literal["token-embedding", "output", "value", "key", "attention-output", "ffn-down", "other"]


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

SKIPPED = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
"""Tensors that stay as they are: norms, routers, small mixers, vision and audio stems."""

WHOLE_NAMES_SKIPPED = frozenset({"position_embd.weight", "token_types.weight"})

SEVENTY_B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
"""Architecture -> layers at which llama.cpp speaks of the 70B model."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the rules ask of the model."""

    architecture: str
    layers: int
    experts: int
    seventy_b: bool
    tied: bool
    value_tensors: int


def tensor_order(tensor: Tensor) -> tuple[int, str]:
    """Sort key of llama.cpp's tensor table: what belongs to no block first, then block by block."""
    return _block(tensor.name), tensor.name


def plan_types(header: Header, file_type: str) -> dict[str, str]:
    """Tensor name -> storage type, in the order in which the quantised file holds them.

    Errors: Unsupported for a file type that is not known here.
    """
    kind = FILE_TYPES.get(file_type)
    if kind is None:
        raise Unsupported(
            f"{file_type} cannot be made by quantising",
            hint=f"choose from {', '.join(FILE_TYPES)}, F16, BF16",
        )
    tensors = sorted(header.tensors, key=tensor_order)
    shape = _shape_of(header, tensors)
    values = downs = 0
    types: dict[str, str] = {}
    for tensor in tensors:
        if not is_quantised(tensor):
            types[tensor.name] = tensor.type
            continue
        category = _category(tensor.name)
        chosen = _choose(kind, category, tensor, shape, values=values, downs=downs)
        # llama.cpp counts the tensors that it meets rather than reading their block's number
        values += category == "value"
        downs += category == "ffn-down"
        types[tensor.name] = _fitting(chosen, tensor.shape[0])
    return types


def is_quantised(tensor: Tensor) -> bool:
    """Whether the quantiser touches a tensor at all."""
    name = tensor.name
    return (
        sum(size > 1 for size in tensor.shape[1:]) > 0
        and name.endswith("weight")
        and name not in WHOLE_NAMES_SKIPPED
        and not any(part in name for part in SKIPPED)
    )


def _shape_of(header: Header, tensors: Iterable[Tensor]) -> _Shape:
    names = [tensor.name for tensor in tensors]
    architecture = header.architecture
    layers = int(header.of_architecture("block_count", 0))
    heads = _first(header.of_architecture("attention.head_count", 0))
    kv_heads = _first(header.of_architecture("attention.head_count_kv", heads))
    big = SEVENTY_B.get(architecture) == layers and (architecture != "llama" or heads != kv_heads)
    return _Shape(
        architecture=architecture,
        layers=layers,
        experts=int(header.of_architecture("expert_count", 0)),
        seventy_b=big,
        tied="output.weight" not in names,
        value_tensors=sum(_category(name) == "value" for name in names),
    )


def _first(value: Any) -> int:
    return int(value[0]) if isinstance(value, Sequence) else int(value)


def _block(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _category(name: str) -> Category:
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


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth, and every third between them."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _choose(
    kind: FileType, category: Category, tensor: Tensor, shape: _Shape, *, values: int, downs: int
) -> str:
    """The type that the file type's rules give to one tensor, its row length not yet considered."""
    if category == "output" or (category == "token-embedding" and shape.tied):
        block = TENSOR_TYPES[TYPE_IDS[kind.base]][1]
        if shape.architecture == "falcon" or tensor.shape[0] % block or kind.base == "Q8_0":
            return "Q8_0"
        return "Q6_K"
    if category == "value":
        return _for_values(kind, shape, values)
    if category == "key" and shape.experts == 8:
        return "Q8_0"
    if category == "ffn-down":
        index = _block(tensor.name) if shape.experts > 1 else downs
        return _for_down(kind, shape, index)
    if category == "attention-output" and shape.architecture != "falcon":
        if shape.experts == 8:
            return "Q5_K" if kind.name in ("Q3_K_M", "Q4_K_S", "Q4_K_M") else kind.base
        if kind.name == "Q3_K_M":
            return "Q4_K"
    return kind.base


def _for_values(kind: FileType, shape: _Shape, index: int) -> str:
    chosen = kind.base
    if kind.name == "Q3_K_M":
        chosen = "Q5_K" if index < 2 else "Q4_K"
    elif kind.name in ("Q4_K_M", "Q5_K_M") and _more_bits(index, shape.value_tensors):
        chosen = "Q6_K"
    elif kind.name == "Q4_K_S" and index < 4:
        chosen = "Q5_K"
    if shape.seventy_b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return "Q8_0" if shape.experts == 8 else chosen


def _for_down(kind: FileType, shape: _Shape, index: int) -> str:
    layers, falcon = shape.layers, shape.architecture == "falcon"
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


def _fitting(chosen: str, row: int) -> str:
    """The type itself, or the nearest whose blocks divide the row."""
    if row % TENSOR_TYPES[TYPE_IDS[chosen]][1] == 0:
        return chosen
    smaller = FALLBACK.get(chosen, "F16")
    return smaller if row % TENSOR_TYPES[TYPE_IDS[smaller]][1] == 0 else "F16"

"""Which storage type each tensor of a file gets when it is quantised, as `catalog.gguf_types` has it.

A file of ours equals one of ``llama-quantize``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.catalog.gguf_types import FILE_TYPES, Quantised, category_of, is_seventy_b, stored_type
from luthier.errors import Unsupported
from luthier.llamacpp.gguf_file import Header, Tensor

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
    model = _model_of(header, tensors)
    values = downs = 0
    types: dict[str, str] = {}
    for tensor in tensors:
        if not is_quantised(tensor):
            types[tensor.name] = tensor.type
            continue
        category = category_of(tensor.name)
        place = _block(tensor.name) if model.experts > 1 else downs
        types[tensor.name] = stored_type(kind, category, tensor.shape[0], model, values=values, downs=place)
        # llama.cpp counts the tensors that it meets rather than reading their block's number
        values += category == "value"
        downs += category == "ffn-down"
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


def _model_of(header: Header, tensors: Iterable[Tensor]) -> Quantised:
    names = [tensor.name for tensor in tensors]
    architecture = header.architecture
    layers = int(header.of_architecture("block_count", 0))
    heads = _first(header.of_architecture("attention.head_count", 0))
    kv_heads = _first(header.of_architecture("attention.head_count_kv", heads))
    return Quantised(
        architecture=architecture,
        layers=layers,
        experts=int(header.of_architecture("expert_count", 0)),
        seventy_b=is_seventy_b(architecture, layers=layers, heads=heads, kv_heads=kv_heads),
        tied="output.weight" not in names,
        value_tensors=sum(category_of(name) == "value" for name in names),
    )


def _first(value: Any) -> int:
    return int(value[0]) if isinstance(value, Sequence) else int(value)


def _block(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1

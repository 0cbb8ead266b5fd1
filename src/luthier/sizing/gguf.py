"""Size of a GGUF file from a shape, by llama.cpp's rules for each tensor (`catalog.gguf_types`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from luthier.catalog.gguf_types import (
    BLOCK_OF,
    BYTES_OF,
    Quantised,
    category_of,
    is_seventy_b,
    stored_type,
)
from luthier.catalog.gguf_types import FILE_TYPES as FILE_TYPES_WITH_RULES
from luthier.schema.model import Architecture
from luthier.sizing.layers import distinct_layers, layer_kinds, layer_matrices, small_mixer_parameters
from luthier.sizing.parameters import count_parameters

_PLAIN = ("F16", "BF16")
_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "gate_up_proj": "ffn_up",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "router": "ffn_gate_inp",
}
FILE_TYPES = (*_PLAIN, "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M")
"""File types whose size is known, from the largest to the smallest."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file: rows of ``columns`` numbers."""

    name: str
    columns: int
    rows: int
    type: str

    @property
    def bytes(self) -> int:
        return self.rows * self.columns // BLOCK_OF[self.type] * BYTES_OF[self.type]


def gguf_tensors(arch: Architecture, file_type: str) -> Iterator[GgufTensor]:
    """Yield the matrices of the file with the type that llama-quantize would give each."""
    chooser = _Chooser(arch, file_type)
    h = arch.hidden_size
    yield chooser.tensor("token_embd", h, arch.vocab_size, 0)
    if arch.head and not arch.tied_embeddings:
        yield chooser.tensor("output", h, arch.vocab_size, 0)
    for index in range(arch.layers):
        yield from _block(chooser, index)


def _block(chooser: _Chooser, index: int) -> Iterator[GgufTensor]:
    """The matrices of one layer."""
    for matrix in layer_matrices(chooser.arch, index):
        name, rows = f"blk.{index}.{_names(matrix.name)}", matrix.outputs * matrix.copies
        if matrix.group == "router":
            yield GgufTensor(name, matrix.inputs, rows, "F32")
        else:
            yield chooser.tensor(name, matrix.inputs, rows, index)


def gguf_bytes(arch: Architecture, file_type: str, *, metadata: int = 0) -> int:
    """Bytes of all tensors of a GGUF file, plus ``metadata`` (tokenizer and header: 2 to 16 MB).

    Errors: KeyError for a type that is not known.
    """
    chooser = _Chooser(arch, file_type)
    h = arch.hidden_size
    matrices = chooser.tensor("token_embd", h, arch.vocab_size, 0).bytes
    if arch.head and not arch.tied_embeddings:
        matrices += chooser.tensor("output", h, arch.vocab_size, 0).bytes
    # Where a tensor's type does not hang on its layer's place, alike layers are counted once.
    alike = file_type in ("F16", "BF16", "Q8_0", "Q6_K")
    layers = distinct_layers(arch) if alike else tuple((index, 1) for index in range(arch.layers))
    matrices += sum(times * sum(t.bytes for t in _block(chooser, index)) for index, times in layers)
    return matrices + 4 * _vectors(arch) + metadata


def _vectors(arch: Architecture) -> int:
    """Numbers that stay fp32: norms, biases and small tensors."""
    count = count_parameters(arch)
    biases = sum(
        times * m.biases for index, times in distinct_layers(arch) for m in layer_matrices(arch, index)
    )
    small = sum(small_mixer_parameters(arch, kind) for kind in layer_kinds(arch))
    return count.norms + biases + small + arch.other_parameters


@lru_cache(maxsize=1024)
def _value_tensors(arch: Architecture) -> tuple[int, ...]:
    """How many tensors of values the layers before each one have; the last entry is those of all."""
    found = [0]
    for index in range(arch.layers):
        names = (f"{_names(matrix.name)}.weight" for matrix in layer_matrices(arch, index))
        found.append(found[-1] + sum(category_of(name) == "value" for name in names))
    return tuple(found)


def _names(name: str) -> str:
    """llama.cpp's name of a matrix."""
    short = name.removeprefix("experts.").removeprefix("shared_expert.")
    return _NAMES.get(short, short)


@dataclass(frozen=True, slots=True)
class _Chooser:
    """llama.cpp's choice of a type for each tensor."""

    arch: Architecture
    file_type: str

    def tensor(self, name: str, columns: int, rows: int, index: int) -> GgufTensor:
        if self.file_type in _PLAIN:
            return GgufTensor(name, columns, rows, self.file_type)
        kind, category = FILE_TYPES_WITH_RULES[self.file_type], category_of(f"{name}.weight")
        before = _value_tensors(self.arch)[index]
        chosen = stored_type(kind, category, columns, self._model, values=before, downs=index)
        return GgufTensor(name, columns, rows, chosen)

    @property
    def _model(self) -> Quantised:
        arch = self.arch
        return Quantised(
            architecture=arch.model_type,
            layers=arch.layers,
            experts=arch.experts.total if arch.experts is not None else 0,
            seventy_b=is_seventy_b(
                arch.model_type, layers=arch.layers, heads=arch.attention_heads, kv_heads=arch.kv_heads
            ),
            tied=arch.tied_embeddings or not arch.head,
            value_tensors=_value_tensors(arch)[-1],
        )

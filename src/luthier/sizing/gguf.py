"""Size of a GGUF file from a shape, by llama.cpp's rules for the type of each tensor.

The rules are those of ``llama-quant.cpp`` (llama.cpp at 007dbbf3, 2026): which tensors get more bits,
and what is taken where a row does not divide into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.schema.model import Architecture
from luthier.sizing.layers import distinct_layers, layer_kinds, layer_matrices, small_mixer_parameters
from luthier.sizing.parameters import count_parameters

BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Type -> (numbers in a block, bytes of a block)."""
_FALLBACK = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_BASE = {
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q3_K_M": "Q3_K",
}
"""File type -> type of most tensors."""
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
FILE_TYPES = tuple(_BASE)
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
        numbers, size = BLOCKS[self.type]
        return self.rows * self.columns // numbers * size


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
        base = _BASE[self.file_type]
        if base in ("F16", "BF16"):
            return GgufTensor(name, columns, rows, base)
        wanted = self._wanted(name.rsplit(".", 1)[-1], columns, index)
        if columns % BLOCKS[wanted][0]:
            wanted = _FALLBACK.get(wanted, "F16")
        if columns % BLOCKS[wanted][0]:
            wanted = "F16"
        return GgufTensor(name, columns, rows, wanted)

    def _wanted(self, kind: str, columns: int, index: int) -> str:
        file_type, base = self.file_type, _BASE[self.file_type]
        tied = self.arch.tied_embeddings or not self.arch.head
        if kind == "output" or (kind == "token_embd" and tied):
            if columns % BLOCKS[base][0]:
                return "Q8_0"
            return base if base == "Q8_0" else "Q6_K"
        if kind == "attn_qkv":
            return {"Q3_K_M": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(file_type, base)
        if kind == "attn_v":
            return self._value(index)
        if kind == "attn_k" and self._eight_experts:
            return "Q8_0"
        if kind == "ffn_down":
            return self._down(index)
        if kind == "attn_output":
            if self._eight_experts and file_type in ("Q3_K_M", "Q4_K_S", "Q4_K_M"):
                return "Q5_K"
            if file_type == "Q3_K_M":
                return "Q4_K"
        return base

    @property
    def _eight_experts(self) -> bool:
        return self.arch.experts is not None and self.arch.experts.total == 8

    def _more_bits(self, index: int) -> bool:
        """The first and last eighth of the layers and every third between."""
        layers = self.arch.layers
        return index < layers // 8 or index >= 7 * layers // 8 or (index - layers // 8) % 3 == 2

    def _value(self, index: int) -> str:
        file_type, chosen = self.file_type, _BASE[self.file_type]
        if file_type in ("Q4_K_M", "Q5_K_M") and self._more_bits(index):
            chosen = "Q6_K"
        elif file_type == "Q4_K_S" and index < 4:
            chosen = "Q5_K"
        elif file_type == "Q3_K_M":
            chosen = "Q5_K" if index < 2 else "Q4_K"
        # Llama 70B shares each value head among eight query heads: more bits cost little there.
        if (
            self.arch.layers == 80
            and self.arch.kv_heads != self.arch.attention_heads
            and chosen
            in (
                "Q3_K",
                "Q4_K",
            )
        ):
            chosen = "Q5_K"
        return "Q8_0" if self._eight_experts else chosen

    def _down(self, index: int) -> str:
        file_type, layers = self.file_type, self.arch.layers
        if file_type in ("Q4_K_M", "Q5_K_M") and self._more_bits(index):
            return "Q6_K"
        if file_type == "Q4_K_S" and index < layers // 8:
            return "Q5_K"
        if file_type == "Q3_K_M":
            return "Q5_K" if index < layers // 16 else "Q4_K"
        return _BASE[file_type]

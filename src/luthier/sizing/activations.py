"""What one layer keeps for its backward pass, tensor by tensor. Sizes in bytes a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, Method
from luthier.sizing.layers import FUSED_QKV, Matrix, heads_of, layer_kinds, layer_matrices


@dataclass(frozen=True, slots=True)
class Kernels:
    """How a step runs, as far as memory goes. A plan pins them and the trainer uses them."""

    attention: Literal["flash", "efficient", "eager"] = "flash"
    """flash keeps queries, keys, values, output and one number a head; efficient the same with keys and
    values repeated for every query head; eager the matrix of scores."""
    loss: Literal["chunked", "logits", "fused", "tiles", "parts"] = "chunked"
    """chunked: our own, at trained places only; logits: all of them, as transformers does; fused: Liger's;
    tiles: TRL's, a tile of logits at a time and gradients gathered in fp32; parts: torchtune's, whose parts
    are all there at once."""
    fused_loss: bool = True
    """chunked, on CUDA in half precision: whether one kernel turns a chunk's logits into their gradient."""
    fused_update: bool = True
    """On CUDA: whether one kernel updates all weights, which makes nothing on its way and takes the gradients
    of a lone micro-batch as they are, and whether the head's gradient is added up within the product."""
    layers: Literal["plain", "fused", "compiled"] = "plain"
    """plain: transformers' own norms and MLP; fused: Liger's; compiled: a graph for each layer, whose
    norms keep their input as it is and whose kernels hold several results of the MLP at once."""
    runs_again_in_graph: bool = False
    """Whether a compiled layer that is computed again is so within the graph of its backward pass."""
    recomputes_product: bool = False
    """Whether the MLP's product is computed again rather than kept, as fused LoRA MLPs do."""
    adapters: Literal["own", "bare", "peft"] = "own"
    """own: one operation with the frozen layer; bare: two products and a scaling beside it; both keep one
    input a layer. peft casts a 16-bit input to the adapter's type for each module."""
    autocast: bool = False
    """Whether products are narrowed to 16 bits, with a copy of each module's input and of each trained
    weight; fp32 weights then have an fp32 stream between the layers."""
    adapter_bytes: int = 4
    masters: bool = True
    """Whether 16-bit trained weights have fp32 masters, and gradients beside those."""
    wide_residual: bool = False
    """Whether norms and the stream between layers are fp32, as after prepare_model_for_kbit_training."""
    masked: bool = False
    """Whether attention is given a mask of its own, which each layer keeps."""
    joins_documents: bool = False
    """Whether documents are attended to one at a time and joined again (CPU, and fp32 on a GPU)."""
    fused_dropout: bool = True
    """Whether dropout keeps a byte for each number, as on a GPU, and not one of the number's own size."""
    foreach: bool = False
    """Whether the optimiser allocates one temporary the size of the trained weights."""
    updates_in_backward: bool = False
    """Whether each weight is updated, and its gradient dropped, as soon as the gradient is there."""
    keeps_logits: bool = False
    """Whether the caller holds the logits through the backward pass."""


NORMS_OF_ONE_KERNEL = frozenset({"modernbert"})
"""Model types whose norms have a scale alone and are torch's LayerNorm all the same."""

OURS = Kernels()
"""Luthier's trainer on CUDA in half precision."""
OURS_ONE_BY_ONE = Kernels(joins_documents=True)
"""Luthier's trainer where torch has no variable-length kernel: on a CPU, and in fp32."""
PADDED = Kernels(attention="efficient", masked=True)
"""Luthier's trainer where rows lie side by side, on CUDA."""
PADDED_ON_HOST = Kernels(masked=True, fused_dropout=False)
TRANSFORMERS = Kernels(loss="logits", adapters="peft", masters=False, keeps_logits=True)
"""A plain transformers and PEFT loop."""


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """Bytes of one layer, one token."""

    kept: float
    """Held until its backward pass."""
    transient: float
    """At the height of its backward pass, beside that."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a model in training.

    element: bytes of an activation. span: tokens that one token can attend to, for the scores of
    eager attention. documents: documents in a micro-batch.
    """

    arch: Architecture
    index: int
    method: Method
    kernels: Kernels
    element: int
    span: int = 1
    documents: int = 1

    @property
    def memory(self) -> LayerMemory:
        mixer, mixer_height = self._mixer()
        mlp, mlp_back = self._mlp()
        # The MLP runs last, so that its backward pass sees everything that the layer keeps.
        return LayerMemory(mixer + mlp, max(mlp_back, mixer_height - mixer - mlp))

    @property
    def selected(self) -> float:
        """Bytes of a token that stay where all but matrix products and attention is computed again."""
        matrices = layer_matrices(self.arch, self.index)
        # The last product is added to the stream, and nothing in the backward pass reads it.
        products = sum(matrix.outputs * matrix.active for matrix in matrices[:-1]) * self.element
        low = sum(map(self._adapter, matrices)) if self.kernels.adapters != "peft" else 0.0
        kind = layer_kinds(self.arch)[self.index]
        if kind not in ("full", "sliding"):
            return self.stream * self.arch.hidden_size + products + low
        heads, _, width = heads_of(self.arch, kind)
        attended = heads * (width * self.element + 4)
        return self.stream * self.arch.hidden_size + products + low + attended

    @property
    def again(self) -> float:
        """Bytes of a token beside the layer's own where the graph of its backward pass runs it again.

        Its products with the MLP's down matrix want the product itself, which is made from both factors
        while their gradients and its own are there; a layer that keeps the product frees it before.
        """
        if not self.kernels.runs_again_in_graph or not self.arch.gated_mlp:
            return 0.0
        down = [m for m in layer_matrices(self.arch, self.index) if m.name.endswith("down_proj")]
        return float(sum(self._input([m]) * m.active for m in down if m.copies == 1))

    @property
    def _dropped(self) -> float:
        """What BERT's dropout after each half of a layer keeps to scale its gradient by."""
        if self.arch.causal or not self.arch.layer_norm:
            return 0.0
        return float(self.arch.hidden_size * (1 if self.kernels.fused_dropout else self.element))

    @property
    def _residual(self) -> float:
        """Bytes of a gradient of the stream between layers."""
        return float(self.arch.hidden_size * self.stream)

    def _is_trained(self, matrix: Matrix) -> bool:
        """Whether its input must be kept, because it or an adapter beside it is trained."""
        if isinstance(self.method, Full):
            return True
        if matrix.group == "router":
            return self.method.router
        if matrix.copies > 1:
            return self.method.experts != "none"
        targets = self.method.targets
        return targets == "all-linear" or matrix.name.rsplit(".", 1)[-1] in targets

    @property
    def _shares_inputs(self) -> bool:
        """Whether layers that read one tensor keep it once."""
        if self.kernels.autocast:
            return False
        own = self.kernels.adapters != "peft" or self.kernels.adapter_bytes == self.element
        return own or isinstance(self.method, Full)

    @property
    def stream(self) -> int:
        """Bytes of a number between the layers."""
        return 4 if self.kernels.autocast and isinstance(self.method, Full) else self.element

    def _norm(self, width: int) -> float:
        """A norm keeps its input in fp32, and its output where its scale is trained."""
        if self.arch.layer_norm or self.arch.model_type in NORMS_OF_ONE_KERNEL:
            return width * self.element + 8
        if self.kernels.layers != "plain":
            return width * self.stream + 4
        if self.kernels.autocast and isinstance(self.method, Full):
            return width * 8 + 4
        return width * 4 + 4 + (width * self.element if isinstance(self.method, Full) else 0)

    def _adapter(self, matrix: Matrix) -> float:
        """What the adapter of one linear layer keeps beside the input that layers share."""
        method = self.method
        if self.kernels.autocast and isinstance(method, Full):
            # Each module narrows its input for itself, and keeps what is narrow already as it is; what
            # attention gives is counted there.
            counted = matrix.name.rsplit(".", 1)[-1] == "o_proj"
            return 0.0 if counted else float(matrix.inputs * self.element)
        if not isinstance(method, Lora) or not self._is_trained(matrix) or matrix.group == "router":
            return 0.0
        if matrix.copies > 1:
            # Gate and up are one tensor. Their inputs, sorted by expert, are counted with the layer.
            low = 0 if matrix.name.endswith("up_proj") else method.rank
            return float(low * matrix.active * self.element)
        if self.kernels.autocast:
            kept = float(self.element * (matrix.inputs + method.rank))
        elif self._shares_inputs:
            kept = float(method.rank * self.element)
        else:
            kept = 4.0 * matrix.inputs + self.kernels.adapter_bytes * method.rank
        if method.dropout:
            kept += matrix.inputs * (self.element + 1)  # the dropped input and its mask
        if method.dora:
            kept += 2 * matrix.outputs * self.element  # both outputs, for the magnitude's gradient
        return kept

    def _input(self, readers: list[Matrix]) -> float:
        """The one input that several linear layers read."""
        needed = self._shares_inputs and any(self._is_trained(matrix) for matrix in readers)
        return readers[0].inputs * self.element if needed else 0.0

    def _mixer(self) -> tuple[float, float]:
        """(kept, height of the backward pass) of attention or what stands in its place, with its norms."""
        arch, e, h = self.arch, self.element, self.arch.hidden_size
        kind = layer_kinds(arch)[self.index]
        matrices = [m for m in layer_matrices(arch, self.index) if m.group in ("attention", "mixer")]
        if not matrices:
            return 0.0, 0.0
        readers, output = matrices[:-1], matrices[-1]
        norms = arch.norms_per_layer - arch.norms_per_layer // 2
        kept = norms * self._norm(h) + sum(map(self._adapter, matrices)) + self._input(readers)
        kept += self._dropped
        if kind == "linear":
            wide = sum(m.outputs for m in readers)
            # Convolution in and out, normalised keys and queries, gate and chunk states: coarse.
            return kept + 4.0 * wide * e, kept + 7.0 * wide * e + self._residual
        heads, kv_heads, width = heads_of(arch, kind)
        q, kv = heads * width, kv_heads * width
        if arch.latent_attention is not None:
            kept += (arch.latent_attention.query_rank + arch.latent_attention.kv_rank) * (4 + e)
            kv = q
        if arch.qk_norm and self.kernels.layers != "plain":
            kept += (q + kv) * e + 4 * (heads + kv_heads)  # as they are, and one number a head
        elif arch.qk_norm:
            kept += (q + kv) * (4 + (e if isinstance(self.method, Full) else 0))
        if arch.gated_attention:
            kept += 2 * q * e
        if self.kernels.attention == "eager":
            scores = heads * self.span
            # At the softmax's gradient the values and the output are gone already.
            at_softmax = kept - self._adapter(output) + 2 * q * e + self._residual
            kept += 3 * q * e + scores * (4 if e == 4 else 6) + self._input([output])
            return kept, at_softmax + scores * (16 if e == 4 else 14)
        kept += (q + 2 * (kv if self.kernels.attention == "flash" else q)) * e
        if arch.model_type in FUSED_QKV:
            # Values are a part of the one product, which stays whole beside the queries and keys that turned.
            kept += (q + kv) * e
        joined = self.kernels.joins_documents and self.documents > 1
        kept += heads * 4 + q * e * (2 if joined else 1) + (self.span * e if self.kernels.masked else 0)
        return kept, kept + 2.0 * q * e + 4 * kv * e + 4 * q + self._residual

    def _mlp(self) -> tuple[float, float]:
        """(kept, beside it at the height of the backward pass) of the MLP or the experts with their norms."""
        arch, e, h = self.arch, self.element, self.arch.hidden_size
        matrices = [m for m in layer_matrices(arch, self.index) if m.group in ("mlp", "experts", "router")]
        if not matrices:
            return 0.0, 0.0
        down = [m for m in matrices if m.name.endswith("down_proj")]
        readers = [m for m in matrices if m not in down]
        product = sum(self._input([m]) * m.active for m in down)
        if self.kernels.recomputes_product:
            product = 0.0
        kept = arch.norms_per_layer // 2 * self._norm(h) + sum(map(self._adapter, matrices))
        kept += self._input(readers) + product + self._dropped
        wide = sum(m.inputs * m.active for m in down)
        # gate, its activation and up; without a gate the input of the activation. Fused kernels compute
        # the activation again.
        factors = 2 if self.kernels.layers != "plain" else 3
        kept += (factors if arch.gated_mlp else 1) * wide * e
        back = self._residual + self._mlp_height(wide * e, product, any(map(self._is_trained, down)), wide)
        if arch.experts is not None and self.index >= arch.experts.dense_layers:
            # Every token's copy for each of its experts, before and after them.
            kept += 2.0 * arch.experts.active * h * e
            back += 2.0 * arch.experts.active * h * e
        return kept, back

    def _mlp_height(self, size: float, product: float, adapted: bool, wide: float) -> float:
        """Beside what is kept at the height of the MLP's backward pass. size: bytes of one of its states."""
        gated = self.arch.gated_mlp
        peft = self.kernels.adapters == "peft" and isinstance(self.method, Lora) and adapted
        if self.kernels.layers == "compiled":
            # One kernel reads what the product's gradient comes from and writes those of its factors, in
            # place of one of them; bare adapters have parts of their own and scaled copies.
            apart = isinstance(self.method, Lora) and self.kernels.adapters != "own" and adapted
            results = (4 if gated else 2) if apart else (2 if gated else 1)
            return (results + (2 if apart else 1) - 1) * size - product
        copied = 0.0
        if peft and self.kernels.autocast:
            copied = size
        elif peft and not self._shares_inputs:
            copied = 4.0 * wide
        at_down = size + copied
        if self.kernels.layers == "fused":
            # The factors' gradients overwrite the factors.
            return at_down + (size if adapted and isinstance(self.method, Lora) else 0.0)
        # Then the product and PEFT's copy of it are gone, and its gradient becomes those of its factors.
        at_product = (3 if gated else 2) * size - product - copied
        return max(at_down, at_product)

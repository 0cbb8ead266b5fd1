"""The layers of a shape: which linear matrices each one has, under the names that most families use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from luthier.errors import RecipeError
from luthier.schema.model import Architecture, LayerKind, LinearMixer

Group = Literal["attention", "mlp", "experts", "router", "mixer"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer of one block: copies of [outputs, inputs], ``active`` of them for a token."""

    name: str
    inputs: int
    outputs: int
    group: Group
    bias: bool = False
    copies: int = 1
    active: int = 1

    @property
    def weights(self) -> int:
        """Entries of all copies, biases not counted."""
        return self.inputs * self.outputs * self.copies

    @property
    def biases(self) -> int:
        return self.outputs * self.copies if self.bias else 0


FUSED_QKV = frozenset({"phi3", "modernbert"})
"""Model types whose queries, keys and values come from one matrix."""
FUSED_GATE = frozenset({"phi3", "modernbert", "granitemoehybrid"})
"""Model types whose MLP has gate and up in one matrix."""

_FULL: tuple[LayerKind, ...] = ("full",)


def layer_kinds(arch: Architecture) -> tuple[LayerKind, ...]:
    """Kind of every layer, in order."""
    if not arch.layer_kinds:
        return _FULL * arch.layers
    if len(arch.layer_kinds) != arch.layers:
        raise RecipeError(
            f"{arch.model_type}: {len(arch.layer_kinds)} layer kinds for {arch.layers} layers",
            hint="correct the model's config.json or its catalogue entry",
        )
    return arch.layer_kinds


@lru_cache(maxsize=1024)
def distinct_layers(arch: Architecture) -> tuple[tuple[int, int], ...]:
    """(first index, how many) of the layers that are alike: of one kind, with experts or without."""
    dense = arch.experts.dense_layers if arch.experts is not None else 0
    found: dict[tuple[LayerKind, bool], list[int]] = {}
    for index, kind in enumerate(layer_kinds(arch)):
        found.setdefault((kind, index < dense), []).append(index)
    return tuple((alike[0], len(alike)) for alike in found.values())


def heads_of(arch: Architecture, kind: LayerKind) -> tuple[int, int, int]:
    """Query heads, key/value heads and head width of a layer with softmax attention."""
    if kind == "full":
        return (
            arch.attention_heads,
            arch.global_kv_heads or arch.kv_heads,
            arch.global_head_dim or arch.head_dim,
        )
    return arch.attention_heads, arch.kv_heads, arch.head_dim


def layer_matrices(arch: Architecture, index: int) -> tuple[Matrix, ...]:
    """Linear layers of one block under the names that most families use, in the order of the forward pass."""
    dense = arch.experts is None or index < arch.experts.dense_layers
    return _matrices_of(arch, layer_kinds(arch)[index], dense)


@lru_cache(maxsize=4096)
def _matrices_of(arch: Architecture, kind: LayerKind, dense: bool) -> tuple[Matrix, ...]:
    return (*_mixer_matrices(arch, kind), *_mlp_matrices(arch, kind, dense))


def _mixer_matrices(arch: Architecture, kind: LayerKind) -> tuple[Matrix, ...]:
    h = arch.hidden_size
    if kind == "mlp":
        return ()
    if kind == "linear":
        return _linear_mixer_matrices(arch)
    heads, kv_heads, width = heads_of(arch, kind)
    q, kv = heads * width, kv_heads * width
    if (latent := arch.latent_attention) is not None:
        plain = width - latent.rope_dim
        return (
            Matrix("q_a_proj", h, latent.query_rank, "attention"),
            Matrix("q_b_proj", latent.query_rank, q, "attention"),
            Matrix("kv_a_proj_with_mqa", h, latent.kv_rank + latent.rope_dim, "attention"),
            Matrix("kv_b_proj", latent.kv_rank, heads * (plain + latent.value_dim), "attention"),
            Matrix("o_proj", heads * latent.value_dim, h, "attention", arch.output_bias),
        )
    bias = arch.qkv_bias
    if arch.model_type in FUSED_QKV:
        return (
            Matrix("qkv_proj", h, q + 2 * kv, "attention", bias),
            Matrix("o_proj", q, h, "attention", arch.output_bias),
        )
    queries = Matrix("q_proj", h, 2 * q if arch.gated_attention else q, "attention", bias)
    keys = Matrix("k_proj", h, kv, "attention", bias)
    output = Matrix("o_proj", q, h, "attention", arch.output_bias)
    if arch.keys_are_values and kind == "full":
        return queries, keys, output
    return queries, keys, Matrix("v_proj", h, kv, "attention", bias), output


def _linear_mixer_matrices(arch: Architecture) -> tuple[Matrix, ...]:
    mixer = _mixer_of(arch)
    h = arch.hidden_size
    keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
    if mixer.kind == "gated-deltanet":
        return (
            Matrix("in_proj_qkv", h, 2 * keys + values, "mixer"),
            Matrix("in_proj_z", h, values, "mixer"),
            Matrix("in_proj_b", h, mixer.value_heads, "mixer"),
            Matrix("in_proj_a", h, mixer.value_heads, "mixer"),
            Matrix("out_proj", values, h, "mixer"),
        )
    return (
        Matrix("in_proj", h, 2 * values + 2 * keys + mixer.value_heads, "mixer"),
        Matrix("out_proj", values, h, "mixer"),
    )


def _mixer_of(arch: Architecture) -> LinearMixer:
    if arch.linear_mixer is None:
        raise RecipeError(
            f"{arch.model_type} has linear-attention layers whose shape is not known",
            hint="give linear_mixer in its catalogue entry, or trace it with `luthier plan --trace`",
        )
    return arch.linear_mixer


def _mlp_matrices(arch: Architecture, kind: LayerKind, dense: bool) -> tuple[Matrix, ...]:
    h = arch.hidden_size
    experts = arch.experts
    if "mlp" in arch.layer_kinds and kind != "mlp":
        return ()  # a family whose layers are either a mixer or an MLP
    names = ("gate_proj", "up_proj", "down_proj") if arch.gated_mlp else ("up_proj", "down_proj")
    fused = arch.gated_mlp and arch.model_type in FUSED_GATE
    if fused and dense and arch.intermediate_size:
        wide = arch.intermediate_size
        return (
            Matrix("gate_up_proj", h, 2 * wide, "mlp", arch.mlp_bias),
            Matrix("down_proj", wide, h, "mlp", arch.mlp_bias),
        )
    if experts is None or dense:
        wide = arch.intermediate_size
        if not wide:
            return ()
        return tuple(
            Matrix(name, wide, h, "mlp", arch.mlp_bias)
            if name == "down_proj"
            else Matrix(name, h, wide, "mlp", arch.mlp_bias)
            for name in names
        )
    wide, copies, active = experts.intermediate_size, experts.total, experts.active
    routed = tuple(
        Matrix(f"experts.{name}", wide, h, "experts", experts.bias, copies, active)
        if name == "down_proj"
        else Matrix(f"experts.{name}", h, wide, "experts", experts.bias, copies, active)
        for name in names
    )
    shared: tuple[Matrix, ...] = ()
    if experts.shared:
        broad = wide * experts.shared
        shared = tuple(
            Matrix(f"shared_expert.{name}", broad, h, "experts")
            if name == "down_proj"
            else Matrix(f"shared_expert.{name}", h, broad, "experts")
            for name in names
        )
    return (Matrix("router", h, copies, "router", experts.bias), *routed, *shared)


def small_mixer_parameters(arch: Architecture, kind: LayerKind) -> int:
    """Convolutions, decays and inner norms of one layer's mixer."""
    if kind == "mlp":
        return 0
    if kind == "linear":
        mixer = _mixer_of(arch)
        keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
        channels = 2 * keys + values
        if mixer.kind == "gated-deltanet":
            return channels * mixer.convolution + 2 * mixer.value_heads + mixer.value_dim
        return channels * (mixer.convolution + 1) + 3 * mixer.value_heads + values
    if arch.latent_attention is not None:
        return arch.latent_attention.query_rank + arch.latent_attention.kv_rank
    return 2 * heads_of(arch, kind)[2] if arch.qk_norm else 0

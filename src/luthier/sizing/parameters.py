"""How many parameters a shape has, and which matrices they stand in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from luthier.errors import RecipeError, did_you_mean
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


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters by place; tied matrices count once."""

    embedding: int
    """Input tables: tokens, positions, segments."""
    per_layer_embeddings: int
    """Per-layer lookup tables."""
    head: int
    """Output matrix over the vocabulary where it is its own; 0 where it is tied or absent."""
    attention: int
    """Projections of softmax and linear attention, with their biases and small tensors."""
    mlp: int
    """Dense MLPs."""
    experts: int
    """Routed and shared experts and their routers."""
    norms: int
    other: int
    """What the shape does not describe, and the pooler."""
    towers: int
    """Parameters outside the text backbone."""
    linear: int
    """Weights of all linear layers but the head: what LoRA wraps and a 4-bit base quantises."""
    active: int
    """Parameters that one token goes through, embeddings included."""
    active_linear: int
    """Weights of linear layers that one token goes through, the head not counted."""

    @property
    def total(self) -> int:
        return (
            self.embedding
            + self.per_layer_embeddings
            + self.head
            + self.attention
            + self.mlp
            + self.experts
            + self.norms
            + self.other
            + self.towers
        )

    @property
    def backbone(self) -> int:
        """All but the towers."""
        return self.total - self.towers


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
    kind = layer_kinds(arch)[index]
    return (*_mixer_matrices(arch, kind), *_mlp_matrices(arch, index))


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


def _mlp_matrices(arch: Architecture, index: int) -> tuple[Matrix, ...]:
    h = arch.hidden_size
    experts = arch.experts
    names = ("gate_proj", "up_proj", "down_proj") if arch.gated_mlp else ("up_proj", "down_proj")
    if experts is None or index < experts.dense_layers:
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


def _small_mixer_parameters(arch: Architecture, kind: LayerKind) -> int:
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


def count_parameters(arch: Architecture) -> ParameterCount:
    """Count the parameters of a shape exactly; tied weights once."""
    h = arch.hidden_size
    attention = mlp = routed = linear = active_linear = idle = 0
    for index, kind in enumerate(layer_kinds(arch)):
        attention += _small_mixer_parameters(arch, kind)
        for matrix in layer_matrices(arch, index):
            size = matrix.weights + matrix.biases
            linear += matrix.weights
            active_linear += matrix.weights // matrix.copies * matrix.active
            idle += size // matrix.copies * (matrix.copies - matrix.active)
            if matrix.group in ("attention", "mixer"):
                attention += size
            elif matrix.group == "mlp":
                mlp += size
            else:
                routed += size
    norm = 2 * h if arch.layer_norm else h
    embedding = (arch.vocab_size + arch.position_embeddings + arch.token_types) * h
    count = ParameterCount(
        embedding=embedding,
        per_layer_embeddings=arch.per_layer_embeddings,
        head=arch.vocab_size * h if arch.head and not arch.tied_embeddings else 0,
        attention=attention,
        mlp=mlp,
        experts=routed,
        # One norm stands outside the layers: after the last one, or over an encoder's embeddings.
        norms=(arch.layers * arch.norms_per_layer + 1) * norm,
        other=arch.other_parameters + (h * h + h if arch.pooler else 0),
        towers=arch.extra_parameters,
        linear=linear,
        active=0,
        active_linear=active_linear,
    )
    return replace(count, active=count.total - idle)


def target_matrices(
    arch: Architecture, targets: Literal["all-linear"] | Sequence[str] = "all-linear"
) -> Iterator[tuple[int, Matrix]]:
    """Yield (layer, matrix) for every linear layer that adapters go on.

    ``all-linear`` means every dense linear layer of the blocks; routers and routed experts are left
    out, since their weights are fused tensors, not linear modules. Errors: RecipeError for a name
    that no layer has.
    """
    seen: set[str] = set()
    for index in range(arch.layers):
        for matrix in layer_matrices(arch, index):
            if matrix.group == "router" or matrix.copies > 1:
                continue
            short = matrix.name.rsplit(".", 1)[-1]
            seen.update((matrix.name, short))
            if targets == "all-linear" or short in targets or matrix.name in targets:
                yield index, matrix
    if targets != "all-linear":
        for name in targets:
            if name.rsplit(".", 1)[-1] not in {s.rsplit(".", 1)[-1] for s in seen}:
                raise RecipeError(
                    f"method.targets: {arch.model_type} has no linear layer named {name}",
                    hint=did_you_mean(name, seen) or f"its linear layers are {', '.join(sorted(seen))}",
                )


def lora_parameters(
    arch: Architecture, rank: int, targets: Literal["all-linear"] | Sequence[str] = "all-linear"
) -> int:
    """Adapter parameters: rank x (inputs + outputs) over the targeted linear layers."""
    if rank < 1:
        raise RecipeError(f"method.rank: {rank} is not a rank", hint="use 8, 16, 32 or 64")
    return sum(rank * (m.inputs + m.outputs) for _, m in target_matrices(arch, targets))

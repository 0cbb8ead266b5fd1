"""How many parameters a shape has, by place, and which of them are trained or packed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from luthier.errors import RecipeError, Unsupported, did_you_mean
from luthier.schema.model import Architecture
from luthier.schema.recipe import Lora
from luthier.sizing.layers import Matrix, distinct_layers, layer_kinds, layer_matrices, small_mixer_parameters


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
    """Weights of all linear layers but the head, experts among them."""
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


@lru_cache(maxsize=1024)
def count_parameters(arch: Architecture) -> ParameterCount:
    """Count the parameters of a shape exactly; tied weights once."""
    h = arch.hidden_size
    attention = mlp = routed = linear = active_linear = idle = 0
    kinds = layer_kinds(arch)
    for index, times in distinct_layers(arch):
        attention += times * small_mixer_parameters(arch, kinds[index])
        for matrix in layer_matrices(arch, index):
            size = times * (matrix.weights + matrix.biases)
            linear += times * matrix.weights
            active_linear += times * matrix.weights // matrix.copies * matrix.active
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
    """Yield (how many layers have it, matrix) for the linear layers that adapters go on.

    ``all-linear`` means every dense linear layer of the blocks; routers and routed experts are left
    out, since their weights are fused tensors, not linear modules. Errors: RecipeError for a name
    that no layer has.
    """
    seen: set[str] = set()
    for index, times in distinct_layers(arch):
        for matrix in layer_matrices(arch, index):
            if matrix.group == "router" or matrix.copies > 1:
                continue
            short = matrix.name.rsplit(".", 1)[-1]
            seen.update((matrix.name, short))
            if targets == "all-linear" or short in targets or matrix.name in targets:
                yield times, matrix
    if targets != "all-linear":
        for name in targets:
            if name.rsplit(".", 1)[-1] not in {s.rsplit(".", 1)[-1] for s in seen}:
                raise RecipeError(
                    f"method.targets: {arch.model_type} has no linear layer named {name}",
                    hint=did_you_mean(name, seen) or f"its linear layers are {', '.join(sorted(seen))}",
                )


@lru_cache(maxsize=1024)
def packed_matrices(arch: Architecture) -> tuple[tuple[int, Matrix], ...]:
    """(how many layers have it, matrix) of what a four- or eight-bit base holds in fewer bits.

    Linear modules alone: all experts of a layer are one tensor, and stay as wide as they are computed with.
    """
    return tuple(target_matrices(arch))


def with_new_tokens(arch: Architecture, ids: Collection[int]) -> Architecture:
    """The shape with rows for tokens of these ids, which a plan adds and trains."""
    if not ids:
        return arch
    rows = max(arch.vocab_size, max(ids) + 1)
    return arch.model_copy(update={"vocab_size": rows, "new_tokens": len(ids)})


def new_rows(arch: Architecture) -> tuple[int, int]:
    """(how many tables, numbers in each) of the trained rows of new tokens beside frozen tables."""
    own_head = arch.head and not arch.tied_embeddings
    return 1 + own_head, arch.new_tokens * arch.hidden_size


def lora_parameters(
    arch: Architecture, rank: int, targets: Literal["all-linear"] | Sequence[str] = "all-linear"
) -> int:
    """Adapter parameters: rank x (inputs + outputs) over the targeted linear layers."""
    if rank < 1:
        raise RecipeError(f"method.rank: {rank} is not a rank", hint="use 8, 16, 32 or 64")
    return rank * _adapted_widths(arch, targets if isinstance(targets, str) else tuple(targets))


@lru_cache(maxsize=1024)
def _adapted_widths(arch: Architecture, targets: Literal["all-linear"] | tuple[str, ...]) -> int:
    """Inputs and outputs of all linear layers that adapters go on."""
    return sum(times * (m.inputs + m.outputs) for times, m in target_matrices(arch, targets))


@lru_cache(maxsize=256)
def expert_tensors(arch: Architecture, method: Lora) -> tuple[tuple[int, int], ...]:
    """(how many, numbers) of what a method trains beside the text's linear layers: experts, routers, towers.

    Errors: RecipeError where there are no such experts, Unsupported for a layout without adapters.
    """
    beside: list[tuple[int, int]] = []
    if arch.tower is not None:
        beside += [(1, method.rank * arch.tower.sides)] * arch.tower.adapted
        beside += [(1, arch.tower.projector)] * arch.tower.joined
    if method.experts == "none" and not method.router:
        return tuple(beside)
    experts = arch.experts
    if experts is None:
        raise RecipeError(
            f"method.{'router' if method.experts == 'none' else 'experts'}: {arch.model_type} has no experts",
            hint="leave it out",
        )
    chosen = _chosen(method, experts.total)
    if chosen and (experts.bias or method.dora):
        why = "method.dora has no form on experts" if method.dora else "its experts have biases"
        raise Unsupported(
            f"method.experts: adapters on the experts of {arch.model_type} are not done: {why}",
            hint="leave method.experts out to adapt the attention",
        )
    layers = arch.layers - experts.dense_layers
    h, wide = arch.hidden_size, experts.intermediate_size
    found = []
    if chosen:
        each = chosen * method.rank
        found += [(layers, each * side) for side in (h, (2 if arch.gated_mlp else 1) * wide, wide, h)]
    if method.router:
        found.append((layers, experts.total * (h + experts.bias)))
    return (*found, *beside)


def _chosen(method: Lora, total: int) -> int:
    """How many experts of a layer get adapters."""
    if isinstance(method.experts, str):
        return total if method.experts == "all" else 0
    if strange := [number for number in method.experts if number >= total]:
        raise RecipeError(
            f"method.experts: there is no expert {strange[0]}: each layer has {total}",
            hint=f"they count from 0 to {total - 1}",
        )
    return len(set(method.experts))


def expert_parameters(arch: Architecture, method: Lora) -> int:
    """Trained parameters beside the text's linear layers: of experts, routers and towers."""
    return sum(times * numbers for times, numbers in expert_tensors(arch, method))

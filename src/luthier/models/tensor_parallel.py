"""Matrices of attention and MLP divided over processes (Shoeybi et al. 2019, arXiv 1909.08053).

Each process has some heads and some of the MLP's width: rows of the matrices that make them and columns of
those that take them up again. One sum over the processes closes each of the two blocks, forwards and
backwards. Embeddings, head, norms and the stream between the blocks are the same in all of them.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from luthier.errors import Unsupported
from luthier.models.exchange import Group, added, fanned
from luthier.models.linear import DENSE
from luthier.models.lora import LoraLinear

ROWS, COLUMNS = "colwise", "rowwise"
"""What transformers calls them: columns of the transposed weight, and rows of it."""
HEAD_NORMS = ("q_norm", "k_norm")


class Divided(NamedTuple):
    """cuts: weights of which a process has a slice -> dimension. summed: of whose gradient it has a part."""

    cuts: dict[str, int]
    summed: set[str]


def divide_matrices(model: Any, group: Group) -> Divided:
    """Keep this process's slices of the layers' matrices and adapters, in place.

    Heads and the MLP's width must divide by the group's size. Raises Unsupported for a model whose layers
    are not divided in this way, before anything is changed.
    """
    place, count = group.rank(), group.size()
    base = model.base_model
    plan = dict(getattr(base.config, "base_model_tp_plan", None) or {})
    ways = {path: way for path, part in base.named_modules() if (way := _way(plan, path)) and _holds(part)}
    _demand(model, base, ways, count)
    prefix = "" if base is model else f"{model.base_model_prefix}."
    found = Divided({}, set())
    blocks: dict[str, nn.Module] = {}
    for path, way in ways.items():
        layer: Any = base.get_submodule(path)
        names = _keep_rows(layer, place, count) if way == ROWS else _keep_columns(layer, place, count)
        for name, dim in names.cuts.items():
            found.cuts[f"{prefix}{path}.{name}"] = dim
        found.summed.update(f"{prefix}{path}.{name}" for name in names.summed)
        if way == COLUMNS:
            layer.register_forward_hook(_closing(group))
        block = path.rpartition(".")[0]
        blocks[block] = base.get_submodule(block)
    for path, block_module in blocks.items():
        block_module.register_forward_pre_hook(_opening(group), with_kwargs=True)
        for norm in HEAD_NORMS:
            if (part := getattr(block_module, norm, None)) is not None:
                found.summed.update(f"{prefix}{path}.{norm}.{name}" for name, _ in part.named_parameters())
    return found


def _way(plan: dict[str, str], path: str) -> str | None:
    return next((way for pattern, way in plan.items() if fnmatchcase(path, pattern)), None)


def _holds(part: nn.Module) -> bool:
    """Whether a module holds a matrix itself."""
    return isinstance(part, (nn.Linear, LoraLinear)) or hasattr(part, "base_names")


def _demand(model: Any, base: Any, ways: dict[str, str], count: int) -> None:
    """Raise Unsupported for what is not divided."""

    def refuse(why: str) -> None:
        raise Unsupported(
            f"training.parallel.tensor: {why}", hint="use training.parallel.shard, or context for long rows"
        )

    config = model.config
    if not ways or set(ways.values()) - {ROWS, COLUMNS}:
        refuse(f"the matrices of {type(model).__name__} are not divided in this way")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (size := getattr(config, name, None)) is not None and size % count:
            refuse(f"{name} {size} does not divide by {count}")
    for path, way in ways.items():
        layer = base.get_submodule(path)
        if getattr(layer, "kind", DENSE) != DENSE:
            refuse("packed weights (qlora, a float8 base) are not cut")
        if way == COLUMNS and getattr(layer, "magnitude", None) is not None:
            refuse("the norms of DoRA go over whole rows")
    if any(weight.ndim == 3 for weight in model.parameters()):
        refuse("experts are divided by training.parallel.expert")


def _keep_rows(layer: Any, place: int, count: int) -> Divided:
    """Of a matrix whose results each process has some of."""
    names = {"weight": 0, "bias": 0, "lora_B": 0, "magnitude": 0}
    cuts = _slice_all(layer, names, place, count)
    layer.out_features //= count
    return Divided(cuts, {"lora_A"} & _weights_of(layer))


def _keep_columns(layer: Any, place: int, count: int) -> Divided:
    """Of a matrix that takes up what each process has some of; the bias stays whole."""
    cuts = _slice_all(layer, {"weight": 1, "lora_A": 1}, place, count)
    layer.in_features //= count
    return Divided(cuts, {"lora_B"} & _weights_of(layer))


def _weights_of(layer: nn.Module) -> set[str]:
    return {name for name, _ in layer.named_parameters(recurse=False)}


def _slice_all(layer: Any, dims: dict[str, int], place: int, count: int) -> dict[str, int]:
    cuts = {name: dim for name, dim in dims.items() if isinstance(getattr(layer, name, None), nn.Parameter)}
    for name, dim in cuts.items():
        whole = getattr(layer, name)
        part = whole.detach().chunk(count, dim)[place].clone(memory_format=torch.contiguous_format)
        setattr(layer, name, nn.Parameter(part, requires_grad=whole.requires_grad))
    if hasattr(layer, "_norms"):
        del layer._norms
    return cuts


def _opening(group: Group) -> Any:
    """Before a block: its input is the same everywhere, and each process uses it for its own slice."""

    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del block
        if args:
            return (*fanned(group, args[0]), *args[1:]), kwargs
        (hidden,) = fanned(group, kwargs["hidden_states"])
        return args, {**kwargs, "hidden_states": hidden}

    return hook


def _closing(group: Group) -> Any:
    """After a block's last matrix: the sum of what the processes have, with the bias once."""

    def hook(layer: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
        del args
        bias: Any = layer.bias
        whole = added(out if bias is None else out - bias, group)
        return whole if bias is None else whole + bias

    return hook

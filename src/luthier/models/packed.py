"""Linear layers whose frozen weight is held in fewer bits than it is computed with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import Unsupported
from luthier.models import float8, nf4
from luthier.models.linear import DENSE, FLOAT8, NF4, adapted_linear, weight_of
from luthier.schema.recipe import Lora, QLora

NAMES = {NF4: nf4.NAMES, FLOAT8: float8.NAMES}


class PackedLinear(nn.Module):
    """A frozen linear layer in NF4 or in eight-bit floating point.

    The parts of the weight are buffers (`nf4.NAMES`, `float8.NAMES`); bias: [out] in the compute type.
    """

    base_names: tuple[str, ...]
    kind: str
    base_dtype: torch.dtype

    def __init__(  # noqa: PLR0917 (as nn.Linear takes the first)
        self,
        in_features: int,
        out_features: int,
        parts: Sequence[Tensor],
        kind: str,
        dtype: torch.dtype,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.kind, self.base_dtype = kind, dtype
        self.base_names = NAMES[kind][: len(parts)]
        for name, part in zip(self.base_names, parts, strict=True):
            self.register_buffer(name, part)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def base_tensors(self) -> list[Tensor]:
        """The parts of the weight, as `adapted_linear` takes them."""
        return [getattr(self, name) for name in self.base_names]

    def frozen_weight(self) -> Tensor:
        """The weight as a plain matrix [out, in] in the compute type."""
        return dense_base(self.base_tensors(), self.kind, self.in_features, self.base_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] to [..., out]."""
        return adapted_linear(x, self.base_tensors(), self.kind, self.bias, None, None)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}"


def dense_base(parts: Sequence[Tensor], kind: str, width: int, dtype: torch.dtype) -> Tensor:
    """A frozen weight as a plain matrix [out, width]."""
    return weight_of(parts, kind, width, dtype)


def keep_base(layer: nn.Module, base: nn.Linear | PackedLinear) -> None:
    """Give a layer the frozen weight of another, in the form that it has."""
    if isinstance(base, PackedLinear):
        for name, part in zip(base.base_names, base.base_tensors(), strict=True):
            layer.register_buffer(name, part)
        names, kind, dtype = base.base_names, base.kind, base.base_dtype
    else:
        layer.weight = base.weight.requires_grad_(False)
        names, kind, dtype = ("weight",), DENSE, base.weight.dtype
    place: Any = layer
    place.base_names, place.kind, place.base_dtype = names, kind, dtype


def plain_linear(weight: Tensor, bias: Tensor | None, *, training: bool) -> nn.Linear:
    """A frozen nn.Linear around a weight [out, in]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    layer.train(training)
    return layer


def packing_of(model: nn.Module) -> str:
    """How the model's frozen weights are packed, which its answers depend on; "" where they are not."""
    return next(
        (str(kind) for part in model.modules() if (kind := getattr(part, "kind", DENSE)) != DENSE), ""
    )


def demand_float8(device: torch.device | str, asked: str = "method.base") -> None:
    """Raise Unsupported where the device has no products of eight-bit numbers. asked: the recipe's key."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    raise Unsupported(
        f"{asked}: float8 needs matrix units for eight-bit numbers, which {name} has not",
        hint=f"leave {asked} out, or use method.name: qlora to save memory",
    )


def pack_base(
    model: nn.Module, method: Lora, *, leave: Sequence[str] = (), on: torch.device | None = None
) -> int:
    """Pack the linear layers as the method says, unless that is done; how many were packed now.

    on: the device that packs, one layer after another; the parts end where the weight was.
    """
    if isinstance(method, QLora):
        return pack_linears(model, NF4, double=method.double_quantisation, leave=leave, on=on)
    return pack_linears(model, FLOAT8, leave=leave, on=on) if method.base == "float8" else 0


def pack_linears(
    model: nn.Module,
    kind: str,
    *,
    double: bool = True,
    leave: Sequence[str] = (),
    prepare: Callable[[Tensor], Tensor] | None = None,
    on: torch.device | None = None,
) -> int:
    """Replace every linear layer but the output head by a packed one, one after another; how many.

    leave: paths of modules that stay as they are. prepare: applied to each weight before it is packed
    (moved to a device, say). The packed parts stay where the weight was then. on: see `pack_base`.
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    found = [
        (path, module)
        for path, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and not _within(path, leave)
    ]
    for path, module in found:
        weight = module.weight.detach()
        weight = weight if prepare is None else prepare(weight)
        home, weight = weight.device, weight if on is None else weight.to(on)
        parts = nf4.quantise(weight, double=double) if kind == NF4 else float8.quantise(weight)
        parts = tuple(part.to(home) for part in parts)
        packed = PackedLinear(module.in_features, module.out_features, parts, kind, weight.dtype, module.bias)
        packed.train(module.training)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, name, packed)
        module.weight = None  # type: ignore[assignment]
    return len(found)


def _within(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(module + ".") for module in modules)


def adopt_bitsandbytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace bitsandbytes' four-bit layers by packed ones with the same parts; how many."""
    import bitsandbytes

    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    ]
    for path, module in found:
        packed = PackedLinear(
            module.in_features,
            module.out_features,
            nf4.parts_of(module.weight.data, module.weight.quant_state),
            NF4,
            dtype,
            module.bias,
        )
        packed.train(module.training)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, name, packed)
    return len(found)

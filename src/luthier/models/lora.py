"""Low-rank adapters beside frozen linear layers.

LoRA (Hu et al. 2021, arXiv 2106.09685), rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) and DoRA
(Liu et al. 2024, arXiv 2402.09353). Forward and gradients equal those of the ``peft`` package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from luthier.errors import RecipeError, Unsupported, did_you_mean
from luthier.models.experts import (
    LoraExperts,
    adapted_experts,
    targeted_experts,
)
from luthier.models.linear import DENSE, adapted_linear
from luthier.models.new_tokens import NewRows, settle, trained_rows
from luthier.models.packed import PackedLinear, dense_base, keep_base, plain_linear
from luthier.schema.recipe import Lora

LINEAR = (nn.Linear, PackedLinear)
"""Layers that adapters stand beside."""


class _FrozenLinearWithLora(torch.autograd.Function):
    """``x W' + b + scale (x A') B'`` with W and b frozen.

    One pass over the output where separate layers need three, and only x and ``x A'`` are kept for
    the backward pass. x: [tokens, in]; W: [out, in]; A: [rank, in]; B: [out, rank], all of one dtype.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by place)
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        out = F.linear(x, weight, bias)
        low = x @ a.t()
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, low, weight, a, b = ctx.saved_tensors
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            grad_x.addmm_(grad_low, a)
        grad_b = (grad.t() @ low).mul_(ctx.scale)
        return grad_x, None, None, grad_low.t() @ x, grad_b, None


class LoraLinear(nn.Module):
    """A frozen linear layer with one trainable adapter.

    lora_A: [rank, in], lora_B: [out, rank], magnitude: [out] (DoRA only). Adapters keep their own
    dtype (fp32 unless told otherwise) and are cast to that of the input while computing, so that
    the optimiser updates full-precision values beside a bf16 base.
    """

    magnitude: nn.Parameter | None
    weight: nn.Parameter
    """The frozen weight where it is a plain matrix; else its parts are buffers (`models.packed`)."""
    base_names: tuple[str, ...]
    kind: str
    base_dtype: torch.dtype

    def __init__(
        self,
        base: nn.Linear | PackedLinear,
        lora: Lora,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        keep_base(self, base)
        self.bias = None if base.bias is None else base.bias.requires_grad_(False)
        self.scale = scale_of(lora)
        self.dropout = lora.dropout
        self.enabled = True
        self.train(base.training)
        # PEFT starts A as nn.Linear starts its weight and B at zero, so that the first step sees the base.
        a = torch.empty(lora.rank, self.in_features)
        bound = 1 / math.sqrt(self.in_features)
        a.uniform_(-bound, bound, generator=generator)
        device = self.base_tensors()[0].device
        self.lora_A = nn.Parameter(a.to(device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, lora.rank, device=device, dtype=dtype))
        self.magnitude = None
        if lora.dora:
            norm = self._squared_norm().sqrt()
            self.magnitude = nn.Parameter(norm.to(dtype))

    def base_tensors(self) -> list[Tensor]:
        """The tensors that hold the frozen weight, as `adapted_linear` takes them."""
        return [getattr(self, name) for name in self.base_names]

    def frozen_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The frozen weight as a plain matrix [out, in], or what its packed parts stand for."""
        return dense_base(self.base_tensors(), self.kind, self.in_features, dtype or self.base_dtype)

    def _squared_norm(self) -> Tensor:
        """Squared norm of each row of the frozen weight: [out], fp32."""
        norms: Tensor | None = getattr(self, "_norms", None)
        weight = self.base_tensors()[0]
        if norms is None or norms.device != weight.device:
            norms = torch.linalg.vector_norm(self.frozen_weight().detach().float(), dim=1).square()
            self._norms = norms
        return norms

    def _adapted_norm(self) -> Tensor:
        """Norm of each row of ``W + scale B A`` without building it: [out], fp32, no gradient."""
        with torch.no_grad():
            a, b = self.lora_A.float(), self.lora_B.float()
            cross = (self.frozen_weight().float() @ a.t() * b).sum(dim=1)
            own = (b @ (a @ a.t()) * b).sum(dim=1)
            total = self._squared_norm() + 2 * self.scale * cross + self.scale**2 * own
            return total.clamp_min_(torch.finfo(torch.float32).tiny).sqrt_()

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] to [..., out]."""
        if not self.enabled:
            return self._frozen(x, self.bias)
        dropping = self.dropout > 0 and self.training
        if self.magnitude is not None:
            return self._dora(x, dropping)
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        if dropping:
            low = F.linear(F.dropout(x, self.dropout), a)
            return self._frozen(x, self.bias) + F.linear(low, b) * self.scale
        # Tensors without data stand for those of a GPU (`checks.trace`).
        if self.kind != DENSE or x.is_cuda or x.is_meta or torch.compiler.is_compiling():
            scaled = (self.lora_A * self.scale).to(x.dtype)
            return adapted_linear(x, self.base_tensors(), self.kind, self.bias, scaled, b)
        flat = x.reshape(-1, self.in_features)
        out: Tensor = _FrozenLinearWithLora.apply(flat, self.weight, self.bias, a, b, self.scale)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], self.out_features)

    def _frozen(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x through the base alone."""
        if self.kind == DENSE:
            return F.linear(x, self.weight, bias)
        return adapted_linear(x, self.base_tensors(), self.kind, bias, None, None)

    def _dora(self, x: Tensor, dropping: bool) -> Tensor:
        """Direction from W + scale B A, length from the trained magnitude.

        The norm carries no gradient (section 4.3 of the paper). With dropout the correction of the
        base output sees the dropped input and the plain output does not, as PEFT has it.
        """
        assert self.magnitude is not None
        share = (self.magnitude / self._adapted_norm()).to(x.dtype)
        base = self._frozen(x, None)
        seen, seen_base = x, base
        if dropping:
            seen = F.dropout(x, self.dropout)
            seen_base = self._frozen(seen, None)
        low = F.linear(F.linear(seen, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        out = base + (share - 1) * seen_base + share * (low * self.scale)
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight with the adapter in it, computed in fp32, in the base's dtype: [out, in]."""
        full = self.frozen_weight(torch.float32)
        return merged_weight(full, self.lora_A, self.lora_B, self.scale, self.magnitude).to(self.base_dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.lora_A.shape[0]}, scale={self.scale:g}"


@torch.no_grad()
def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None) -> Tensor:
    """A frozen weight [out, in] in fp32 with an adapter in it; a: [rank, in], b: [out, rank]."""
    full = weight + scale * (b.float() @ a.float())
    if magnitude is not None:
        full *= (magnitude.float() / torch.linalg.vector_norm(full, dim=1)).unsqueeze(1)
    return full


def scale_of(lora: Lora) -> float:
    """What the low-rank update is multiplied by: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
    return alpha / math.sqrt(lora.rank) if lora.rslora else alpha / lora.rank


def add_lora(
    model: nn.Module,
    lora: Lora,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    only: frozenset[str] | None = None,
    whole: Sequence[str] = (),
) -> list[str]:
    """Freeze the model and put an adapter beside each targeted linear layer, in place.

    Returns the paths of the adapted layers. only: take exactly these paths instead of the targets.
    whole: paths of modules that are trained with all their weights and get no adapter (a fresh head).
    Experts get theirs by the method's own setting. Raises RecipeError when a target names no linear layer.
    """
    paths = sorted(only) if only is not None else _targets(model, lora)
    experts = targeted_experts(model, lora)
    paths = [path for path in paths if not _within(path, whole)]
    model.requires_grad_(False)
    for path in whole:
        model.get_submodule(path).requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        base = model.get_submodule(path)
        assert isinstance(base, (nn.Linear, PackedLinear)), path
        _replace(model, path, LoraLinear(base, lora, generator=generator, dtype=dtype))
    for path in experts:
        own = model.get_submodule(path)
        made = LoraExperts(own, lora, generator=generator, dtype=dtype, scale=scale_of(lora))
        _replace(model, path, made)
    return paths + experts


def adapter_paths(model: nn.Module, lora: Lora) -> list[str]:
    """Paths of the layers that adapters go beside, as `add_lora` chooses them."""
    return _targets(model, lora)


def _targets(model: nn.Module, lora: Lora) -> list[str]:
    """Paths of the layers to adapt, in the model's own order."""
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    linear = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    if lora.targets == "all-linear":
        found = [name for name in linear if model.get_submodule(name) is not head]
        if not found:
            raise Unsupported(
                f"{type(model).__name__} has no linear layers of the usual kind to adapt",
                hint="use method.name: full",
            )
        return found
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in lora.targets:
        if not any(matches(name, target) for name in linear):
            _refuse_experts(model, target)
            near = did_you_mean(target, known)
            raise RecipeError(
                f"method.targets: the model has no linear layer named {target}",
                hint=f"{near} " * bool(near) + f"linear layers are: {', '.join(known)}",
            )
    return [name for name in linear if any(matches(name, target) for target in lora.targets)]


def _refuse_experts(model: nn.Module, target: str) -> None:
    """Say why a target that names the experts of a layer gets no adapter. Raises Unsupported."""
    fused = [name for name, weight in model.named_parameters() if weight.ndim == 3]
    if any(matches(name, target) or matches(name.rpartition(".")[0], target) for name in fused):
        raise Unsupported(
            f"method.targets: {target} are experts, which {type(model).__name__} keeps in one tensor for all "
            "of them: adapters stand beside linear layers alone",
            hint="set method.experts: all, or the numbers of some, beside the targets of the attention",
        )


def matches(path: str, target: str) -> bool:
    """Whether a layer's path is what a target names, or ends in it."""
    return path == target or path.endswith("." + target)


def _within(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(module + ".") for module in modules)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, module)


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every adapted layer with its path."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let the model answer as its base does, within the block."""
    layers: list[LoraLinear | LoraExperts | NewRows] = [layer for _, layer in adapted(model)]
    layers += [layer for _, layer in adapted_experts(model)]
    layers += [rows for _, _, rows in trained_rows(model)]
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.enabled = was


def merge(model: nn.Module) -> int:
    """Replace every adapted layer by a plain one with the merged weights, in place; how many."""
    layers = list(adapted(model))
    experts = list(adapted_experts(model))
    settle(model)
    for path, adapters in experts:
        _replace(model, path, adapters.plain())
    for path, layer in layers:
        _replace(model, path, plain_linear(layer.merged(), layer.bias, training=layer.training))
    for path, packed in [pair for pair in model.named_modules() if isinstance(pair[1], PackedLinear)]:
        assert isinstance(packed, PackedLinear)
        weight = packed.frozen_weight()
        _replace(model, path, plain_linear(weight, packed.bias, training=packed.training))
    return len(layers) + len(experts)

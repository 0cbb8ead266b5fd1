"""Low-rank adapters beside the experts of a mixture, which current transformers keep in one tensor for all.

PEFT adapts such tensors by name (``target_parameters``, peft 0.17 and newer); the adapters here equal its
own and are saved under its names. Chosen experts are saved with zeros for the others, so that PEFT loads
them too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.errors import RecipeError, Unsupported
from luthier.schema.recipe import Lora

PARTS = ("gate_up_proj", "down_proj")
"""Expert tensors that are adapted, each [experts, outputs, inputs]."""
_KERNEL_STEP = 8
"""Grouped products on a GPU want rows of a multiple of 16 bytes."""


class ExpertAdapter(nn.Module):
    """Adapters of one expert tensor. lora_A: [chosen, rank, inputs], lora_B: [chosen, outputs, rank]."""

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        chosen: Sequence[int],
        generator: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        _, outputs, inputs = weight.shape
        # As PEFT, whose one matrix over all experts starts as nn.Linear starts a weight.
        a = torch.empty(len(chosen), rank, inputs)
        a.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        self.lora_A = nn.Parameter(a.to(weight.device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(len(chosen), outputs, rank, device=weight.device, dtype=dtype))


class LoraExperts(nn.Module):
    """The frozen experts of one layer with trainable adapters beside all or some of them."""

    gate_up_proj: nn.Parameter
    down_proj: nn.Parameter

    def __init__(
        self,
        base: Any,
        lora: Lora,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        scale: float,
    ) -> None:
        super().__init__()
        self.num_experts: int = base.gate_up_proj.shape[0]
        self.chosen = chosen_experts(lora, self.num_experts)
        self.scale, self.dropout, self.enabled = scale, lora.dropout, True
        # Beside the tree of modules: its tensors stand here, under the same names.
        self._base = (base,)
        for name in PARTS:
            weight = getattr(base, name).requires_grad_(False)
            setattr(self, name, weight)
            setattr(self, f"{name}_adapter", ExpertAdapter(weight, lora.rank, self.chosen, generator, dtype))
        self.train(base.training)

    def adapter(self, name: str) -> ExpertAdapter:
        """The adapters of one of `PARTS`."""
        found: ExpertAdapter = getattr(self, f"{name}_adapter")
        return found

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states: [tokens, width]; the experts of each token and their weights: [tokens, k]."""
        count = top_k_index.shape[-1]
        sorted_ids, order = torch.sort(top_k_index.reshape(-1))
        x = hidden_states[order // count]
        # histc and not bincount: its size does not depend on the data.
        counted = sorted_ids.float() if x.device.type == "cpu" else sorted_ids.int()
        each = torch.histc(counted, bins=self.num_experts, min=0, max=self.num_experts - 1)
        ends = torch.cumsum(each, dim=0, dtype=torch.int32)
        wide = self._base[0]._apply_gate(self._part("gate_up_proj", x, ends))
        out = self._part("down_proj", wide, ends) * top_k_weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel(), device=order.device)
        out = out[back].view(hidden_states.shape[0], count, -1).sum(dim=1)
        return out.to(hidden_states.dtype)

    def _part(self, name: str, x: Tensor, ends: Tensor) -> Tensor:
        """x [rows, in], sorted by expert, through one tensor and its adapters: [rows, out]."""
        out = grouped(x, getattr(self, name), ends)
        if not self.enabled:
            return out
        a, b = self.spread(name, x.dtype)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return out + grouped(grouped(x, a, ends), b, ends)

    def spread(self, name: str, dtype: torch.dtype, *, padded: bool = True) -> tuple[Tensor, Tensor]:
        """A [experts, rank, in] with the scale in it and B [experts, out, rank]; zeros where none is trained.

        padded: with as many more ranks of zeros as the kernels want.
        """
        adapter = self.adapter(name)
        a, b = (adapter.lora_A * self.scale).to(dtype), adapter.lora_B.to(dtype)
        if padded and (more := -a.shape[1] % _KERNEL_STEP):
            a, b = F.pad(a, (0, 0, 0, more)), F.pad(b, (0, more))
        if len(self.chosen) == self.num_experts:
            return a, b
        places = torch.tensor(self.chosen, device=a.device)
        return (
            a.new_zeros(self.num_experts, *a.shape[1:]).index_copy(0, places, a),
            b.new_zeros(self.num_experts, *b.shape[1:]).index_copy(0, places, b),
        )

    @torch.no_grad()
    def merged(self, name: str, weight: Tensor | None = None) -> Tensor:
        """An expert tensor with its adapters in it, computed in fp32, in the base's type."""
        own = getattr(self, name)
        full = (own if weight is None else weight.to(own.device)).float()
        a, b = self.spread(name, torch.float32, padded=False)
        return torch.baddbmm(full, b, a).to(own.dtype)

    def plain(self) -> nn.Module:
        """The model's own experts with the adapters merged into them."""
        base: nn.Module = self._base[0]
        for name in PARTS:
            setattr(base, name, nn.Parameter(self.merged(name), requires_grad=False))
        return base.train(self.training)

    def extra_repr(self) -> str:
        rank = self.adapter("down_proj").lora_A.shape[1]
        return f"{self.num_experts} experts, {len(self.chosen)} adapted, rank={rank}, scale={self.scale:g}"


def grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows of each expert times its matrix: x [rows, in], weight [experts, out, in], ends [experts].

    ends: row after the last one of each expert, cumulated. One kernel for all of them, where a GPU has it
    (compute capability 8.0 and newer).
    """
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
        parts = [F.linear(rows, one) for rows, one in zip(torch.split(x, sizes), weight, strict=True)]
        return torch.cat(parts)
    out: Tensor = F.grouped_mm(x, weight.transpose(-2, -1), offs=ends)
    return out


def chosen_experts(lora: Lora, total: int) -> tuple[int, ...]:
    """Numbers of the experts that get adapters. Errors: RecipeError for one that a layer does not have."""
    if lora.experts == "none":
        return ()
    if lora.experts == "all":
        return tuple(range(total))
    if strange := [number for number in lora.experts if number >= total]:
        raise RecipeError(
            f"method.experts: there is no expert {strange[0]}: each layer has {total}",
            hint=f"they count from 0 to {total - 1}",
        )
    return tuple(sorted(set(lora.experts)))


def expert_layers(model: nn.Module) -> list[str]:
    """Paths of the modules that hold all experts of a layer in one tensor."""
    return [
        name
        for name, module in model.named_modules()
        if not isinstance(module, LoraExperts)
        and any(
            isinstance(getattr(module, part, None), nn.Parameter) and getattr(module, part).ndim == 3
            for part in PARTS
        )
    ]


def router_paths(model: nn.Module) -> list[str]:
    """Paths of the routers: what stands beside experts and chooses among them."""
    found = []
    for path in expert_layers(model):
        parent, _, _ = path.rpartition(".")
        block = model.get_submodule(parent)
        named = [name for name in ("gate", "router") if isinstance(getattr(block, name, None), nn.Module)]
        if not named:
            raise Unsupported(
                f"method.router: the routers of {type(model).__name__} are not under a name that is known",
                hint="leave method.router out: routers stay frozen",
            )
        found.append(f"{parent}.{named[0]}")
    return found


def targeted_experts(model: nn.Module, lora: Lora) -> list[str]:
    """Paths of the experts that adapters go beside. Errors: RecipeError, Unsupported with the reason."""
    if lora.experts == "none":
        return []
    paths = expert_layers(model)
    if not paths:
        raise RecipeError(
            f"method.experts: {type(model).__name__} has no experts", hint="leave method.experts out"
        )
    if lora.dora:
        raise Unsupported(
            "method.dora: adapters on experts have no magnitude, in PEFT neither",
            hint="leave method.dora out, or method.experts",
        )
    for path in paths:
        module: Any = model.get_submodule(path)
        odd = [
            words
            for name, words in (("has_bias", "biases"), ("is_transposed", "transposed weights"))
            if getattr(module, name, False)
        ]
        if odd or not hasattr(module, "_apply_gate") or getattr(module, "has_post_expert_norm", False):
            raise Unsupported(
                f"method.experts: the experts of {type(model).__name__} are laid out in a way that is not "
                f"adapted yet ({odd[0] if odd else 'no gate and up in one tensor'})",
                hint="leave method.experts out to adapt the attention, or use method.name: full",
            )
        chosen_experts(lora, module.gate_up_proj.shape[0])
    return paths


def adapted_experts(model: nn.Module) -> Iterator[tuple[str, LoraExperts]]:
    """Every layer of adapted experts with its path."""
    for name, module in model.named_modules():
        if isinstance(module, LoraExperts):
            yield name, module


# -- PEFT's form ---------------------------------------------------------------------------------

# PEFT wraps a module once for each tensor: the first stands innermost.
_WRAPPED = {"gate_up_proj": ".base_layer", "down_proj": ""}


def peft_tensors(path: str, layer: LoraExperts) -> dict[str, Tensor]:
    """Adapters as PEFT saves them: A [experts x rank, in], B [out, rank x experts] with experts innermost."""
    found: dict[str, Tensor] = {}
    for name in PARTS:
        adapter = layer.adapter(name)
        a, b = adapter.lora_A.detach(), adapter.lora_B.detach()
        if len(layer.chosen) < layer.num_experts:
            places = torch.tensor(layer.chosen, device=a.device)
            a = a.new_zeros(layer.num_experts, *a.shape[1:]).index_copy(0, places, a)
            b = b.new_zeros(layer.num_experts, *b.shape[1:]).index_copy(0, places, b)
        at = f"{path}{_WRAPPED[name]}"
        found[f"{at}.lora_A.weight"] = a.reshape(-1, a.shape[-1])
        found[f"{at}.lora_B.weight"] = b.permute(1, 2, 0).reshape(b.shape[1], -1)
    return found


@torch.no_grad()
def set_peft_tensors(path: str, layer: LoraExperts, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `peft_tensors` gives, with names as there, into the adapters."""
    places = list(layer.chosen)
    for name in PARTS:
        adapter = layer.adapter(name)
        at = f"{path}{_WRAPPED[name]}"
        _, rank, inputs = adapter.lora_A.shape
        a = tensors[f"{at}.lora_A.weight"].reshape(layer.num_experts, rank, inputs)
        b = tensors[f"{at}.lora_B.weight"].reshape(-1, rank, layer.num_experts).permute(2, 0, 1)
        adapter.lora_A.copy_(a[places])
        adapter.lora_B.copy_(b[places])


def peft_parameters(paths: Sequence[str]) -> list[str]:
    """PEFT's ``target_parameters`` for those layers."""
    return sorted({f"{path.rpartition('.')[2]}.{name}" for path in paths for name in PARTS})

"""Low-rank adapters beside frozen linear layers, in PEFT's format.

LoRA (Hu et al. 2021, arXiv 2106.09685), rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) and DoRA
(Liu et al. 2024, arXiv 2402.09353). Forward and gradients equal those of the ``peft`` package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from luthier.errors import FileProblem, RecipeError, Unsupported, did_you_mean
from luthier.models.experts import (
    LoraExperts,
    adapted_experts,
    peft_parameters,
    peft_tensors,
    set_peft_tensors,
    targeted_experts,
)
from luthier.models.linear import DENSE, adapted_linear
from luthier.models.new_tokens import NewRows, grow, settle, train_rows, trained_rows
from luthier.models.packed import PackedLinear, dense_base, keep_base, plain_linear
from luthier.schema.recipe import Lora

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ROWS = ".token_adapter.trainable_tokens_delta"
_LINEAR = (nn.Linear, PackedLinear)


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
        if self.kind != DENSE or x.is_cuda or torch.compiler.is_compiling():
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
    linear = [name for name, module in model.named_modules() if isinstance(module, _LINEAR)]
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
        if not any(_matches(name, target) for name in linear):
            _refuse_experts(model, target)
            near = did_you_mean(target, known)
            raise RecipeError(
                f"method.targets: the model has no linear layer named {target}",
                hint=f"{near} " * bool(near) + f"linear layers are: {', '.join(known)}",
            )
    return [name for name in linear if any(_matches(name, target) for target in lora.targets)]


def _refuse_experts(model: nn.Module, target: str) -> None:
    """Say why a target that names the experts of a layer gets no adapter. Raises Unsupported."""
    fused = [name for name, weight in model.named_parameters() if weight.ndim == 3]
    if any(_matches(name, target) or _matches(name.rpartition(".")[0], target) for name in fused):
        raise Unsupported(
            f"method.targets: {target} are experts, which {type(model).__name__} keeps in one tensor for all "
            "of them: adapters stand beside linear layers alone",
            hint="set method.experts: all, or the numbers of some, beside the targets of the attention",
        )


def _matches(path: str, target: str) -> bool:
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


def adapter_tensors(model: nn.Module, whole: Sequence[str] = ()) -> dict[str, Tensor]:
    """Adapter weights, and those of modules trained whole, under PEFT's names."""
    tensors: dict[str, Tensor] = {}
    for path in whole:
        for name, tensor in model.get_submodule(path).state_dict().items():
            tensors[f"{_PREFIX}{path}.{name}"] = tensor.detach()
    for path, layer in adapted(model):
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = layer.lora_A.detach()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = layer.lora_B.detach()
        if layer.magnitude is not None:
            tensors[f"{_PREFIX}{path}.lora_magnitude_vector"] = layer.magnitude.detach()
    for path, experts in adapted_experts(model):
        tensors |= peft_tensors(_PREFIX + path, experts)
    for path, _, own in trained_rows(model):
        tensors[f"{_PREFIX}{path}{_ROWS}"] = own.rows.detach()
    return tensors


@torch.no_grad()
def copy_adapter_tensors(model: nn.Module, tensors: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
    """Copy adapters, and modules trained whole, from what `adapter_tensors` gives."""
    experts = dict(adapted_experts(model))
    for path, layer in experts.items():
        set_peft_tensors(_PREFIX + path, layer, tensors)
    apart = {name for path, layer in experts.items() for name in peft_tensors(_PREFIX + path, layer)}
    for name, tensor in adapter_tensors(model, whole).items():
        if name not in apart:
            tensor.copy_(tensors[name])


def save_adapter(
    model: nn.Module,
    directory: Path,
    *,
    base_id: str,
    lora: Lora,
    revision: str | None = None,
    task_type: str = "CAUSAL_LM",
    whole: Sequence[str] = (),
) -> list[Path]:
    """Write the adapter as PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``.

    base_id: what PEFT shall load as the base (a Hub id or a name; never a path of this machine).
    task_type: PEFT's name of the kind of model. whole: paths of modules saved with all their weights.
    """
    directory.mkdir(parents=True, exist_ok=True)
    alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
    experts = [path for path, _ in adapted_experts(model)]
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_id,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        # PEFT loads no adapters of experts with dropout, and an answer has none.
        "lora_dropout": 0.0 if experts else lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "target_modules": _shortest_names(model),
        "target_parameters": peft_parameters(experts) or None,
        "trainable_token_indices": _token_indices(model),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": list(whole) or None,
    }
    weights, settings = directory / ADAPTER_WEIGHTS, directory / ADAPTER_CONFIG
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_tensors(model, whole).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    settings.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [settings, weights]


def _token_indices(model: nn.Module) -> list[int] | dict[str, list[int]] | None:
    """PEFT's ``trainable_token_indices``: of the input embedding, or of each table where there are two."""
    found = {path.rpartition(".")[2]: own.places.tolist() for path, _, own in trained_rows(model)}
    return found if len(found) > 1 else next(iter(found.values()), None)


def _shortest_names(model: nn.Module) -> list[str]:
    """Last parts of the adapted paths where these name no other layer, else the whole paths."""
    paths = {path for path, _ in adapted(model)}
    short = sorted({path.rpartition(".")[2] for path in paths})
    others = (name for name, _ in model.named_modules() if name not in paths)
    if any(_matches(other, name) for other in others for name in short):
        return sorted(paths)
    return short


def load_adapter(model: nn.Module, directory: Path) -> Lora:
    """Put a saved adapter beside the model's layers, in place; returns its settings.

    Raises FileProblem when files are missing, unreadable or made for another model.
    """
    settings, weights = directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS
    for file in (settings, weights):
        if not file.is_file():
            raise FileProblem(
                f"not an adapter folder: {file.name} is missing",
                file=directory,
                hint="give a folder that holds adapter_config.json and adapter_model.safetensors",
            )
    try:
        config = json.loads(settings.read_text(encoding="utf-8"))
        tensors = load_file(weights)
    except (json.JSONDecodeError, SafetensorError, UnicodeDecodeError) as error:
        raise FileProblem(f"the adapter cannot be read: {error}", file=directory) from error
    lora = _lora_of(config, settings)
    paths = frozenset(
        name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        for name in tensors
        if name.endswith(".lora_A.weight")
    )
    if lora.experts != "none":
        held = targeted_experts(model, lora)
        paths -= {path for expert in held for path in (expert, f"{expert}.base_layer")}
    known = {name for name, module in model.named_modules() if isinstance(module, _LINEAR)}
    if strange := sorted(paths - known):
        raise FileProblem(
            f"the adapter was made for another model: no linear layer {strange[0]}"
            + (f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""),
            file=weights,
            hint=f"it names {config.get('base_model_name_or_path')} as its base",
        )
    add_lora(model, lora, only=paths)
    if indices := config.get("trainable_token_indices"):
        _train_saved_rows(model, indices, settings)
    set_adapter_tensors(model, tensors, file=weights)
    return lora


def _train_saved_rows(model: Any, indices: list[int] | dict[str, list[int]], file: Path) -> None:
    """Make room for the rows of tokens that an adapter holds. Errors: Unsupported."""
    each = list(indices.values()) if isinstance(indices, dict) else [indices]
    ids, table = each[0], model.get_input_embeddings().weight
    two = model.get_output_embeddings().weight is not table
    if any(one != ids for one in each) or len(each) != 1 + two:
        raise Unsupported(
            "the adapter trains tokens in one of embedding and head, or others in each, which is not read",
            file=file,
        )
    if beyond := [index for index in ids if index >= table.shape[0]]:
        grow(model, dict.fromkeys(beyond, ()))
    train_rows(model, ids)


def set_adapter_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, file: Path | None = None) -> None:
    """Copy saved adapter weights into the model's adapters; names and shapes must all agree."""
    own = adapter_tensors(model)
    if own.keys() != tensors.keys():
        missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise FileProblem(
            f"the adapter does not fit: {len(missing)} tensors missing, {len(extra)} unknown "
            f"({(missing + extra)[0]})",
            file=file,
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise FileProblem(
                f"the adapter does not fit: {name} is {list(tensors[name].shape)}, "
                f"the model needs {list(tensor.shape)}",
                file=file,
            )
    copy_adapter_tensors(model, tensors)


def _lora_of(config: dict[str, Any], file: Path) -> Lora:
    if config.get("peft_type") != "LORA":
        raise Unsupported(f"adapters of type {config.get('peft_type')} are not read", file=file)
    asked = [
        key
        for key in ("modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")
        if config.get(key)
    ]
    if config.get("bias", "none") != "none":
        asked.append("bias")
    if asked:
        raise Unsupported(f"the adapter uses {', '.join(asked)}, which is not read", file=file)
    return Lora(
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config.get("lora_dropout", 0.0),
        targets="all-linear",
        rslora=config.get("use_rslora", False),
        dora=config.get("use_dora", False),
        experts="all" if config.get("target_parameters") else "none",
    )

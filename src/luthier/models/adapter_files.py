"""Adapters as PEFT writes and reads them: names of their tensors, settings, files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.errors import FileProblem, Unsupported
from luthier.models.experts import (
    adapted_experts,
    peft_parameters,
    peft_tensors,
    set_peft_tensors,
    targeted_experts,
)
from luthier.models.lora import LINEAR, adapted, add_lora, matches
from luthier.models.new_tokens import grow, train_rows, trained_rows
from luthier.schema.recipe import Lora

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ROWS = ".token_adapter.trainable_tokens_delta"


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
    if any(matches(other, name) for other in others for name in short):
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
    known = {name for name, module in model.named_modules() if isinstance(module, LINEAR)}
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
    _set_adapter_tensors(model, tensors, file=weights)
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


def _set_adapter_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], *, file: Path | None = None
) -> None:
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

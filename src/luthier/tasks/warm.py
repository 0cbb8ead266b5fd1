"""Start adapters from saved ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from luthier.errors import FileProblem
from luthier.models.adapter_files import adapter_tensors, copy_adapter_tensors

WEIGHTS = "adapter_model.safetensors"


def start_from_adapter(model: Any, folder: Path, *, whole: Sequence[str] = ()) -> None:
    """Copy the weights of an adapter in PEFT's format into the model's fresh adapters, in place.

    whole: paths of modules that are trained with all their weights. Errors: FileProblem where the file
    is missing or broken, or was made for other layers or another rank.
    """
    path = folder / WEIGHTS
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FileProblem(
            f"the adapter to start from cannot be read: {error}",
            file=path,
            hint="name a folder with adapter_config.json and adapter_model.safetensors",
        ) from None
    own = adapter_tensors(model, whole)
    unlike = sorted(
        name for name in own.keys() | saved.keys()
        if name not in own or name not in saved or own[name].shape != saved[name].shape
    )  # fmt: skip
    if unlike:
        raise FileProblem(
            f"the adapter does not fit: {len(unlike)} of {len(own)} weights differ ({unlike[0]})",
            file=path,
            hint="use the rank and the targets that it was made with, and the same base model",
        )
    copy_adapter_tensors(model, saved, whole)

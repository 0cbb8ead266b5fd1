"""Sizes and free space, before anything is written."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from luthier.errors import DoesNotFit, FileProblem
from luthier.schema.recipe import GgufType

MOST_BITS = {"Q8_0": 8.6, "Q6_K": 8.6, "Q5_K_M": 7.2, "Q4_K_M": 6.4, "Q4_K_S": 6.1, "Q3_K_M": 5.7}
"""Bits a parameter at the worst, where rows divide into no block of 256 and all tensors fall back."""

_HEADER_SHARE = 1.2
"""A GGUF header holds the vocabulary, its merges and the template: somewhat more than tokenizer.json."""


def parameter_count(model_dir: Path) -> int:
    """Values in a folder's safetensors, from their headers alone. Errors: FileProblem."""
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise FileProblem(
            "has no safetensors", file=model_dir, hint="give the folder of a merged or full model"
        )
    return sum(_values(path) for path in files)


def _values(path: Path) -> int:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (struct.error, ValueError, MemoryError, OverflowError):
        raise FileProblem(
            "is cut off or no safetensors file", file=path, hint="save the model again"
        ) from None
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for size in entry["shape"]:
                count *= size
            total += count
    return total


def largest_gguf_size(model_dir: Path, kind: GgufType) -> int:
    """Bytes that a GGUF of that type will not exceed, before it or its F16 file exists.

    Exact sizes are known once the F16 file is there (``luthier.llamacpp.quantize.predicted_size``).
    """
    values = parameter_count(model_dir)
    vocabulary = model_dir / "tokenizer.json"
    header = vocabulary.stat().st_size if vocabulary.is_file() else 8_000_000
    # norms and biases stay in 32 bits; they are a thousandth of a model
    bits = MOST_BITS.get(kind, 16.1)
    return int(values * bits / 8 + header * _HEADER_SHARE) + 65_536


def plan_gguf_space(model_dir: Path, kinds: Iterable[GgufType]) -> dict[str, int]:
    """What an export will take at its largest: name -> bytes, the intermediate F16 file included."""
    kinds = tuple(kinds)
    needs: dict[str, int] = {kind: largest_gguf_size(model_dir, kind) for kind in kinds}
    if not {"F16", "BF16"} & set(kinds):
        needs["F16 (removed afterwards)"] = largest_gguf_size(model_dir, "F16")
    return needs


def check_space(folder: Path, needs: Mapping[str, int], *, free: int | None = None) -> None:
    """Refuse before writing what has no room. needs: name -> bytes. Errors: DoesNotFit with the numbers."""
    total = sum(needs.values())
    at = folder
    while not at.exists():
        at = at.parent
    room = shutil.disk_usage(at).free if free is None else free
    if total > room:
        parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in needs.items())
        raise DoesNotFit(
            f"the export needs {total / 1e9:.2f} GB ({parts}) and {room / 1e9:.2f} GB are free",
            file=folder,
            hint="free some space, export fewer types, or name another folder",
        )

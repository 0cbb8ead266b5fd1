"""Importance matrices: what ``llama-quantize --imatrix`` reads, from what a model's layers were driven by."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import FileProblem, Unsupported
from luthier.files import replaced
from luthier.llamacpp.gguf_file import Header, read_header
from luthier.llamacpp.policy import is_quantised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHED_TYPES = ("Q3_K_M", "Q4_K_S", "Q4_K_M")
"""File types that an importance matrix is made for; those of more bits lose little without one."""


def tensor_importance(
    source: Path, layers: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Importance by tensor of a 16-bit GGUF file.

    layers: path of a layer in the model that the file was converted from -> mean square of its inputs
    [in]. Layers that the file stores otherwise (experts of a mixture) are left out, as tensors without an
    entry are quantised without one. Errors: Unsupported where no layer is found again.
    """
    header = read_header(source)
    names = _names(header)
    rows = {tensor.name: tensor.shape for tensor in header.tensors if is_quantised(tensor)}
    found = {}
    for path, values in layers.items():
        name = f"{names(path)}.weight"
        if len(rows.get(name, ())) == 2 and rows[name][0] == len(values):
            found[name] = values
    if not found:
        raise Unsupported(
            f"no layer of the model is found again in {source.name}",
            hint="export without an importance matrix: export.imatrix: false",
        )
    return found


def _names(header: Header) -> Callable[[str], str | None]:
    """From a layer's path in the model to its name in the file, by the tables of the ``gguf`` package."""
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if header.architecture not in numbers:
        return lambda _: None
    layers = int(header.of_architecture("block_count", 0))
    find: Callable[[str], str | None] = gguf.get_tensor_name_map(
        numbers[header.architecture], layers
    ).get_name
    return find


def write_importance(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> Path:
    """Write llama.cpp's importance file (its binary format; load_legacy_imatrix in tools/quantize)."""
    import numpy as np

    with replaced(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<i", len(tensors)))
        for name, values in sorted(tensors.items()):
            raw = name.encode()
            file.write(struct.pack("<i", len(raw)) + raw)
            # llama.cpp divides by the number of calls: one, as these are means already
            file.write(struct.pack("<ii", 1, len(values)))
            file.write(np.ascontiguousarray(values, dtype="<f4").tobytes())
        named = b"training rows"
        file.write(struct.pack("<ii", 1, len(named)) + named)
    return path


def read_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    """Tensor name -> importance [in]. Errors: FileProblem."""
    import libgguf

    try:
        found: dict[str, NDArray[np.float32]] = libgguf.load_imatrix(path)
    except (OSError, ValueError, struct.error) as error:
        raise FileProblem(f"is no importance matrix ({error})", file=path) from None
    return found


def importance_array(tensors: Mapping[str, NDArray[np.float32]]) -> Any:
    """llama.cpp's ``llama_model_imatrix_data[]`` (include/llama.h), ended by an entry without a name."""
    import ctypes

    import numpy as np

    class Entry(ctypes.Structure):
        _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))

    found: Any = (Entry * (len(tensors) + 1))()
    kept = [np.ascontiguousarray(values, dtype=np.float32) for values in tensors.values()]
    for entry, name, values in zip(found, tensors, kept, strict=False):
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data, len(values)
    found.kept = kept  # the numbers live as long as the array
    return found

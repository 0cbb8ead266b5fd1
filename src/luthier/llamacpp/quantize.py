"""Quantises an F16, BF16 or F32 GGUF file: by llama.cpp where it is installed, else by our own writer.

``python -m luthier.llamacpp.quantize IN OUT TYPE`` is the child process of :func:`quantize`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from luthier.catalog.gguf_types import FILE_TYPES, TYPE_IDS
from luthier.errors import DoesNotFit, ToolchainError, Unsupported
from luthier.files import replaced
from luthier.llamacpp.gguf_file import Header, Tensor, padded, read_header, tensor_bytes
from luthier.llamacpp.importance import importance_array, read_importance
from luthier.llamacpp.policy import plan_types
from luthier.llamacpp.process import cores, run_child
from luthier.schema.protocols import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Quantiser = Literal["llama-quantize", "llama-cpp-python", "libgguf"]

CHUNK_VALUES = 1 << 21
"""Values that one thread turns at a time: 8 MiB as float32, so that memory does not grow with a tensor."""

_DROPPED = (
    "general.quantization_version",
    "general.file_type",
    "split.no",
    "split.count",
    "split.tensors.count",
)
_IMPORTANCE = "--importance="
_QUANTIZATION_VERSION = 2
"""ggml's GGML_QNT_VERSION."""


def quantiser() -> Quantiser:
    """Which quantiser is used here. Errors: ToolchainError when there is none."""
    if shutil.which("llama-quantize"):
        return "llama-quantize"
    if find_spec("llama_cpp") is not None and find_spec("llama_cpp.llama_cpp") is not None:
        return "llama-cpp-python"
    if find_spec("libgguf") is not None:
        return "libgguf"
    raise ToolchainError(
        "there is nothing here that quantises",
        hint="pip install 'luthier[export]', or put llama.cpp's llama-quantize on PATH",
    )


def predicted_size(source: Path, file_type: str) -> int:
    """Exact bytes of the quantised file, before it is written.

    source: an F16, BF16 or F32 GGUF file. Errors: FileProblem, Unsupported.
    """
    header = read_header(source)
    types = plan_types(header, file_type)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    data = sum(padded(tensor_bytes(kind, shapes[name]), _ALIGNMENT) for name, kind in types.items())
    return len(_head(header, types, file_type)) + data


def quantize(
    source: Path,
    out: Path,
    file_type: str,
    *,
    log: Path,
    using: Quantiser | None = None,
    importance: Path | None = None,
    timeout: float = 4 * 3600,
    progress: Progress | None = None,
) -> Quantiser:
    """Write ``out`` as ``file_type`` in a child process; it appears whole or not at all.

    importance: an importance matrix (`llamacpp.importance`). progress is told bytes of the source done and
    in all. Returns the quantiser that did it.
    Errors: Unsupported for an unknown type or an already quantised source, DoesNotFit, ToolchainError.
    """
    header = read_header(source)
    _refuse_quantised(header)
    needed = predicted_size(source, file_type)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise DoesNotFit(
            f"{out.name} needs {needed:,} bytes and {free:,} are free",
            file=out.parent,
            hint="free some space, choose a smaller type, or another folder",
        )
    tool = using or quantiser()
    with replaced(out) as partial:
        run_child(
            _command(tool, source, partial, file_type, importance),
            what=f"quantising to {file_type} with {tool}",
            log=log,
            timeout=timeout,
            on_line=None if progress is None else _line_reader(progress),
        )
        written = partial.stat().st_size if partial.exists() else 0
        if written == 0:
            raise ToolchainError(f"{tool} wrote no file", file=log, hint=f"read {log}")
    return tool


def _command(tool: Quantiser, source: Path, out: Path, file_type: str, importance: Path | None) -> list[str]:
    if tool == "llama-quantize":
        found = shutil.which("llama-quantize")
        assert found is not None
        weighed = [] if importance is None else ["--imatrix", str(importance)]
        return [found, *weighed, str(source), str(out), file_type, str(cores())]
    module = [sys.executable, "-P", "-m", "luthier.llamacpp.quantize", str(source), str(out), file_type]
    module += [] if importance is None else [f"{_IMPORTANCE}{importance}"]
    return [*module, "--llama-cpp-python"] if tool == "llama-cpp-python" else module


def _line_reader(progress: Progress) -> _LineReader:
    return _LineReader(progress)


@dataclass(frozen=True)
class _LineReader:
    """Turns the child's ``progress DONE TOTAL`` lines into calls."""

    progress: Progress

    def __call__(self, line: str) -> None:
        words = line.split()
        if len(words) == 3 and words[0] == "progress":
            self.progress(int(words[1]), int(words[2]))


def _refuse_quantised(header: Header) -> None:
    other = next((t for t in header.tensors if t.type not in ("F32", "F16", "BF16", "I32", "I64")), None)
    if other is not None:
        raise Unsupported(
            f"is already quantised ({other.name} is {other.type})",
            file=header.path,
            hint="quantise from the F16, BF16 or F32 file",
        )


# ---- the child ------------------------------------------------------------------------------------

_ALIGNMENT = 32
"""llama.cpp writes quantised files with GGUF's default alignment."""


def _head(header: Header, types: dict[str, str], file_type: str) -> bytes:
    """All bytes before the tensor data, as llama.cpp orders them."""
    import struct

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    kept = [key for key in header.spans if key not in _DROPPED and key != "general.alignment"]
    entries = [header.entry(key) for key in kept]
    u32 = 4
    entries += [
        text(key) + struct.pack("<II", u32, value)
        for key, value in (
            ("general.quantization_version", _QUANTIZATION_VERSION),
            ("general.file_type", FILE_TYPES[file_type].number),
        )
    ]
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(types), len(entries)), *entries]
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    offset = 0
    for name, kind in types.items():
        shape = shapes[name]
        parts.append(
            text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_IDS[kind], offset)
        )
        offset += padded(tensor_bytes(kind, shape), _ALIGNMENT)
    raw = b"".join(parts)
    return raw.ljust(padded(len(raw), _ALIGNMENT), b"\0")


def write_quantised(
    source: Path,
    out: Path,
    file_type: str,
    progress: Progress | None = None,
    *,
    importance: Path | None = None,
) -> None:
    """Write the quantised file with libgguf's kernels, a few rows of one tensor at a time."""
    header = read_header(source)
    weights = {} if importance is None else read_importance(importance)
    _refuse_quantised(header)
    types = plan_types(header, file_type)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    total = sum(tensor.bytes for tensor in tensors.values())
    done = 0
    with (
        source.open("rb") as reader,
        out.open("wb") as writer,
        ThreadPoolExecutor(cores()) as pool,
    ):
        writer.write(_head(header, types, file_type))
        for name, kind in types.items():
            tensor = tensors[name]
            if kind == tensor.type:
                _copy(reader, writer, tensor)
            else:
                _convert(reader, writer, tensor, kind, pool, weights.get(name))
            size = tensor_bytes(kind, tensor.shape)
            writer.write(b"\0" * (padded(size, _ALIGNMENT) - size))
            done += tensor.bytes
            if progress is not None:
                progress(done, total)


def _copy(reader: BinaryIO, writer: BinaryIO, tensor: Tensor) -> None:
    reader.seek(tensor.offset)
    left = tensor.bytes
    while left:
        part = reader.read(min(left, 1 << 22))
        writer.write(part)
        left -= len(part)


def _convert(  # noqa: PLR0917 (from where to where, as what)
    reader: BinaryIO,
    writer: BinaryIO,
    tensor: Tensor,
    kind: str,
    pool: ThreadPoolExecutor,
    weights: NDArray[np.float32] | None,
) -> None:
    """Rows are independent of each other, so chunks of rows are turned side by side, in order.

    weights: importance of the values of a row [in].
    """
    import numpy as np

    row = tensor.shape[0]
    rows_at_once = max(1, CHUNK_VALUES // row)
    row_bytes = tensor_bytes(tensor.type, (row,))
    workers = cores()

    def groups() -> Iterator[list[NDArray[np.uint8]]]:
        reader.seek(tensor.offset)
        group: list[NDArray[np.uint8]] = []
        for start in range(0, tensor.rows, rows_at_once):
            count = min(rows_at_once, tensor.rows - start)
            group.append(np.frombuffer(reader.read(count * row_bytes), np.uint8).reshape(count, row_bytes))
            if len(group) == workers:
                yield group
                group = []
        if group:
            yield group

    for group in groups():
        for turned in pool.map(lambda raw: _turn(raw, tensor.type, kind, tensor.name, weights), group):
            writer.write(turned.tobytes())


def _turn(
    raw: NDArray[np.uint8], stored: str, kind: str, name: str, weights: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """Raw rows of one type -> raw rows of another. [rows, bytes] uint8 both ways."""
    import libgguf
    import numpy as np

    values = _floats(raw, stored)
    if not np.isfinite(values).all():
        raise ToolchainError(
            f"{name} holds values that are not finite numbers",
            hint="the training diverged or the merge overflowed: look at the training curve; BF16 holds "
            "larger values than F16",
        )
    if kind == "F16":
        return np.ascontiguousarray(values.astype(np.float16)).view(np.uint8)
    turned: NDArray[np.uint8] = libgguf.quantize_rows(values, TYPE_IDS[kind], weights)
    return np.ascontiguousarray(turned)


def _floats(raw: NDArray[np.uint8], stored: str) -> NDArray[np.float32]:
    import numpy as np

    if stored == "F32":
        return raw.view(np.float32)
    if stored == "F16":
        return raw.view(np.float16).astype(np.float32)
    assert stored == "BF16", stored
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _by_llama_cpp_python(source: Path, out: Path, file_type: str, importance: Path | None) -> None:
    import ctypes
    from importlib import import_module

    llama_cpp = import_module("llama_cpp")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[file_type].number
    parameters.nthread = cores()
    weights = None if importance is None else importance_array(read_importance(importance))
    if weights is not None:
        parameters.imatrix = ctypes.cast(weights, ctypes.c_void_p)
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(parameters))
    if code != 0:
        raise ToolchainError(f"llama_model_quantize returned {code}", file=source)


def main(arguments: list[str]) -> int:
    """Entry of the child process."""
    source, out, file_type = Path(arguments[0]), Path(arguments[1]), arguments[2]
    named = next((word.removeprefix(_IMPORTANCE) for word in arguments if word.startswith(_IMPORTANCE)), None)
    importance = None if named is None else Path(named)

    def tell(done: int, total: int) -> None:
        sys.stdout.write(f"progress {done} {total}\n")
        sys.stdout.flush()

    try:
        if "--llama-cpp-python" in arguments:
            _by_llama_cpp_python(source, out, file_type, importance)
        else:
            write_quantised(source, out, file_type, tell, importance=importance)
    except ToolchainError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

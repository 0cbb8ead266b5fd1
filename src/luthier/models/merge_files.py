"""Merges adapters into a saved model tensor by tensor: no more of it is in memory than one tensor.

Format of the files: github.com/huggingface/safetensors, README. Read and written here without mapping
files into memory, whose pages would count as the process's own.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from luthier.files import replaced
from luthier.models.experts import PARTS, LoraExperts
from luthier.models.linear import DENSE
from luthier.models.load import quiet
from luthier.models.lora import LoraLinear, merged_weight
from luthier.models.new_tokens import NewRows, trained_rows
from luthier.models.packed import PackedLinear, dense_base

SHARD_BYTES = 5_000_000_000
"""A file of the merged model holds no more than this, unless one tensor does."""
PIECE_BYTES = 1 << 24
"""How much of a tensor that is only copied is in memory at a time."""
INDEX = "model.safetensors.index.json"

Change = Callable[[Tensor], Tensor]
"""From a weight as the base has it, in the model's type, to the merged one."""

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a safetensors file."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    merged: tuple[int, ...] | None = None
    """Its shape in the merged model, where that is another one."""

    def read(self) -> Tensor:
        """The whole tensor."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            raw = bytearray(self.end - self.start)
            file.readinto(raw)
        flat = torch.frombuffer(raw, dtype=self.dtype) if raw else torch.empty(0, dtype=self.dtype)
        return flat.reshape(self.shape)

    def pieces(self) -> Iterator[Tensor]:
        """The tensor's values in order, flat, a few at a time."""
        size = PIECE_BYTES // self.dtype.itemsize * self.dtype.itemsize
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.end - self.start
            while left:
                raw = bytearray(min(size, left))
                left -= file.readinto(raw)
                yield torch.frombuffer(raw, dtype=self.dtype)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder's safetensors files by name; empty where it has none, or of unknown type."""
    found: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _TYPES:
                return {}
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = Stored(path, name, _TYPES[entry["dtype"]], tuple(entry["shape"]), start, end)
    return found


@dataclass(frozen=True, slots=True)
class FilesMerge:
    """A merge that can be written from the base's files; the model that it was read from can go."""

    base: Path
    dtype: torch.dtype
    names: tuple[str, ...]
    """Tensors of the merged model, in its order."""
    changes: Mapping[str, Change]
    """Holds adapters alone, and the packed parts of a packed base."""
    grown: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of tables that are longer than the base's, for new tokens."""

    def write(self, out: Path, *, shard_bytes: int = SHARD_BYTES) -> list[Path]:
        """Write ``model*.safetensors``, with an index where they are several, one tensor after another.

        Equal to what a merge in memory saves: a weight is taken in the model's type, merged in fp32 and
        rounded once.
        """
        stored = stored_tensors(self.base)
        tensors = [replace(stored[name], merged=self.grown.get(name)) for name in self.names]
        shards = _shards(tensors, self.dtype, shard_bytes)
        files: list[Path] = []
        places: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            one = (
                f"model-{number:05d}-of-{len(shards):05d}.safetensors" if shards[1:] else "model.safetensors"
            )
            self._write_shard(out / one, shard)
            files.append(out / one)
            places |= {tensor.name: one for tensor in shard}
        if len(shards) > 1:
            total = sum(_bytes_as(tensor, self.dtype) for shard in shards for tensor in shard)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return files

    def _write_shard(self, path: Path, shard: list[Stored]) -> None:
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for tensor in shard:
            size = _bytes_as(tensor, self.dtype)
            stored_as = _NAMES[_type_as(tensor, self.dtype)]
            entries[tensor.name] = {
                "dtype": stored_as,
                "shape": tensor.merged or tensor.shape,
                "data_offsets": [at, at + size],
            }
            at += size
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        with replaced(path) as part, part.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for tensor in shard:
                kind = _type_as(tensor, self.dtype)
                if change := self.changes.get(tensor.name):
                    _dump(change(tensor.read().to(kind)).cpu(), file)
                else:
                    for piece in tensor.pieces():
                        _dump(piece.to(kind), file)


def files_merge(model: nn.Module, base: Path) -> FilesMerge | None:
    """How to merge a model's adapters from the files that it was loaded from.

    None where these hold other names or shapes than the model has (prefixes, experts one by one), where
    parts are kept in another type, or where more than adapters was trained: such a model is merged in
    memory.
    """
    stored = stored_tensors(base)
    changes: dict[str, Change] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLinear | PackedLinear):
            name = f"{path}.weight"
            shapes[name] = (layer.out_features, layer.in_features)
            changes[name] = _adapted(layer) if isinstance(layer, LoraLinear) else _packed(layer)
        elif isinstance(layer, LoraExperts):
            changes |= {f"{path}.{part}": partial(layer.merged, part) for part in PARTS}
    grown: dict[str, tuple[int, ...]] = {}
    apart = set()
    for path, table, own in trained_rows(model):
        name = f"{path}.weight"
        grown[name] = tuple(table.weight.shape)
        changes[name] = _lengthened(own)
        apart.add(f"{path}.new_tokens.rows")
    types = set()
    for name, parameter in model.named_parameters():
        if name in apart or name.rpartition(".")[2] in ("lora_A", "lora_B", "magnitude"):
            continue
        if parameter.requires_grad:
            return None
        shapes[name] = tuple(parameter.shape)
        types.add(parameter.dtype)
    shapes |= {name: tuple(value.shape) for name, value in model.named_buffers() if name in stored}
    if len(types) != 1 or any(name not in stored for name in shapes):
        return None
    if any(stored[name].shape != shape for name, shape in shapes.items() if name not in grown):
        return None
    order = [name for name in stored if name in shapes]
    return FilesMerge(base, types.pop(), tuple(order), changes, grown)


def _adapted(layer: LoraLinear) -> Change:
    parts = None if layer.kind == DENSE else layer.base_tensors()
    a, b, magnitude = layer.lora_A.detach(), layer.lora_B.detach(), layer.magnitude
    kind, width, scale, dtype = layer.kind, layer.in_features, layer.scale, layer.base_dtype

    def merged(weight: Tensor) -> Tensor:
        full = dense_base(parts, kind, width, torch.float32) if parts else weight.to(a.device, torch.float32)
        return merged_weight(full, a, b, scale, magnitude).to(dtype)

    return merged


def _lengthened(own: NewRows) -> Change:
    rows, places, length = own.rows.detach(), own.places, own.slots.shape[0]

    def merged(table: Tensor) -> Tensor:
        longer = table.new_zeros(length, *table.shape[1:])
        longer[: table.shape[0]] = table
        return longer.index_copy_(0, places.to(table.device), rows.to(table.device, table.dtype))

    return merged


def _packed(layer: PackedLinear) -> Change:
    parts, kind, width, dtype = layer.base_tensors(), layer.kind, layer.in_features, layer.base_dtype
    return lambda _: dense_base(parts, kind, width, dtype)


def _shards(tensors: list[Stored], dtype: torch.dtype, most: int) -> list[list[Stored]]:
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        own = _bytes_as(tensor, dtype)
        if shards[-1] and size + own > most:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += own
    return shards


def _type_as(tensor: Stored, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.dtype.is_floating_point else tensor.dtype


def _bytes_as(tensor: Stored, dtype: torch.dtype) -> int:
    return math.prod(tensor.merged or tensor.shape) * _type_as(tensor, dtype).itemsize


def _dump(values: Tensor, file: BinaryIO) -> None:
    values.contiguous().view(-1).view(torch.uint8).numpy().tofile(file)


def without_weights(model: Any) -> nn.Module:
    """A transformers model of the same architecture, its parameters on torch's meta device, buffers real."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    with quiet(), init_empty_weights(include_buffers=False):
        found = type(model)(model.config)
    found.tie_weights()  # the context made each of two tied parameters anew
    empty: nn.Module = found.eval()
    return empty


@torch.no_grad()
def outputs_from_files(
    empty: nn.Module, folder: Path, ask: Callable[[nn.Module], Tensor], *, device: torch.device | str = "cpu"
) -> Tensor:
    """What a saved model answers, each module's weights read when it is reached and let go after it.

    empty: of the folder's architecture (:func:`without_weights`).
    """
    stored = stored_tensors(folder)
    names: dict[int, str] = {}
    for name, parameter in empty.named_parameters(remove_duplicate=False):
        if name in stored:
            names[id(parameter)] = name
    handles = []
    for module in empty.modules():
        for key, value in module.named_buffers(recurse=False):
            setattr(module, key, value.to(device))
        held = module.named_parameters(recurse=False, remove_duplicate=False)
        own = {key: (parameter, stored[names[id(parameter)]]) for key, parameter in held}
        if own:
            handles += [
                module.register_forward_pre_hook(partial(_fetch, own, device)),
                module.register_forward_hook(partial(_let_go, own)),
            ]
    try:
        return ask(empty)
    finally:
        for handle in handles:
            handle.remove()


_Own = Mapping[str, tuple[nn.Parameter, Stored]]


def _fetch(own: _Own, device: torch.device | str, module: nn.Module, _: Any) -> None:
    for key, (_parameter, stored) in own.items():
        setattr(module, key, nn.Parameter(stored.read().to(device), requires_grad=False))


def _let_go(own: _Own, module: nn.Module, *_: Any) -> None:
    for key, (parameter, _stored) in own.items():
        setattr(module, key, parameter)

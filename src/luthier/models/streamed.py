"""Frozen weights of layers that wait in the host's memory and come to the device one layer ahead.

Two places on the device, each as large as the largest layer, take turns: while one layer computes, the next
is copied into the other place by a stream of its own, forwards and backwards. Between its turns a layer's
frozen tensors are those on the host, so that whoever reads them finds them. On a CPU the same happens
without streams.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import DoesNotFit, TrainingError
from luthier.sizing.offload import LEAST

ALIGNED = 256
"""Bytes to a multiple of which each tensor begins, as kernels want it."""
PAGE = 4096
"""Bytes that are locked together: a page is locked once, so that no two layers share one."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One frozen tensor of a layer and where it lies among the layer's bytes."""

    tensor: Tensor
    start: int
    size: int

    def of(self, place: Tensor) -> Tensor:
        """The tensor's values among a layer's bytes."""
        flat = place[self.start : self.start + self.size].view(self.tensor.dtype)
        return flat.view(self.tensor.shape)


class Streamed:
    """The frozen weights of a model's layers, in their order."""

    def __init__(self, layers: Sequence[nn.Module], device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.parts = [_parts_of(layer) for layer in layers]
        self.sizes = [
            _whole(max((part.start + part.size for part in parts), default=0)) for parts in self.parts
        ]
        self.host = [self._moved(parts, size) for parts, size in zip(self.parts, self.sizes, strict=True)]
        self.places = [
            torch.empty(max(self.sizes, default=0), dtype=torch.uint8, device=device) for _ in range(2)
        ]
        self.holds: list[int | None] = [None, None]
        """Which layer each place holds, or is about to."""
        self.copies = 0
        """Layers that were copied so far."""
        if self.cuda:
            cuda: Any = torch.cuda
            self.side = cuda.Stream(device)
            self.ready = [cuda.Event() for _ in range(2)]
            self.free = [cuda.Event() for _ in range(2)]
            self.side.wait_stream(torch.cuda.current_stream(device))
            for place in self.places:
                place.record_stream(self.side)  # not given away while a copy is under way
            weakref.finalize(self, _unpin, [one for one in self.host if one.numel()])

    def _moved(self, parts: list[_Part], size: int) -> Tensor:
        """A layer's tensors end to end in the host's memory; they are these from now on."""
        bytes_ = torch.empty(size, dtype=torch.uint8)
        if self.cuda and size:
            bytes_ = _pinned(size)
        for part in parts:
            own = part.of(bytes_)
            own.copy_(part.tensor.data)
            part.tensor.data = own
        return bytes_

    @contextmanager
    def on_device(self, index: int, after: int | None) -> Iterator[None]:
        """Within the block a layer's frozen tensors are on the device, those of ``after`` on their way."""
        at = self._place_of(index)
        if self.cuda:
            torch.cuda.current_stream(self.device).wait_event(self.ready[at])
        if after is not None and after not in self.holds:
            self._copy(after, 1 - at)
        for part in self.parts[index]:
            part.tensor.data = part.of(self.places[at])
        try:
            yield
        finally:
            for part in self.parts[index]:
                part.tensor.data = part.of(self.host[index])
            if self.cuda:
                self.free[at].record(torch.cuda.current_stream(self.device))

    def verify(self) -> None:
        """Bring every layer once, one ahead, and hold what arrived against what waits. Errors: TrainingError.

        What drivers and streams make of the copies is seen so on the machine at hand, before any step.
        """
        arrived = []
        for index, size in enumerate(self.sizes):
            after = index + 1 if index + 1 < len(self.sizes) else None
            with self.on_device(index, after):
                arrived.append(_sum(self.places[self.holds.index(index)], size))
        for index, (size, found) in enumerate(zip(self.sizes, arrived, strict=True)):
            if int(found) != int(_sum(self.host[index], size)):
                raise TrainingError(
                    f"layer {index} did not arrive on {self.device} as it waits in the host's memory",
                    hint="training.offload_parameters=false, or method.name=qlora; update the GPU's driver",
                )

    def _place_of(self, index: int) -> int:
        if index not in self.holds:
            self._copy(index, 0 if self.holds[0] is None else 1)
        return self.holds.index(index)

    def _copy(self, index: int, at: int) -> None:
        """Bring a layer to a place, once what the place held has been computed with."""
        self.holds[at] = index
        self.copies += 1
        size = self.sizes[index]
        if not self.cuda:
            self.places[at][:size].copy_(self.host[index][:size])
            return
        self.side.wait_event(self.free[at])
        with torch.cuda.stream(self.side):
            self.places[at][:size].copy_(self.host[index][:size], non_blocking=True)
            self.ready[at].record(self.side)


class StreamedLayer:
    """One layer of `Streamed`: what stands in its ``streamed``."""

    def __init__(self, chain: Streamed, index: int) -> None:
        self.chain, self.index = chain, index

    def forward(self, *, again: bool = False) -> Any:
        """A block of the forward pass. again: the first layer comes after the last (evaluation, answers)."""
        after, count = self.index + 1, len(self.chain.parts)
        return self.chain.on_device(self.index, (0 if again else None) if after == count else after)

    def backward(self) -> Any:
        """A block of the backward pass: the layer before this one comes next."""
        return self.chain.on_device(self.index, self.index - 1 if self.index else None)


class _Plain:
    """A layer's call outside of training.

    It stands in the layer, which it must not hold: a model that nobody asks for is gone at once then, and
    the memory that is locked for it.
    """

    def __init__(self, run: Callable[..., Any], streamed: StreamedLayer) -> None:
        self.run, self.streamed = weakref.WeakMethod(run), streamed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self.run()
        assert run is not None, "the layer is there: it is what is called"
        with self.streamed.forward(again=True):
            return run(*args, **kwargs)


def stream_layers(model: Any, layers: Sequence[nn.Module], device: torch.device) -> Streamed:
    """Leave the layers' frozen weights in the host's memory and move all else to the device, in place.

    Errors: DoesNotFit for memory that cannot be locked, TrainingError where copies do not arrive.
    """
    chain = Streamed(layers, device)
    if chain.cuda:
        chain.verify()
    waiting = {id(part.tensor) for parts in chain.parts for part in parts}
    _move(model, device, waiting)
    for index, layer in enumerate(layers):
        place: Any = layer
        place.streamed = StreamedLayer(chain, index)
        # The slot that nn.Module.compile fills, called in place of the layer's own forward.
        place._compiled_call_impl = _Plain(layer._call_impl, place.streamed)
    return chain


def settle_on_host(model: Any) -> bool:
    """Bring a model whose layers were streamed to the host's memory; False, and nothing, for any other."""
    streamed = [module for module in model.modules() if "streamed" in module.__dict__]
    for layer in streamed:
        layer._compiled_call_impl = None
        del layer.streamed
    if streamed:
        _move(model, torch.device("cpu"), set())
    return bool(streamed)


def _move(model: nn.Module, device: torch.device, but: set[int]) -> None:
    """Move tensors in place, so that those that are shared stay so."""
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in but and tensor.device != device:
            tensor.data = tensor.data.to(device)


def _parts_of(layer: nn.Module) -> list[_Part]:
    """Frozen weights of a layer that are large enough, each once."""
    found: list[_Part] = []
    seen: set[int] = set()
    at = 0
    for module in layer.modules():
        packed = set(getattr(module, "base_names", ()))
        own: list[Tensor] = [one for one in module.parameters(recurse=False) if not one.requires_grad]
        own += [one for name, one in module.named_buffers(recurse=False) if name in packed]
        for tensor in own:
            size = tensor.numel() * tensor.element_size()
            if id(tensor) in seen or size < LEAST:
                continue
            seen.add(id(tensor))
            found.append(_Part(tensor, at, size))
            at += _whole(size)
    return found


def _whole(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _sum(place: Tensor, size: int) -> Tensor:
    """One number that stands for so many bytes."""
    return place[:size].view(torch.int32).sum(dtype=torch.int64)


def _pinned(size: int) -> Tensor:
    """Whole pages of locked memory, for copies beside computing; torch's pool rounds up to powers of two."""
    whole = -(-size // PAGE) * PAGE
    raw = torch.empty(whole + PAGE, dtype=torch.uint8)
    start = -raw.data_ptr() % PAGE
    bytes_ = raw[start : start + whole]
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if code := int(cudart.cudaHostRegister(bytes_.data_ptr(), whole, 0)):
        raise DoesNotFit(
            f"{whole / 2**20:.0f} MiB of the host's memory cannot be locked for copies to the GPU "
            f"(CUDA error {code})",
            hint="allow more locked memory (ulimit -l unlimited), or training.offload_parameters=false",
        )
    return bytes_


def _unpin(held: list[Tensor]) -> None:
    torch.cuda.synchronize()
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for one in held:
        cudart.cudaHostUnregister(one.data_ptr())

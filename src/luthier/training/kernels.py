"""Triton's kernels for what a step does to all logits and to all weights: each number read and written once.

Needs the package ``triton``, which comes with torch's builds for CUDA on Linux; where it is missing
`training.fused` says so, and torch's own operations do the same. Everything here is launched without
asking the device for anything.
"""
# ruff: noqa: N803, PLR0917 (Triton writes constants so, and takes arguments by place)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

CROSS_ENTROPY_BLOCK, CROSS_ENTROPY_WARPS = 8192, 8
CHUNK = 8192
"""Numbers of a weight that one program of an update works on."""
UPDATE_BLOCK, UPDATE_WARPS = 1024, 8
"""The fastest of those tried on an H100 (benchmarks/speed/fused.py)."""


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Where Triton launches its kernels: on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@triton.jit
def _capped(value, softcap):
    """softcap tanh(value / softcap), by exp: right at both ends."""
    return softcap * (1.0 - 2.0 / (tl.exp2(value * (2.0 * LOG2E / softcap)) + 1.0))


@triton.jit
def _cross_entropy(  # one program a row
    logits,
    targets,
    losses,
    stride,
    multiplier,
    softcap,
    words: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target = tl.load(targets + row)
    lane = tl.arange(0, BLOCK)
    blocks: tl.constexpr = (words + BLOCK - 1) // BLOCK
    if target < 0:  # a row that does not count
        tl.store(losses + row, 0.0)
        nothing = tl.zeros((BLOCK,), dtype=logits.dtype.element_ty)
        for block in range(blocks):
            place = block * BLOCK + lane
            tl.store(start + place, nothing, mask=place < words)
    else:
        # Each lane keeps its own maximum and sum: one exponential a logit, and nothing to wait for.
        most = tl.full((BLOCK,), -1e30, dtype=tl.float32)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for block in range(blocks):
            place = block * BLOCK + lane
            raw = tl.load(
                start + place, mask=place < words, other=float("-inf"), eviction_policy="evict_last"
            )
            value = raw.to(tl.float32) * multiplier
            if CAPPED:
                value = tl.where(place < words, _capped(value, softcap), float("-inf"))
            value = value * LOG2E
            ahead = value - most
            small = tl.exp2(-tl.abs(ahead))
            total = tl.where(ahead > 0, total * small + 1.0, total + small)
            most = tl.maximum(most, value)
        highest = tl.max(most, axis=0)
        norm = highest + tl.log2(tl.sum(total * tl.exp2(most - highest), axis=0))
        chosen = tl.load(start + target).to(tl.float32) * multiplier
        if CAPPED:
            chosen = _capped(chosen, softcap)
        tl.store(losses + row, norm * LN2 - chosen)
        tl.debug_barrier()  # the chosen logit is read before it is overwritten
        # From the end: what was read last is still in the cache.
        for back in range(blocks):
            place = (blocks - 1 - back) * BLOCK + lane
            raw = tl.load(start + place, mask=place < words, other=0.0, eviction_policy="evict_first")
            value = raw.to(tl.float32) * multiplier
            slope = multiplier
            if CAPPED:
                value = _capped(value, softcap)
                slope = multiplier * (1.0 - (value / softcap) * (value / softcap))
            grad = tl.exp2(value * LOG2E - norm)
            grad = tl.where(place == target, grad - 1.0, grad) * slope
            tl.store(start + place, grad.to(logits.dtype.element_ty), mask=place < words)


def cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    losses: Tensor,
    *,
    multiplier: float = 1.0,
    softcap: float | None = None,
    block: int = CROSS_ENTROPY_BLOCK,
    warps: int = CROSS_ENTROPY_WARPS,
) -> None:
    """Turn logits [rows, vocab] into the gradient of their summed cross-entropies, in place.

    targets: [rows] of int64; a row with a negative one does not count: its loss and gradient are 0.
    losses: [rows] of fp32, written. Values are ``softcap tanh(multiplier logit / softcap)``, in fp32.
    """
    rows, words = logits.shape
    assert logits.stride(1) == 1
    assert targets.is_contiguous()
    assert losses.is_contiguous()
    if not rows:
        return
    with _on(logits.device):
        _cross_entropy[(rows,)](
            logits,
            targets,
            losses,
            logits.stride(0),
            float(multiplier),
            float(softcap or 1.0),
            words=words,
            CAPPED=bool(softcap),
            BLOCK=min(block, triton.next_power_of_2(words)),
            num_warps=warps,
        )


KINDS: dict[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


class Table:
    """Tensors of one update, in the device's memory: addresses, sizes, and which program has which chunk.

    Copied there anew only when an address has changed.
    """

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self._sizes: list[int] = []
        self.addresses = self.sizes = self.chunks = torch.empty(0)
        self.aligned, self.count = False, 0
        self.kinds: list[Any] = []

    def fill(self, fields: Sequence[Sequence[Tensor]]) -> Table:
        """fields: lists of tensors of equal lengths, such as weights, gradients, means and squares.

        All contiguous, those of a field of one type. They must live until the launch that reads the table.
        """
        first = fields[0]
        device, self.count = first[0].device, len(first)
        self.kinds = [KINDS[field[0].dtype] for field in fields]
        sizes = [tensor.numel() for tensor in first]
        if sizes != self._sizes:
            self._sizes = sizes
            pieces = torch.tensor([-(-size // CHUNK) for size in sizes], dtype=torch.int64)
            whose = torch.repeat_interleave(torch.arange(len(sizes)), pieces)
            begun = torch.repeat_interleave(pieces.cumsum(0) - pieces, pieces)
            which = torch.arange(len(whose)) - begun
            self.chunks = torch.stack((whose, which), dim=1).to(torch.int32).to(device)
            self.sizes = torch.tensor(sizes, dtype=torch.int64).to(device)
        addresses = [tensor.data_ptr() for field in fields for tensor in field]
        if addresses != self._addresses:
            self._addresses = addresses
            self.aligned = all(address % 16 == 0 for address in addresses)
            made = torch.tensor(addresses, dtype=torch.int64)
            if device.type == "cuda":
                made = made.pin_memory()
            self.addresses = made.to(device, non_blocking=True)
        return self


@triton.jit
def _at(addresses, field, count, whose, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Where a tensor of the table begins."""
    found = tl.load(addresses + field * count + whose).to(tl.pointer_type(KIND))
    if ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def _part(sizes, chunks, CHUNK: tl.constexpr):
    """A program's tensor, where its chunk begins there, and how many numbers are left from there on."""
    program = tl.program_id(0).to(tl.int64)
    whose = tl.load(chunks + 2 * program)
    begin = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    return whose, begin, tl.load(sizes + whose) - begin


@triton.jit
def _adamw(
    addresses,
    sizes,
    chunks,
    count,
    factor,
    lerp,
    second,
    fresh,
    root,
    eps,
    kept,
    rate,
    WEIGHT: tl.constexpr,
    GRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    whose, begin, left = _part(sizes, chunks, CHUNK)
    scale = tl.load(factor)
    masters = _at(addresses, 0, count, whose, tl.float32, ALIGNED) + begin
    grads = _at(addresses, 1, count, whose, GRAD, ALIGNED) + begin
    means = _at(addresses, 2, count, whose, tl.float32, ALIGNED) + begin
    squares = _at(addresses, 3, count, whose, tl.float32, ALIGNED) + begin
    for at in range(0, CHUNK, BLOCK):
        place = at + tl.arange(0, BLOCK)
        inside = place < left
        grad = tl.load(grads + place, mask=inside, other=0.0).to(tl.float32) * scale
        master = tl.load(masters + place, mask=inside, other=0.0)
        mean = tl.load(means + place, mask=inside, other=0.0)
        square = tl.load(squares + place, mask=inside, other=0.0)
        mean = mean + lerp * (grad - mean)
        square = square * second + fresh * grad * grad
        master = master * kept - rate * (mean / (tl.sqrt(square) / root + eps))
        tl.store(masters + place, master, mask=inside)
        tl.store(means + place, mean, mask=inside)
        tl.store(squares + place, square, mask=inside)
        if WEIGHT is not None:
            weights = _at(addresses, 4, count, whose, WEIGHT, ALIGNED) + begin
            tl.store(weights + place, master.to(WEIGHT), mask=inside)


def adamw_(
    table: Table,
    *,
    factor: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    done: int,
) -> None:
    """AdamW on fp32 masters and moments, and the weights that follow their masters, if any.

    table: of masters, gradients, means, squares, and the weights where they follow. factor: what gradients
    are multiplied with, fp32 on the device; done: updates counting this one.
    """
    first, second = betas
    with _on(table.addresses.device):
        _adamw[(len(table.chunks),)](
            table.addresses,
            table.sizes,
            table.chunks,
            table.count,
            factor,
            1 - first,
            second,
            1 - second,
            (1 - second**done) ** 0.5,
            eps,
            1 - lr * weight_decay,
            lr / (1 - first**done),
            WEIGHT=table.kinds[4] if len(table.kinds) > 4 else None,
            GRAD=table.kinds[1],
            ALIGNED=table.aligned,
            CHUNK=CHUNK,
            BLOCK=UPDATE_BLOCK,
            num_warps=UPDATE_WARPS,
        )


@triton.jit
def _mixed(bits):
    """A 32-bit number whose every bit depends on every bit given (Wellons' lowbias32)."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def _by_chance(value, chance, KIND: tl.constexpr):
    """fp32 in KIND; to bf16 up or down, by sixteen random bits."""
    if tl.bfloat16 == KIND:
        bits = value.to(tl.int32, bitcast=True)
        carried = ((bits + chance) & -65536).to(tl.float32, bitcast=True)
        return tl.where(tl.abs(value) < float("inf"), carried, value).to(tl.bfloat16)
    return value.to(KIND)


@triton.jit
def _rounded_adamw(
    addresses,
    sizes,
    chunks,
    count,
    seed,
    factor,
    lerp,
    fresh,
    there,
    eps,
    kept,
    rate,
    KIND: tl.constexpr,
    KAHAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    whose, begin, left = _part(sizes, chunks, CHUNK)
    scale = tl.load(factor)
    drawn = tl.load(seed)
    key = _mixed(drawn.to(tl.uint32) + tl.program_id(0).to(tl.uint32))
    key = _mixed(key ^ (drawn >> 32).to(tl.uint32))
    weights = _at(addresses, 0, count, whose, KIND, ALIGNED) + begin
    grads = _at(addresses, 1, count, whose, KIND, ALIGNED) + begin
    means = _at(addresses, 2, count, whose, KIND, ALIGNED) + begin
    squares = _at(addresses, 3, count, whose, KIND, ALIGNED) + begin
    for at in range(0, CHUNK, BLOCK):
        place = at + tl.arange(0, BLOCK)
        inside = place < left
        grad = tl.load(grads + place, mask=inside, other=0.0).to(tl.float32) * scale
        weight = tl.load(weights + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(means + place, mask=inside, other=0.0).to(tl.float32)
        square = tl.load(squares + place, mask=inside, other=0.0).to(tl.float32)
        mean = mean + lerp * (grad - mean)
        square = square + fresh * (grad * grad - square)
        wanted = weight * kept + rate * (mean / (tl.sqrt(square / there) + eps))
        draw = _mixed((place.to(tl.uint32) * 0x9E3779B9) ^ key)
        tl.store(means + place, _by_chance(mean, (draw & 0xFFFF).to(tl.int32), KIND), mask=inside)
        tl.store(squares + place, _by_chance(square, (draw >> 16).to(tl.int32), KIND), mask=inside)
        if KAHAN:
            losts = _at(addresses, 4, count, whose, KIND, ALIGNED) + begin
            wanted += tl.load(losts + place, mask=inside, other=0.0).to(tl.float32)
            near = wanted.to(KIND)
            tl.store(weights + place, near, mask=inside)
            tl.store(losts + place, (wanted - near.to(tl.float32)).to(KIND), mask=inside)
        else:
            draw = _mixed(draw + key)
            tl.store(weights + place, _by_chance(wanted, (draw & 0xFFFF).to(tl.int32), KIND), mask=inside)


def rounded_adamw_(table: Table, *, seed: Tensor, factor: Tensor, numbers: Sequence[float]) -> None:
    """`training.rounding._update_part` on many weights at once.

    table: of weights, gradients, means, squares, and for Kahan's way what rounding has lost, all of one
    type. seed: one int64 on the device, from which all draws follow; factor: what gradients are multiplied
    with, fp32 on the device.
    """
    with _on(table.addresses.device):
        _rounded_adamw[(len(table.chunks),)](
            table.addresses,
            table.sizes,
            table.chunks,
            table.count,
            seed,
            factor,
            *numbers,
            KIND=table.kinds[0],
            KAHAN=len(table.kinds) > 4,
            ALIGNED=table.aligned,
            CHUNK=CHUNK,
            BLOCK=UPDATE_BLOCK,
            num_warps=UPDATE_WARPS,
        )

"""The kernels of losses and updates beside what they stand for and what the memory's rate allows, on CUDA.

    python benchmarks/speed/fused.py OUT.jsonl [0.5b] [3b]

One row a kernel and shape: milliseconds (median of several), bytes that must be moved, GB/s of these.
`copy` is what a plain copy reaches on the same card. Ends in about a minute.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.training import kernels, rounding

CUDA = torch.device("cuda")
BLOCKS = ((1024, 4), (1024, 8), (512, 4), (512, 8))
SHAPES = {
    # hidden, inner, key and value width, layers, vocabulary, rows of logits at once
    "0.5b": (896, 4864, 128, 24, 151_936, 3_533),
    "3b": (2048, 11_008, 256, 36, 151_936, 3_533),
}


def sizes(name: str) -> list[int]:
    """Numbers of each weight of a Qwen2.5 of that size."""
    h, inner, narrow, layers, vocab, _ = SHAPES[name]
    layer = [h * h, h, narrow * h, narrow, narrow * h, narrow, h * h, inner * h, inner * h, inner * h, h, h]
    return [vocab * h, *(layer * layers), h]


def milliseconds(work: Callable[[], object], times: int = 7) -> float:
    work()
    work()
    torch.cuda.synchronize()
    found = []
    for _ in range(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return statistics.median(found)


class Rows:
    def __init__(self, out: Path) -> None:
        self.out = out

    def add(self, shape: str, kernel: str, work: Callable[[], object], moved: float) -> None:
        try:
            ms: float | None = milliseconds(work)
            row = {"shape": shape, "kernel": kernel, "ms": ms, "gb": moved / 1e9, "gb_s": moved / 1e6 / ms}
        except Exception as error:
            row = {"shape": shape, "kernel": kernel, "error": f"{type(error).__name__}: {error}"[:600]}
        text = json.dumps(row)
        print(text, flush=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        torch.cuda.empty_cache()


def of_copy(rows: Rows) -> None:
    source = torch.empty(1 << 30, dtype=torch.uint8, device=CUDA)
    into = torch.empty_like(source)
    rows.add("", "copy", lambda: into.copy_(source), 2.0 * source.numel())


def compiled_slope(logits: Tensor, wanted: Tensor) -> Tensor:
    """What torch's compiler makes two kernels of."""
    values = logits.float()
    norm = values.logsumexp(dim=1, keepdim=True)
    chosen = torch.arange(logits.shape[1], device=logits.device)[None] == wanted
    found = (norm - values.gather(1, wanted)).sum()
    logits.copy_((values - norm).exp() - chosen.float())
    return found


def of_logits(rows: Rows, shape: str) -> None:
    """A chunk of logits into its gradient: read and written once where the cache serves the second pass."""
    vocab, count = SHAPES[shape][-2:]
    logits = torch.randn(count, vocab, device=CUDA, dtype=torch.bfloat16)
    targets = torch.randint(0, vocab, (count,), device=CUDA)
    found = torch.empty(count, device=CUDA)
    moved = 4.0 * logits.numel()
    slope = torch.compile(compiled_slope)
    rows.add(shape, "loss, compiled", lambda: slope(logits, targets[:, None]), moved)
    for block, warps in ((4096, 4), (4096, 8), (8192, 4), (8192, 8), (8192, 16)):

        def work(block: int = block, warps: int = warps) -> None:
            kernels.cross_entropy_(logits, targets, found, block=block, warps=warps)

        rows.add(shape, f"loss, block {block}, {warps} warps", work, moved)


def of_head(rows: Rows, shape: str) -> None:
    """A chunk's share of the head's gradient: added up beside, or within the product."""
    hidden, *_, vocab, count = SHAPES[shape]
    grad = torch.randn(count, vocab, device=CUDA, dtype=torch.bfloat16)
    part = torch.randn(count, hidden, device=CUDA, dtype=torch.bfloat16)
    total = torch.zeros(vocab, hidden, device=CUDA)
    moved = 2.0 * grad.numel() + 8.0 * total.numel()
    rows.add(shape, "head, product and sum", lambda: total.add_(grad.t() @ part), moved)
    into = torch.ops.aten.addmm.dtype_out
    rows.add(shape, "head, sum within", lambda: into(total, grad.t(), part, torch.float32, out=total), moved)
    bf16 = torch.zeros(vocab, hidden, device=CUDA, dtype=torch.bfloat16)
    rows.add(shape, "head, bf16 sum within", lambda: bf16.addmm_(grad.t(), part), moved)


def made(shape: str, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(size, device=CUDA, dtype=dtype) * 0.01 for size in sizes(shape)]


def of_chance(rows: Rows, shape: str) -> None:
    """Updates of weights held in bf16 alone."""
    grads, weights, means, squares, lost = (made(shape, torch.bfloat16) for _ in range(5))
    total = sum(sizes(shape))
    rows.add(shape, "norm, bf16", lambda: torch._foreach_norm(grads, 2, dtype=torch.float32), 2.0 * total)
    numbers = (0.1, 0.001, 0.002, 1e-8, 0.999, -0.001)
    seed, factor = torch.tensor([12345], device=CUDA), torch.ones((), device=CUDA)
    for one in squares:
        one.abs_()

    def before(kahan: bool) -> None:
        for at in range(len(weights)):
            rest = (lost[at],) if kahan else ()
            compiled(weights[at], grads[at], means[at], squares[at], *rest, numbers=on)

    table, compiled = kernels.Table(), torch.compile(rounding._update_part, dynamic=True)
    on = torch.tensor(numbers, device=CUDA).unbind()

    def now(kahan: bool, block: int, warps: int) -> None:
        kernels.UPDATE_BLOCK, kernels.UPDATE_WARPS = block, warps
        kernels.rounded_adamw_(
            table.fill([weights, grads, means, squares, *([lost] if kahan else [])]),
            seed=seed, factor=factor, numbers=numbers,
        )  # fmt: skip

    for kahan in (False, True):
        moved = (18.0 if kahan else 14.0) * total
        name = "kahan" if kahan else "by chance"
        rows.add(shape, f"{name}, compiled", partial(before, kahan), moved)
        for block, warps in BLOCKS:
            rows.add(shape, f"{name}, block {block}, {warps} warps", partial(now, kahan, block, warps), moved)


def of_masters(rows: Rows, shape: str) -> None:
    """AdamW with fp32 masters, from gradients in bf16 to weights in bf16."""
    grads, weights = made(shape, torch.bfloat16), made(shape, torch.bfloat16)
    masters, means, squares = (made(shape, torch.float32) for _ in range(3))
    moved = 28.0 * sum(sizes(shape))
    for one in squares:
        one.abs_()
    settings: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    table, factor = kernels.Table(), torch.ones((), device=CUDA)

    def now(block: int, warps: int) -> None:
        kernels.UPDATE_BLOCK, kernels.UPDATE_WARPS = block, warps
        fields = [masters, grads, means, squares, weights]
        kernels.adamw_(table.fill(fields), factor=factor, done=7, **settings)

    for block, warps in BLOCKS:
        rows.add(shape, f"adamw, block {block}, {warps} warps", partial(now, block, warps), moved)
    means.clear()
    squares.clear()
    theirs = [one.requires_grad_() for one in masters]
    adamw = torch.optim.AdamW(theirs, fused=True, **settings)

    def before() -> None:
        for one, grad in zip(theirs, grads, strict=True):
            one.grad = grad.float()
        norm = torch.nn.utils.get_total_norm([one.grad for one in theirs if one.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(theirs, 1.0, norm)
        adamw.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, [one.detach() for one in theirs])

    rows.add(shape, "adamw before: sum, norm, clip, torch's update, rounding back", before, moved)


def main(out: str, *shapes: str) -> None:
    rows = Rows(Path(out))
    print(torch.cuda.get_device_name(), torch.__version__, kernels.triton.__version__)
    of_copy(rows)
    for shape in shapes or SHAPES:
        for part in (of_logits, of_head, of_chance, of_masters):
            part(rows, shape)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(*sys.argv[1:])

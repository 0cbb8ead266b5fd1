"""Training speed and memory of one configuration after another, through Luthier's own loop, on CUDA.

    python benchmarks/speed/step.py OUT.jsonl ROW [ROW ...]

ROW: ``name=value,...`` with model, method (lora, qlora, full), base (float8), float8 (1: products of a full
fine-tuning), tokens (a micro-batch), micro
(micro-batches a step), keep (none, selective, full, offload), layers (recomputed ones), compile, docs
(fixed, packed), steps, profile, graphs (launches recorded), warm (steps not timed), shard, reshard, along.
Each row builds its model unless the row before has the same, trains two steps to warm up and then ``steps``
more, and reports the median step. Under torchrun the processes share each step's micro-batches; with
``shard=N`` so many of them hold one model together (FSDP2; fewer than all: HSDP) and keep it gathered as
``reshard`` says (layer, backward, step), with ``along=context`` (tensor, pipeline, expert) all work on the
same micro-batches in that way. `--shard N` before the rows is the same for all of them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from shapes import SHAPES, build, flops

from luthier.models.float8_training import float8_products
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, Parallel, TrainingChoice, without_masters
from luthier.tasks.causal import causal_objective
from luthier.tasks.parallel import take_part
from luthier.training.layers import layers_of
from luthier.training.loop import fit
from luthier.training.sharding import at_once, divide
from luthier.training.world import ALONE, World, together

DATASHEET = 989.4e12
DEFAULTS = {
    "model": "llama-3.1-8b", "method": "lora", "base": "", "tokens": "8192", "micro": "1", "keep": "none",
    "layers": "", "compile": "1", "docs": "fixed", "length": "2048", "steps": "6", "profile": "0",
    "adapter": "float32", "optimizer": "adamw", "shard": "1",
    "reshard": "layer", "along": "", "graphs": "0", "warm": "", "float8": "0",
}  # fmt: skip
WARM, SETTLED = 2, 8
"""Steps that are not timed; where launches are recorded the first four are watched, then one is recorded."""


class EnoughError(Exception):
    """All steps that were wanted are done."""


def lengths_of(row: dict[str, str]) -> list[int]:
    """Documents of one micro-batch: all of one length, or log-normal ones of 400 tokens in the median."""
    total, longest = int(row["tokens"]), int(row["length"])
    if row["docs"] == "fixed":
        return [longest] * (total // longest)
    draw, found = random.Random(1), []
    while (room := total - sum(found)) > 0:
        found.append(min(room, longest, max(16, int(draw.lognormvariate(6.0, 1.0)))))
    return found


def untimed(row: dict[str, str]) -> int:
    """Steps before the timed ones."""
    return int(row["warm"]) if row["warm"] else SETTLED if row["graphs"] == "1" else WARM


class Source:
    """The same micro-batches at every step; ids differ."""

    def __init__(self, row: dict[str, str], device: str) -> None:
        lengths, vocab = lengths_of(row), SHAPES[row["model"]].vocab_size
        device = "cpu" if row["graphs"] == "1" else device  # where a run's batches come from
        generator = torch.Generator().manual_seed(0)
        self.made = []
        self.most = untimed(row) + int(row["steps"]) + (row["profile"] == "1")
        for _ in range(int(row["micro"])):
            ids = torch.randint(0, vocab, (1, sum(lengths)), generator=generator)
            positions = torch.cat([torch.arange(length) for length in lengths])[None]
            names = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths, 1)])[None]
            fields = {"input_ids": ids, "labels": ids, "position_ids": positions, "document_ids": names}
            self.made.append(SimpleNamespace(**{k: v.to(device) for k, v in fields.items()}))

    def steps(self, epoch: int) -> int:  # noqa: ARG002
        return 1_000_000

    def batches(self, epoch: int, step: int) -> list[Any]:  # noqa: ARG002
        if step >= self.most:
            raise EnoughError  # in every process at the same step
        return self.made

    def rows(self, epoch: int, step: int) -> list[str]:  # noqa: ARG002
        return []


def adapted(row: dict[str, str], device: str) -> Any:
    packed = {"qlora": "nf4"}.get(row["method"], row["base"]) or None
    model = build(row["model"], dtype=torch.bfloat16, device=device, packed=packed)
    if row["method"] == "full":
        return model.requires_grad_(True)
    add_lora(model, Lora(rank=16), dtype=getattr(torch, row["adapter"]))
    return model


def measure(model: Any, row: dict[str, str], device: str, world: World) -> dict[str, Any]:
    """What the row comes to; nothing in a process that is not the first, which hears of no steps."""
    choice = TrainingChoice(
        max_steps=1_000_000, learning_rate=1e-5, evaluate_every=1_000_000, on_spike="off",
        activation_checkpointing=row["keep"], recomputed_layers=int(row["layers"]) if row["layers"] else None,
        compile=bool(int(row["compile"])), optimizer=row["optimizer"],
        cuda_graphs=row["graphs"] == "1",
    )  # fmt: skip
    through, before = at_once, torch.cuda.memory_allocated() if device.startswith("cuda") else 0
    if world.sharded:
        through = divide(model, world, masters=not without_masters(choice.optimizer))
    with torch.no_grad():
        objective = through(
            causal_objective, model, compiled=bool(choice.compile), longest=int(row["length"])
        )
    objective, division = take_part(model, objective, world, torch.device(device))
    events: list[dict[str, Any]] = []
    wanted = untimed(row) + int(row["steps"])
    gc.collect()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    first: list[float] = []
    shown: dict[str, Any] = {}
    profiler: Any = None

    def control() -> None:
        nonlocal profiler
        done = sum(event["kind"] == "step" for event in events)  # only the first process is asked
        if not first:
            first.append(time.perf_counter() - began)
        if done == wanted and int(row["profile"]):
            kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
            profiler = torch.profiler.profile(activities=kinds)
            profiler.__enter__()
        elif done > wanted and profiler is not None:
            torch.cuda.synchronize()
            profiler.__exit__(None, None, None)
            shown.update(kernels(profiler))

    narrow = float8_products(model, layers_of(model)) if row["float8"] == "1" else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, narrow, contextlib.suppress(EnoughError):
        fit(
            model, objective, Source(row, device), [], choice=choice, seed=1, directory=Path(folder),
            recipe_digest="speed", device=torch.device(device), on_metrics=events.append, control=control,
            world=world, through=through, division=division,
        )  # fmt: skip
    if not world.first:
        return {}
    every = [event for event in events if event["kind"] == "step"]
    steps = every[untimed(row) : wanted]
    seconds = statistics.median(event["seconds"] for event in steps)
    lengths = lengths_of(row) * int(row["micro"])
    work = flops(row["model"], lengths, row["method"])
    return {
        "tokens_per_second": sum(lengths) / seconds,
        "step_ms": seconds * 1e3,
        "spread": [round(event["seconds"] * 1e3, 1) for event in steps],
        "devices": world.size,
        "shard": world.sizes["shard"],
        "reshard": row["reshard"] if world.sharded else "",
        "along": row["along"],
        "whole_gb": before / 1e9,
        "mfu_datasheet": work / seconds / DATASHEET / world.size,
        "tflops": work / seconds / 1e12,
        # The loop begins torch's own mark anew at each phase of the first steps.
        "allocated_gb": max(event["peak_memory"] for event in every) / 1e9 if cuda else 0,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else 0,
        "first_step_s": first[0],
        "loss": steps[-1]["loss"],
        "notes": [event["text"] for event in events if event["kind"] == "note"],
        **shown,
    }


KINDS = {
    "loss": ("cross_entropy", "logsumexp"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk"),
    "attention": ("flash", "fmha", "sdpa", "attn"),
    "four-bit": ("dequant",),
    "fused elementwise": ("triton",),
    "optimiser": ("adam", "multi_tensor"),
    "copies": ("memcpy", "memset"),
}


def kernels(profiler: Any) -> dict[str, Any]:
    """Milliseconds on the GPU by kind of kernel, the largest kernels, and the gaps between them."""
    kinds: dict[str, float] = {}
    single: dict[str, float] = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total / 1e3
        if not spent or str(event.device_type).endswith("CPU"):
            continue
        name = event.key.lower()
        if name.startswith("optimizer.step#"):
            continue  # the span over kernels that are counted themselves
        order = ("loss", "attention", "four-bit", "products", "fused elementwise", "optimiser", "copies")
        kind = next((kind for kind in order if any(word in name for word in KINDS[kind])), "other")
        kinds[kind] = kinds.get(kind, 0) + spent
        single[event.key[:90]] = single.get(event.key[:90], 0) + spent
    largest = sorted(single.items(), key=lambda pair: -pair[1])[:25]
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if not str(event.device_type).endswith("CPU")
        and not getattr(event, "is_user_annotation", False)
        and not event.name.lower().startswith("optimizer.step#")
    ]
    return {
        "kernels_ms": {kind: round(spent, 1) for kind, spent in kinds.items()},
        "largest_ms": {name: round(spent, 1) for name, spent in largest},
        "gaps": gaps(spans),
    }


def gaps(spans: list[tuple[float, float]]) -> dict[str, Any]:
    """Where the GPU does nothing between the first and the last kernel of spans (microseconds): milliseconds
    by the length of a gap, and the longest ones, each with its place after the first kernel's start.
    """
    spans, found, end = sorted(spans), [], None
    for start, over in spans:
        if end is not None and start > end:
            found.append((end - spans[0][0], start - end))
        end = over if end is None else max(end, over)
    within = {"below 3 us": (0, 3), "3 to 20 us": (3, 20), "20 to 200 us": (20, 200), "longer": (200, 1e12)}
    longest = sorted(found, key=lambda gap: -gap[1])[:6]
    return {
        "kernels": len(spans),
        "ms": {
            name: round(sum(size for _, size in found if low <= size < high) / 1e3, 2)
            for name, (low, high) in within.items()
        },
        "longest": [{"at_ms": round(at / 1e3, 1), "ms": round(size / 1e3, 2)} for at, size in longest],
    }


def matrix_peak() -> dict[str, float]:
    """Sustained rate of the card's bf16 products over about two seconds, and of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(2))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(10):
        a @ b
    start.record()
    for _ in range(1200):
        a @ b
    end.record()
    torch.cuda.synchronize()
    rate = 2 * 8192**3 * 1200 / (start.elapsed_time(end) / 1e3) / 1e12
    x = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    y.copy_(x)
    start.record()
    for _ in range(10):
        y.copy_(x)
    end.record()
    torch.cuda.synchronize()
    return {"tflops": rate, "copy_tb_s": 2 * x.numel() * 10 / (start.elapsed_time(end) / 1e3) / 1e12}


def main() -> None:
    out, given = Path(sys.argv[1]), sys.argv[2:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if "RANK" in os.environ:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        with together(rank, size, device, local=int(os.environ["LOCAL_RANK"]), address="env://") as world:
            rows(out, given, str(world.device), world)
    else:
        rows(out, given, device, ALONE)


def rows(out: Path, given: list[str], device: str, world: World) -> None:
    """Measure the rows; the first process writes them."""

    def put(record: dict[str, Any]) -> None:
        if not world.first:
            return
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        brief = {key: value for key, value in record.items() if key not in ("largest_ms", "spread", "gaps")}
        print(
            json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in brief.items()}), flush=True
        )

    shard = "1"
    if "--shard" in given:
        place = given.index("--shard")
        shard = given[place + 1]
        given = given[:place] + given[place + 2 :]
    packages = {name: version(name) for name in ("torch", "transformers")}
    if device.startswith("cuda") and "nopeak" not in given:
        put({"card": torch.cuda.get_device_name(), "versions": packages, "peak": matrix_peak()})
    model, last = None, None
    for text in given:
        if text == "nopeak":
            continue
        row = DEFAULTS | {"shard": shard} | dict(part.split("=", 1) for part in text.split(","))
        if unknown := row.keys() - DEFAULTS.keys():
            raise SystemExit(f"{text}: no {', '.join(sorted(unknown))}; there are {', '.join(DEFAULTS)}")
        apart = int(row["shard"]) > 1 or bool(row["along"])
        wanted = (row["model"], row["method"], row["base"], row["adapter"])
        try:
            sizes: dict[str, Any] = {"shard": int(row["shard"]), "reshard": row["reshard"]}
            # Before there is a model: a record built for the first time looks at this frame's variables, and
            # before Python 3.13 the frame keeps what it saw until it ends.
            here = replace(
                world, parallel=Parallel(**({row["along"]: world.size} if row["along"] else sizes))
            )
            if wanted != last:
                model = None
                gc.collect()
                model = adapted(row, device)
            put({"asked": text, **measure(model, row, device, here)})
            # What has been divided once stays so: the next row builds its own model.
            last = None if apart else wanted
        except Exception as error:  # the other rows are wanted all the same
            put({"asked": text, "error": f"{type(error).__name__}: {error}"[:1500]})
            last = None
            if os.environ.get("TRACE") or not world.first:
                import traceback

                traceback.print_exc()


if __name__ == "__main__":
    main()

"""The largest micro-batch that really trains on a card of 80 GB, beside the one that the solver picks.

``python benchmarks/memory/edges.py OUT.jsonl [--shape NUMBER] [--tiny]`` trains two steps at one micro-batch
after another, from the largest that the formula foretells, until one fits and the next does not. The card is
held to the memory that an H100 of 80 GB has for tensors, whatever it has itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from grid import EnoughError, Source, about, choice_of
from grid_build import build, objective_of, skeleton
from grid_compare import brief
from grid_predict import architecture, estimate
from grid_rows import METHODS, Row

from luthier.errors import DoesNotFit
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.solver import Question, largest_step
from luthier.schema.estimate import TrainingShape

CARD = "h100"
SHAPES = (
    Row("Qwen3-8B", "lora", 1, 2048, steps=2),
    Row("Qwen2.5-3B", "full", 1, 512, compiled=False, steps=2),
    Row("Qwen2.5-32B", "qlora", 1, 512, compiled=False, steps=2),
)
TINY = Row("tiny", "lora", 1, 64, compiled=False, steps=2)
MOST = 64
"""Rows of a micro-batch that are asked for at most."""


def question(row: Row) -> Question:
    """What the solver is asked for such a shape on the card."""
    hardware = parse_hardware(CARD)
    return Question(architecture(row), METHODS[row.method], hardware, "cuda", "bfloat16")


def expected(row: Row) -> int:
    """The largest micro-batch whose expected peak the card has room for."""
    room = parse_hardware(CARD).accelerators[0].memory_free
    sizes = range(1, MOST + 1)
    fitting = [n for n in sizes if estimate(replace(row, micro=n), card=CARD).process.expected <= room]
    return max(fitting, default=1)


def picked(row: Row, batch: int) -> int | None:
    """What the solver picks for a batch of so many rows, the layers keeping what the shape keeps."""
    shape: TrainingShape = replace(row, micro=batch).shape
    try:
        return largest_step(question(row), shape, checkpointing_fixed=True).micro_batch_size
    except DoesNotFit:
        return None


class OutOfMemoryError(Exception):
    """The loop has begun to halve the micro-batch."""


def fits(model: Any, objective: Any, row: Row, device: Any) -> bool:
    """Whether two steps at that micro-batch go through as they are."""
    import torch

    from luthier.training.loop import fit

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "out_of_memory":
            raise OutOfMemoryError

    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Source(row, int(model.config.vocab_size))
            fit(
                model, objective, source, [], choice=choice_of(row), seed=1, directory=Path(folder),
                recipe_digest="edge", device=device, on_metrics=hear,
            )  # fmt: skip
    except EnoughError:
        return True
    except (OutOfMemoryError, DoesNotFit):
        return False
    finally:
        model.zero_grad(set_to_none=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    raise AssertionError("the loop ended by itself")


def edge(row: Row, tried: dict[int, bool], fitting: Any) -> int:
    """The largest micro-batch that fits, from the one that is expected on. tried: filled in."""
    now = expected(row)
    while True:
        if now not in tried:
            tried[now] = now > 0 and (now == 0 or fitting(now))
        if tried[now]:
            if tried.get(now + 1) is False or now == MOST:
                return now
            now += 1
        else:
            if now <= 1 or tried.get(now - 1):
                return max(0, now - 1)
            now -= 1


def found(row: Row) -> dict[str, Any]:
    """One shape's edge, measured."""
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    began = time.perf_counter()
    if cuda:
        # What an H100 of 80 GB leaves to the allocator: all of it but the context.
        room = parse_hardware(CARD).accelerators[0].memory_free - 0.8e9
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
    model = build(row, device, skeleton(row))
    with torch.no_grad():
        objective = objective_of(row, model)
    tried: dict[int, bool] = {}
    largest = edge(row, tried, lambda micro: fits(model, objective, replace(row, micro=micro), device))
    single = [n for n in range(1, MOST + 1) if question(row).fits(replace(row, micro=n).shape)]
    return {
        "row": brief(row), "expected": expected(row), "largest": largest, "tried": tried,
        "solver_any": max(single, default=0),
        "solver_of": {batch: picked(row, batch) for batch in (4, 8, 12, 16, 32)},
        "took": time.perf_counter() - began,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", type=int, default=None, help="only this one, from 0")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to see that it works")
    arguments = parser.parse_args()
    shapes = SHAPES if arguments.shape is None else SHAPES[arguments.shape : arguments.shape + 1]
    for row in (TINY,) if arguments.tiny else shapes:
        line = {"card": about()["card"], "held_to": CARD, **found(row)}
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())

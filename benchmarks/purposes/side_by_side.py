"""What the comparisons of this folder share: rows, turns, timed trainings and the table."""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

Row = dict[str, Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = "luthier"


@dataclass(frozen=True)
class Job:
    """One comparison: rows in both tools' terms, settings, and how a saved model is judged."""

    name: str
    purpose: str
    rows: list[Row]
    loss: str
    batch_size: int
    steps: int
    rate: float
    length: int
    judge: Callable[[Path], dict[str, float]]


Arm = Callable[[Job, Path, int, Path, str], dict[str, float]]
"""Trains a job from a model's folder with a seed into an empty folder, in a dtype; gives what it took."""


def read(path: Path) -> list[Row]:
    """Rows of a JSONL file, zipped or not."""
    path = path if path.exists() else path.with_name(path.name + ".gz")
    held = path.read_bytes()
    text = (gzip.decompress(held) if path.suffix == ".gz" else held).decode()
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def clock() -> Iterator[dict[str, float]]:
    """Seconds until the device is done, and the most memory it held."""
    found: dict[str, float] = {}
    if DEVICE != "cpu":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    yield found
    if DEVICE != "cpu":
        torch.cuda.synchronize()
        found["peak"] = torch.cuda.max_memory_allocated()
    found["seconds"] = time.perf_counter() - began


def fitted(load: Callable[[], Any], splits: Any, out: Path) -> dict[str, float]:
    """Train one of Luthier's tasks and save it. train_seconds: without loading and the checkpoint's writing.

    Its weights and the optimiser's state are always written at the end; the other arms write none.
    """
    writing = 0.0

    def listen(event: Row) -> None:
        nonlocal writing
        writing += event["seconds"] if event["kind"] == "checkpoint" else 0.0

    with clock() as took:
        task = load()
        began = time.perf_counter()
        result = task.fit(splits, out.parent / "run", recipe_digest="b", on_metrics=listen)
        trained = time.perf_counter() - began - writing
    task.save_merged(out)
    task.free()
    return {**took, "train_seconds": trained, "step_seconds": result.seconds}


def trainer_words(job: Job, seed: int, out: Path, dtype: str) -> Row:
    """Arguments of transformers' Trainer, and of those built on it, that say what our recipes say."""
    return {
        "output_dir": str(out.parent / "theirs"),
        "max_steps": job.steps,
        "learning_rate": job.rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": -(-job.steps // 10),
        "seed": seed,
        "bf16": dtype == "bfloat16",
        "use_cpu": DEVICE == "cpu",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def parser(text: str | None) -> argparse.ArgumentParser:
    """What every comparison can be told."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", type=Path, required=True)
    found.add_argument("--data", type=Path, required=True)
    found.add_argument("--out", type=Path, required=True)
    found.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    found.add_argument("--jobs", nargs="+", default=None)
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    found.add_argument("--tiny", action="store_true")
    return found


def compare(jobs: Sequence[Job], ours: Arm, theirs: Arm, other: str, asked: argparse.Namespace) -> None:
    """Train every job by both with every seed, taking turns at going first; one line a training."""
    chosen = [job for job in jobs if asked.jobs is None or job.name in asked.jobs]
    about = {"device": torch.cuda.get_device_name() if DEVICE != "cpu" else "cpu", "dtype": asked.dtype}
    about |= {"torch": torch.__version__}
    warmed = set()
    for job in chosen:
        if DEVICE != "cpu" and job.purpose not in warmed:  # kernels and libraries load before the clock runs
            warmed.add(job.purpose)
            for arm in (ours, theirs):
                with tempfile.TemporaryDirectory() as scratch:
                    arm(replace(job, steps=5), asked.model, 0, Path(scratch) / "model", asked.dtype)
        if job.purpose == "similarity":
            write(asked.out, {**about, "job": job.name, "arm": "base", **job.judge(asked.model)})
        for turn, seed in enumerate(asked.seeds):
            arms = [(OURS, ours), (other, theirs)]
            for name, arm in arms if turn % 2 == 0 else arms[::-1]:
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch) / "model"
                    figures = arm(job, asked.model, seed, folder, asked.dtype)
                    facts = {"job": job.name, "arm": name, "seed": seed, "rows": len(job.rows)}
                    facts |= {"steps": job.steps, "batch": job.batch_size, "rate": job.rate}
                    write(asked.out, {**about, **facts, **figures, **job.judge(folder)})
    print(table([json.loads(line) for line in asked.out.read_text().splitlines()]))


def write(out: Path, line: Row) -> None:
    """Append one result and show it."""
    with out.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


NO_FIGURE = {"seed", "rows", "steps", "batch", "rate"}


def table(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds of each figure, side by side."""
    lines = [
        "| job | figure | base | Luthier | specialist | difference | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for job, dtype in dict.fromkeys((row["job"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["job"], row["dtype"]) == (job, dtype)]
        figures = [k for k, v in mine[-1].items() if isinstance(v, int | float) and k not in NO_FIGURE]
        for figure in figures:
            base, ours, other = (
                [row[figure] for row in mine if figure in row and kind(row["arm"])]
                for kind in (
                    lambda arm: arm == "base",
                    lambda arm: arm == OURS,
                    lambda arm: arm not in ("base", OURS),
                )
            )
            if not ours or not other:
                continue
            left, right = statistics.fmean(ours), statistics.fmean(other)
            ratio = f"{left / right:.3f}" if right else ""
            cells = [_spread(base), _spread(ours), _spread(other), f"{left - right:+.4g}", ratio]
            lines.append(f"| {job} {dtype} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values) if len(values) > 1 else 0:.2g}"

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
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

Row = dict[str, Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = "luthier"
TOLD = 20
"""Steps whose losses are told together."""


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
    judges_base: bool = field(default=False)
    """Whether the untouched model has an answer that the figures can stand beside."""
    fastest: bool = field(default=False)
    """Whether the other tool takes its documented settings for speed: readers of its own, like lengths."""


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


@dataclass
class Pace:
    """When steps were done, from the one after which kernels and readers are warm."""

    after: int = 20
    began: float = 0.0
    ended: float = 0.0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    """Means of so many steps' losses as are told at once (`TOLD`)."""

    def at(self, step: int, last: int) -> None:
        """A step is done; the device is waited for where the clock is read."""
        if step in (self.after, last) and step >= self.after:
            if DEVICE != "cpu":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.began, self.ended = (now, now) if step == self.after else (self.began, now)
            self.steps = step - self.after

    def rows(self, batch: int) -> dict[str, Any]:
        """The losses, and rows a second where enough steps were done."""
        found: dict[str, Any] = {"losses": [round(loss, 4) for loss in self.losses]}
        if self.steps:
            found["rows_per_second"] = self.steps * batch / (self.ended - self.began)
        return found

    def listener(self, last: int) -> Any:
        """What transformers' trainers tell of steps."""
        from transformers import TrainerCallback

        pace = self

        class Listener(TrainerCallback):
            def on_step_end(self, *told: Any, **_: Any) -> None:
                pace.at(told[1].global_step, last)

            def on_log(self, *_: Any, logs: Row, **__: Any) -> None:
                if "loss" in logs:
                    pace.losses.append(float(logs["loss"]))

        return Listener()


def fitted(load: Callable[[], Any], splits: Any, out: Path, job: Job) -> dict[str, float]:
    """Train one of Luthier's tasks and save it. train_seconds: without loading and the checkpoint's writing.

    Its weights and the optimiser's state are always written at the end; the other arms write none.
    """
    writing, pace = 0.0, Pace()
    losses: list[float] = []

    def listen(event: Row) -> None:
        nonlocal writing
        writing += event["seconds"] if event["kind"] == "checkpoint" else 0.0
        if event["kind"] == "step":
            pace.at(event["step"], job.steps)
            losses.append(event["loss"])
            if len(losses) == TOLD:
                pace.losses.append(statistics.fmean(losses))
                losses.clear()

    with clock() as took:
        task = load()
        began = time.perf_counter()
        result = task.fit(splits, out.parent / "run", recipe_digest="b", on_metrics=listen)
        trained = time.perf_counter() - began - writing
    task.save_merged(out)
    task.free()
    figures = {"train_seconds": trained, "step_seconds": result.seconds, **pace.rows(job.batch_size)}
    return {**took, **figures}


def training_words(job: Job) -> Row:
    """The section ``training`` of Luthier's recipe."""
    return {
        "max_steps": job.steps,
        "learning_rate": job.rate,
        "batch_size": job.batch_size,
        "micro_batch_size": job.batch_size,
        "sequence_length": job.length,
        "schedule": "linear",
        "warmup_share": 0.1,
        "evaluate_every": 10**6,
        "checkpoint_every": 10**6,
        "select": "last",
    }


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
        "logging_steps": TOLD,
        "report_to": [],
        "disable_tqdm": True,
        **({"dataloader_num_workers": 4, "dataloader_persistent_workers": True} if job.fastest else {}),
    }


def parser(text: str | None) -> argparse.ArgumentParser:
    """What every comparison can be told."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, required=True)
    found.add_argument("--out", type=Path, required=True, help="JSONL; what it holds is not repeated")
    found.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    found.add_argument("--jobs", nargs="+", default=None)
    found.add_argument("--minutes", type=float, default=None, help="begin no training after so many")
    found.add_argument("--tiny", action="store_true", help="a few steps of everything, to see that it works")
    return found


PACKAGES = ("torch", "transformers", "sentence-transformers", "trl", "peft", "accelerate", "datasets")


def about(dtype: str) -> Row:
    """Where a result was measured."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if DEVICE != "cpu" else "cpu"
    return {"device": device, "dtype": dtype, "versions": versions}


@dataclass(frozen=True)
class Turn:
    """One seed's round. warmed: kinds of work whose kernels and libraries are loaded already."""

    seed: int
    ours_first: bool
    warmed: set[Any]


def compare(
    jobs: Sequence[Job],
    ours: Arm,
    theirs: Arm,
    other: str,
    asked: argparse.Namespace,
    *,
    turn: Turn,
    model: Path,
    dtype: str = "float32",
) -> None:
    """Train every job by both with one seed; one line a training.

    What the output holds already is left out, so a stopped run goes on where it stood.
    """
    where = about(dtype)
    held = asked.out.read_text().splitlines() if asked.out.exists() else []
    done = {key_of(json.loads(line)) for line in held}
    arms = {OURS: ours, other: theirs}
    for job in jobs:
        if asked.jobs is not None and job.name not in asked.jobs:
            continue
        facts = {"job": job.name, "rows": len(job.rows), "steps": job.steps, "batch": job.batch_size}
        facts |= {"rate": job.rate, "loss": job.loss, "seed": turn.seed, **where}
        order = list(arms) if turn.ours_first else list(arms)[::-1]
        missing = [name for name in order if key_of({**facts, "arm": name}) not in done]
        if asked.minutes is not None and time.perf_counter() - BEGAN > 60 * asked.minutes:
            if missing:
                print(f"stopped before {job.name}, seed {turn.seed}: --minutes {asked.minutes:g}")
            continue
        if missing and DEVICE != "cpu" and (job.purpose, job.loss) not in turn.warmed:
            turn.warmed.add((job.purpose, job.loss))  # kernels and libraries load before the clock runs
            for arm in arms.values():
                with tempfile.TemporaryDirectory() as scratch:
                    arm(replace(job, steps=5), model, 0, Path(scratch) / "model", dtype)
        base = {**facts, "arm": "base", "seed": 0}
        if job.judges_base and key_of(base) not in done:
            write(asked.out, {**base, **job.judge(model)})
            done.add(key_of(base))
        for name in missing:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "model"
                figures = arms[name](job, model, turn.seed, folder, dtype)
                write(asked.out, {**facts, "arm": name, **figures, **job.judge(folder)})


BEGAN = time.perf_counter()


def key_of(row: Row) -> tuple[Any, ...]:
    """What makes a training the same as another."""
    names = ("device", "dtype", "job", "arm", "seed", "rows", "steps", "batch", "rate", "loss")
    return tuple(row.get(name) for name in names)


def write(out: Path, line: Row) -> None:
    """Append one result and show it."""
    with out.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    print(json.dumps({key: value for key, value in line.items() if key != "versions"}), flush=True)

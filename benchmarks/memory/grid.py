"""Measure training steps of our own trainer on CUDA, row by row, and go on where a call has stopped.

``python benchmarks/memory/grid.py OUT.jsonl [--minutes 9] [--share I/N] [--kind KIND] [--only TEXT]
[--timed-first] [--dry-run]``
runs each row of ``grid_rows.py`` and ``grid_more.py`` that OUT does not hold yet for this card and these
versions, in a process of its own, through the same loop and objectives as a run. ``--share 0/2`` and
``--share 1/2`` take the rows of one card between two processes, each with a GPU of its own; rows for two GPUs
are those of ``--kind sharded``. Random weights of the real shapes: neither memory nor speed depends on their
values. Rows that come first are of every kind, so that a call that is cut short has some of each; with
``--timed-first`` those whose time is asserted, the shortest first. ``--dry-run`` prints the order with the
seconds that each row will take and measures nothing (rows that OUT holds are left out, whatever they were
measured on).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
# Devices are counted without starting CUDA, which a forked process could not use then; and a graph's few
# kernels are made where they are wanted: a pool of processes for each row would take longer.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("LUTHIER_TIMEOUT", "90")

from grid_build import batches_of, build, objective_of, skeleton
from grid_children import run
from grid_more import Further, Gathered, cost, every_row, kind_of, tiny_rows

from luthier.schema.recipe import Parallel, TrainingChoice, without_masters

if TYPE_CHECKING:
    from grid_rows import Row

KINDS = ("long", "chat", "reading", "vision", "ragged", "sharded")
UNTIMED = 0.55
"""Share of the time in which rows that are not timed may begin, before those that are."""
COMPILING, STARTING, PACKING = 15.0, 4.0, 4.0
"""Seconds of a row beside its steps: kernels that are made, the process with its model, a packed base
(medians of the rows of grid.jsonl, on an H200)."""
MEETING = 10.0
"""The same for two devices that find each other and make kernels side by side: a guess."""
LIGHTLY = "GRID_LIGHTLY"
"""Set for a process that imports little before it forks."""
GATHERED = 10
"""Steps after which the time that is left is foretold."""


class EnoughError(Exception):
    """All steps that were wanted are done."""


class Source:
    """The same micro-batches at every step."""

    def __init__(self, row: Row, words: int) -> None:
        self.most, self.made = row.steps, batches_of(row, words)

    def steps(self, epoch: int) -> int:  # noqa: ARG002
        return 1_000_000

    def batches(self, epoch: int, step: int) -> list[Any]:  # noqa: ARG002
        if step >= self.most:
            raise EnoughError  # in every process at the same step
        return self.made

    def rows(self, epoch: int, step: int) -> list[str]:  # noqa: ARG002
        return []


def choice_of(row: Row) -> TrainingChoice:
    """The settings of a run whose plan is this row."""
    return TrainingChoice.model_validate(
        {
            "max_steps": 1_000_000, "learning_rate": 1e-5, "evaluate_every": 1_000_000,
            "checkpoint_every": 1_000_000, "on_spike": "off", "activation_checkpointing": row.keep,
            "recomputed_layers": row.recomputed, "compile": row.compiled, "optimizer": row.optimizer,
        }
    )  # fmt: skip


def measure(row: Row, rank: int, meeting: str, alone: bool) -> dict[str, Any]:
    """Memory by phase and the time of each step; what the process holds beside torch's allocator.

    rank: which of the row's devices this is; meeting: a file where they find each other. alone: whether
    nothing else runs on the card.
    """
    import torch

    from luthier.tasks.parallel import take_part
    from luthier.training.loop import fit
    from luthier.training.memory import PhaseWatch
    from luthier.training.sharding import at_once, divide
    from luthier.training.world import ALONE, together

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    devices = row.devices if isinstance(row, Further) else 1
    began = time.perf_counter()
    with ExitStack() as held, tempfile.TemporaryDirectory() as folder:
        world = ALONE
        if devices > 1:
            assert isinstance(row, Further)
            kept = row.reshard if isinstance(row, Gathered) else None
            parallel = Parallel(shard=row.shard, reshard=kept)
            address = f"file://{meeting}"
            world = held.enter_context(
                together(rank, devices, device.type, local=rank, address=address, parallel=parallel)
            )
        if cuda:
            torch.cuda.set_device(device)
        model = build(row, device, skeleton(row))
        through: Any = at_once
        if world.sharded:
            through = divide(model, world, masters=not without_masters(row.optimizer))
        with torch.no_grad():
            objective = through(objective_of, row, model)
        objective, division = take_part(model, objective, world, device)
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        loaded = torch.cuda.memory_allocated() if cuda else 0
        built = time.perf_counter() - began
        events: list[dict[str, Any]] = []
        reserved: list[int] = []

        def control() -> None:
            reserved.append(torch.cuda.memory_reserved() if cuda else 0)

        source = Source(row, int(model.config.get_text_config().vocab_size))
        memory = PhaseWatch(device)
        with suppress(EnoughError):
            fit(
                model, objective, source, [], choice=choice_of(row), seed=1, directory=Path(folder),
                recipe_digest="grid", device=device, on_metrics=events.append, control=control,
                world=world, through=through, division=division, memory=memory,
            )  # fmt: skip
        found: dict[str, Any] = {
            "loaded": loaded, "built": built, "phases": dict(memory.phases),
            "allocated": memory.peak, "kernel": getattr(objective, "kernel", None),
        }  # fmt: skip
        if cuda:
            now = torch.cuda.memory_reserved()
            process = held_by_process(torch.cuda.mem_get_info(), device, alone=alone)
            found |= {
                "reserved": max([now, *reserved]), "context": None if process is None else process - now,
                "card_bytes": torch.cuda.mem_get_info()[1], "alone": alone,
                "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
            }  # fmt: skip
        return found | _told(events)


def held_by_process(card: tuple[int, int], device: Any, *, alone: bool) -> int | None:
    """Bytes of the card that this process holds: all that are taken where it is alone, else the driver's own
    count by process; None where that is not to be had (from within a container it often is not).
    """
    if alone:
        return card[1] - card[0]
    import pynvml
    import torch

    pynvml.nvmlInit()
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    return next((one.usedGpuMemory for one in found if one.pid == os.getpid()), None)


def _told(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first process's events say; the others' say nothing."""
    steps = [event for event in events if event["kind"] == "step"]
    if not steps:
        return {}
    seconds = [event["seconds"] for event in steps]
    settled = seconds[min(2, len(seconds) - 1) :]
    return {
        "seconds": seconds, "median": statistics.median(settled), "loss": steps[-1]["loss"],
        "tokens": steps[-1]["tokens"], "peaks": [event["peak_memory"] for event in steps],
        "out_of_memory": any(event["kind"] == "out_of_memory" for event in events),
        "notes": [event["text"] for event in events if event["kind"] == "note"],
    }  # fmt: skip


def about() -> dict[str, Any]:
    """Where a row was measured: read without starting CUDA, which a forked process could not use then."""
    versions = {}
    for name in ("torch", "transformers", "bitsandbytes", "flash-attn-4"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    import torch

    card = "cpu"
    if torch.cuda.device_count():
        import pynvml

        pynvml.nvmlInit()
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        card = name if isinstance(name, str) else name.decode()
    return {"card": card, "versions": versions}


def ordered(rows: list[Row], share: tuple[int, int]) -> list[Row]:
    """The rows of this share, of every kind early, dear ones last.

    Rows whose layers are compiled alike stay in one share: the second finds the kernels of the first.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.method), []).append(row)
    loads = [0.0] * share[1]
    own: list[Row] = []
    for _, members in sorted(groups.items(), key=lambda pair: -sum(map(seconds_of, pair[1]))):
        place = loads.index(min(loads))
        loads[place] += sum(map(seconds_of, members))
        if place == share[0]:
            own += members
    kinds: dict[str, list[Row]] = {}
    for row in sorted(own, key=_place):
        kinds.setdefault(kind_of(row), []).append(row)
    placed = [
        ((place + 0.5) / len(members) + (cost(row) > 30) - 2 * (kind_of(row) == "long"), row)
        for members in kinds.values()
        for place, row in enumerate(members)
    ]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def seconds_of(row: Row) -> float:
    """What a row will take by itself."""
    packs = row.method in ("qlora", "float8")
    beside = STARTING + COMPILING * row.compiled + PACKING * packs + MEETING * (devices_of(row) > 1)
    return cost(row) + beside


def _place(row: Row) -> float:
    """Early where the time is asserted, and where it takes little; the rest as the digest has it."""
    import hashlib

    drawn = int.from_bytes(hashlib.sha256(f"order {row.key}".encode()).digest()[:4], "big") / 2**32
    return drawn * (0.6 if row.steps > GATHERED else 1.0) + min(0.5, cost(row) / 60)


def warm_up() -> None:
    """Import once, for all forks, what a row needs; nothing of it may start CUDA."""
    import torch

    import luthier.tasks.causal
    import luthier.tasks.classification
    import luthier.tasks.lists
    import luthier.tasks.parallel
    import luthier.tasks.texts
    import luthier.tasks.vision
    import luthier.training.loop
    import luthier.training.sharding  # noqa: F401

    torch.set_num_threads(1)  # a fork must not inherit threads that have worked, nor wait for them
    if LIGHTLY in os.environ:
        return
    import torch._dynamo
    import torch._inductor.compile_fx
    from transformers import (  # noqa: F401
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSequenceClassification,
    )

    for name in ("llama", "qwen2", "qwen3", "bert", "xlm_roberta", "modernbert"):
        __import__(f"transformers.models.{name}.modeling_{name}")
    if not card_after_fork():
        # Something imported here has started CUDA: begin again without it, and let each row import it.
        print("forked processes cannot use the card: beginning again with fewer imports", file=sys.stderr)
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, LIGHTLY: "1"})


def card_after_fork() -> bool:
    """Whether a forked process can use the card, where there is one."""
    import torch

    if not torch.cuda.device_count():
        return True
    if (process := os.fork()) == 0:
        try:
            torch.zeros(1, device="cuda")
            os._exit(0)
        except Exception:
            os._exit(1)
    return os.waitpid(process, 0)[1] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no row after so many")
    parser.add_argument("--only", default="", help="rows whose key holds this text")
    parser.add_argument("--kind", default="", help=f"some of {', '.join(KINDS)}; all but the last")
    parser.add_argument("--share", default="0/1", help="which part of the rows, of how many")
    parser.add_argument("--workers", type=int, default=5, help="rows beside each other that are not timed")
    parser.add_argument("--room", type=float, default=120.0, help="GB of the card that these may take")
    parser.add_argument("--timed-first", action="store_true", help="begin with rows whose time is asserted")
    parser.add_argument("--dry-run", action="store_true", help="print the order and measure nothing")
    parser.add_argument("--tiny", action="store_true", help="small rows of each kind, to see that they run")
    arguments = parser.parse_args()
    if arguments.dry_run:
        print("\n".join(foretold(turns_of(arguments, measured(arguments.out, {})))))
        return
    began = time.monotonic()
    warm_up()
    here = about()
    turns = turns_of(arguments, measured(arguments.out, here))
    done = 0
    for part, workers, share in turns:
        until = began + 60 * arguments.minutes * share

        def begins(until: float = until) -> bool:
            return time.monotonic() < until

        ended = run(
            part, measure, workers=workers, room=arguments.room * 1e9, planned=planned, devices=devices_of,
            begins=begins,
        )  # fmt: skip
        for row, found, took in ended:
            line = {"key": row.key, "kind": kind_of(row), "blind": row.blind, **here, **found}
            append(arguments.out, line | {"took": round(took, 2)})
            done += "error" not in found
            print(f"{time.monotonic() - began:4.0f} s {brief(row)}: {told(found)}, {took:.0f} s", flush=True)
    print(f"{done} rows in {time.monotonic() - began:.0f} s, {len(left_of(turns))} are left")


def turns_of(arguments: argparse.Namespace, known: set[str]) -> list[tuple[list[Row], int, float]]:
    """Rows to measure now in their order, how many beside each other, and until which share of the time.

    Rows beside each other come first, until most of the time is gone; then the timed ones, with kernels that
    are made; then what is left of the first.
    """
    rows = wanted(arguments, known)
    timed = [row for row in rows if row.steps > GATHERED]
    rest = [row for row in rows if row.steps <= GATHERED]
    if arguments.timed_first:
        return [(sorted(timed, key=seconds_of), 1, 1.0), (rest, arguments.workers, 1.0)]
    return [(rest, arguments.workers, UNTIMED), (timed, 1, 1.0), (rest, arguments.workers, 1.0)]


def left_of(turns: list[tuple[list[Row], int, float]]) -> set[str]:
    return {row.key for rows, _, _ in turns for row in rows}


def foretold(turns: list[tuple[list[Row], int, float]]) -> list[str]:
    """Each row with the seconds that it takes and those at which it will have ended."""
    lines: dict[str, str] = {}
    now = 0.0
    for rows, workers, _ in turns:
        for row in rows:
            if row.key in lines:
                continue
            # The card does one row's steps at a time; what else a row needs runs beside the others.
            now += cost(row) + (seconds_of(row) - cost(row)) / workers
            words = f"{kind_of(row)} {brief(row)}" + ", timed" * (row.steps > GATHERED)
            size = f"{planned(row) / 1e9:4.0f} GB"
            lines[row.key] = (
                f"{now:5.0f} s {seconds_of(row):4.0f} s {size}  {'blind' if row.blind else 'seen'}  {words}"
            )
    return [*lines.values(), f"{len(lines)} rows, about {now:.0f} s"]


def planned(row: Row) -> float:
    """Bytes of a card that a row will take, by the formula, with its context."""
    from grid_predict import formula

    return formula(row).peak.total * 1.05 + 1.5e9


def devices_of(row: Row) -> int:
    return row.devices if isinstance(row, Further) else 1


def wanted(arguments: argparse.Namespace, known: set[str]) -> list[Row]:
    """The rows to measure now, in their order."""
    part, parts = map(int, arguments.share.split("/"))
    kinds = arguments.kind.split(",") if arguments.kind else KINDS[: len(KINDS) - (not arguments.tiny)]
    rows = [row for row in (tiny_rows() if arguments.tiny else every_row()) if kind_of(row) in kinds]
    rows = [row for row in rows if row.key not in known and arguments.only in row.key]
    return rows[part::parts] if arguments.tiny else ordered(rows, (part, parts))


def measured(out: Path, here: dict[str, Any]) -> set[str]:
    """Keys of the rows that are there for this card and these versions."""
    lines = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    return {line["key"] for line in lines if "error" not in line and {key: line[key] for key in here} == here}


def append(out: Path, line: dict[str, Any]) -> None:
    """Write one line; two processes that do so at once never mix theirs."""
    with out.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


def brief(row: Row) -> str:
    """The row in a few words."""
    words = [row.model, row.method, f"{row.micro} x {row.length}", row.keep]
    words += ["compiled"] * row.compiled + [f"{row.accumulation} parts"] * (row.accumulation > 1)
    if isinstance(row, Further):
        words += [row.purpose] + [f"shard {row.shard}"] * (row.devices > 1) + [row.tower] * bool(row.image)
    return " ".join(words)


def told(line: dict[str, Any]) -> str:
    if "error" in line:
        return str(line["error"]).splitlines()[0]
    return f"{line['allocated'] / 1e9:.2f} GB, {line['median']:.3f} s a step"


if __name__ == "__main__":
    main()

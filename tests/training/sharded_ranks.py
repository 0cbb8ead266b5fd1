"""Trainings of tiny models by one process and by several: ``sharded_ranks FOLDER [CASES [LAYOUTS]]``.

Everything is imported once, then processes are forked: a start costs milliseconds. Each training leaves
its checkpoints and ``events.json`` below ``FOLDER/CASE/WORLD``. CASES: names joined by +. With LAYOUTS each
case is trained by one process and in each of these, and ``held`` notes what is whole when.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from conftest import Source, documents, micro
from families import build
from luthier.errors import Interrupted
from luthier.models.lora import add_lora
from luthier.models.packed import pack_base
from luthier.schema.recipe import Lora, Parallel, QLora, TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.training import checkpoint
from luthier.training.layers import layers_of
from luthier.training.loop import fit
from luthier.training.manifest import CHECKPOINTS
from luthier.training.sharding import at_once, divide, is_divided
from luthier.training.world import World, together
from sharded_runs import CRASHED

CHOICE = TrainingChoice(
    epochs=1, learning_rate=3e-3, batch_size=6, micro_batch_size=2, sequence_length=32, weight_decay=0.1,
    evaluate_every=2, checkpoint_every=1, keep_last=9, activation_checkpointing="none", max_grad_norm=0.5,
)  # fmt: skip
FACTS = ("dtype", "trainable_parameters", "total_parameters", "best_step")


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    family: str
    method: Lora | None = None
    dtype: torch.dtype = torch.float32
    changes: tuple[tuple[str, object], ...] = ()
    tied: bool = False
    batch: int = 6
    """Rows a step, two a micro-batch: of three, the second of two processes has one and a turn to fill."""


CASES = {
    "llama": Case("Llama", tied=True),
    "qwen3": Case("Qwen3", changes=(("activation_checkpointing", "full"),)),
    "gemma3": Case("Gemma3", tied=True, changes=(("activation_checkpointing", "offload"),)),
    "mixtral": Case("Mixtral"),
    "lora": Case("Llama", Lora(rank=3)),
    "dora": Case("Qwen3", Lora(rank=4, dora=True), changes=(("activation_checkpointing", "full"),)),
    "qlora": Case("Llama", QLora(rank=3)),
    "experts": Case("Mixtral", Lora(rank=3, experts="all")),
    "kahan": Case("Llama", dtype=torch.bfloat16, changes=(("optimizer", "adamw-bf16-kahan"),)),
    "bf16": Case("Llama", dtype=torch.bfloat16),
    "rounded": Case("Llama", dtype=torch.bfloat16, changes=(("optimizer", "adamw-bf16"),)),
    "lora, single": Case("Llama", Lora(rank=3), batch=4),
    "lora, six": Case("Llama", Lora(rank=3), batch=12),
    "llama, single": Case("Llama", batch=4),
    "llama, six": Case("Qwen3", changes=(("activation_checkpointing", "full"),), batch=12),
    "bf16, six": Case("Llama", dtype=torch.bfloat16, batch=12),
    "rounded, six": Case("Llama", dtype=torch.bfloat16, changes=(("optimizer", "adamw-bf16"),), batch=12),
}
LAYOUTS = {
    "one": (1, None),
    "two": (2, Parallel(shard=2)),
    "four": (4, Parallel(replicate=2, shard=2)),
    "copies": (2, None),
    "backward": (2, Parallel(shard=2, reshard="backward")),
    "step": (2, Parallel(shard=2, reshard="step")),
    "groups": (4, Parallel(replicate=2, shard=2, reshard="step")),
}


def model_of(case: Case) -> torch.nn.Module:
    """The same at every call."""
    model = build(case.family, tie_word_embeddings=case.tied, hidden_size=64, intermediate_size=96)
    model = model.to(case.dtype)
    if case.method is None:
        return model.requires_grad_(True)
    pack_base(model, case.method)
    add_lora(model, case.method, seed=1)
    return model


def train(name: str, world: World, folder: Path, *, until: int | None = None) -> None:
    """Train a case, or a part of it, from where the folder's checkpoints end."""
    case = CASES[name]
    choice = CHOICE.model_copy(update=dict(case.changes))
    model = model_of(case)
    through = at_once
    if world.sharded:
        through = divide(model, world, masters=choice.optimizer != "adamw-bf16")
    with torch.no_grad():
        objective = through(causal_objective, model)
    events: list[dict[str, object]] = []

    def control() -> str | None:
        done = [event["step"] for event in events if event["kind"] == "step"]
        return "stop" if until is not None and done and done[-1] == until else None

    with contextlib.suppress(Interrupted):
        result = fit(
            model, objective, Source(documents(17), batch_size=case.batch), held_out(), choice=choice, seed=5,
            directory=folder, recipe_digest=name, device=torch.device("cpu"), on_metrics=events.append,
            control=control, resume=True, world=world, through=through,
        )  # fmt: skip
        facts = {name: getattr(result, name) for name in FACTS}
        events.append({"kind": "result", **facts})
    if world.size > 1 and not world.sharded:
        events.append({"kind": "spread", "spread": spread(model)})
    if world.first:
        known = folder / "events.json"
        before = json.loads(known.read_text()) if known.exists() else []
        known.write_text(json.dumps(before + events))


def held(world: World, folder: Path) -> None:
    """Note which layers' weights are whole at the moments of a step of two micro-batches, and after one."""
    model = model_of(CASES["qlora"])
    through, batch = divide(model, world, masters=True), held_out()[0]
    with torch.no_grad():
        objective = through(causal_objective, model)

    def whole() -> list[bool]:
        return [not any(map(is_divided, layer.parameters())) for layer in layers_of(model)]

    packed = [name for name, _ in model.named_parameters() if name.endswith((".packed", ".scales"))]
    found: dict[str, list[bool]] = {
        "before": whole(),
        "packed": [bool(packed)],
        "floating": [weight.is_floating_point() for weight in model.parameters()],
    }
    for place, last in (("first", False), ("last", True)):
        through.begin(last=last)
        loss = through(objective, model, batch).total
        found[f"{place}, forward"] = whole()
        loss.backward()
        found[f"{place}, backward"] = whole()
    with torch.no_grad():
        through(objective, model, batch)
    found["evaluation"] = whole()
    if world.first:
        folder.mkdir(parents=True)
        (folder / "held.json").write_text(json.dumps(found))


def halve(folder: Path) -> None:
    """Let a run's checkpoint say that memory ran out: each micro-batch goes in two pieces from then on."""
    [old] = (folder / CHECKPOINTS).iterdir()
    found = checkpoint.load(old)
    shutil.rmtree(old)
    position = replace(found.position, halvings=1)
    checkpoint.save(
        folder / CHECKPOINTS, position, weights=found.weights, optimizer=found.optimizer,
        recipe_digest="lora", random=found.random,
    )  # fmt: skip


def spread(model: torch.nn.Module) -> float:
    """How far the processes' weights are apart at most."""
    apart = 0.0
    for weight in model.parameters():
        low, high = weight.detach().clone(), weight.detach().clone()
        torch.distributed.all_reduce(low, op=torch.distributed.ReduceOp.MIN)
        torch.distributed.all_reduce(high, op=torch.distributed.ReduceOp.MAX)
        apart = max(apart, float((high - low).abs().max()))
    return apart


def held_out() -> list[object]:
    return [micro([[document]]) for document in documents(3, seed=9)]


def start(layout: str, jobs: Sequence[tuple[str, str, int | None]], folder: Path) -> list[int]:
    """Fork the processes of a layout, each of which does all the jobs: (case, folder's name, last step)."""
    size, parallel = LAYOUTS[layout]
    meeting = folder / f"meeting-{layout}-{time.monotonic_ns()}"
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                if size == 1:
                    work(jobs, World(), folder)
                else:
                    with together(
                        rank, size, "cpu", local=rank, address=f"file://{meeting}", parallel=parallel
                    ) as world:
                        work(jobs, world, folder)
                code = 0
            except BaseException:  # the parent is told by the exit code
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return children


def work(jobs: Iterable[tuple[str, str, int | None]], world: World, folder: Path) -> None:
    for name, place, until in jobs:
        try:
            if name == "held":
                held(world, folder / name / place)
                continue
            train(name, world, folder / name / place, until=until)
        except Exception:
            print(f"{name} in {place}:", file=sys.stderr)
            raise


def finish(children: Iterable[int]) -> None:
    """Wait for all; raise SystemExit where one failed, with `CRASHED` where a signal ended one."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        print(f"processes ended with {codes}", file=sys.stderr)
        raise SystemExit(CRASHED if min(codes) < 0 else 1)


def main() -> None:
    folder = Path(sys.argv[1])
    names = sys.argv[2].split("+") if len(sys.argv) > 2 else list(CASES)
    faulthandler.enable()
    torch.set_num_threads(1)
    if len(sys.argv) > 3:
        finish(start("one", [*((name, "one", None) for name in names), ("lora", "halved", 1)], folder))
        halve(folder / "lora" / "halved")
        finish(start("two", [("lora", "halved", None), ("held", "two", None)], folder))
        for layout in sys.argv[3].split(","):
            finish(start(layout, [(name, layout, None) for name in (*names, "held")], folder))
        return
    wholes = [(name, "one", None) for name in names]
    shards = [(name, "two", None) for name in names]
    hybrids = [(name, "four", None) for name in names if name in ("llama", "qlora")]
    copies = [(name, "copies", None) for name in names if name in ("llama", "rounded")]
    finish([*start("one", wholes, folder), *start("two", shards, folder)])
    finish(start("four", [*hybrids, *([("lora", "fewer", 1)] if "lora" in names else [])], folder))
    if "lora" in names:
        # Four began, two go on, one ends it; and two are stopped and go on as two.
        finish(start("two", [("lora", "fewer", 2), ("lora", "again", 1)], folder))
        finish(
            [
                *start("one", [("lora", "fewer", None)], folder),
                *start("two", [("lora", "again", None)], folder),
            ]
        )
    if copies:
        finish(start("copies", copies, folder))


if __name__ == "__main__":
    main()

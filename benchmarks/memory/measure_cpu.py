"""Measure the resident memory of a few training steps on a CPU, phase by phase.

One run measures one shape in a fresh process and prints one JSON object:
``python benchmarks/memory/measure_cpu.py MODEL_DIR lora 8 128 --rank 16``. Linux only: the high-water
mark is reset before each phase through /proc. Repeat with OMP_NUM_THREADS=1 for comparable rows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

MIB_LINE = "VmHWM:"


def high_water() -> int:
    """MiB since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(MIB_LINE))


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("method", choices=["lora", "full"])
    parser.add_argument("micro_batch", type=int)
    parser.add_argument("sequence", type=int)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--trained-share", type=float, default=0.5)
    parser.add_argument("--checkpointing", choices=["none", "full"], default="none")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--task", choices=["chat", "classification", "similarity"], default="chat")
    parser.add_argument("--batch", type=int, help="rows of a contrastive batch, in chunks of micro_batch")
    print(json.dumps(measure(parser.parse_args())))


def chat(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Model, objective and batch of conversations."""
    import torch
    from transformers import AutoModelForCausalLM

    from luthier.models.lora import add_lora
    from luthier.schema.recipe import Lora
    from luthier.tasks.causal import causal_objective
    from luthier.training.objective import OnDevice

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if args.method == "lora":
        add_lora(model, Lora(rank=args.rank))
    shape = (args.micro_batch, args.sequence)
    ids = torch.randint(0, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : int(args.sequence * (1 - args.trained_share))] = -100
    length = args.sequence // args.documents
    places = torch.arange(args.sequence)
    batch = OnDevice(
        ids,
        labels,
        (places % length).expand(shape).contiguous(),
        (places // length + 1).expand(shape).contiguous(),
    )
    return model, causal_objective(model), batch


def padded(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Model, objective and batch of texts that are read as a whole: 4 labels, or pairs in one batch."""
    import torch

    from luthier.models.classifier import load_classifier
    from luthier.models.embed import load_backbone
    from luthier.models.lora import add_lora
    from luthier.schema.recipe import Lora, SimilarityChoice
    from luthier.sizing.padding import chunks_of
    from luthier.tasks.classification import ClassificationObjective
    from luthier.tasks.encoded import EncodedBatch
    from luthier.tasks.texts import TextsBatch, VectorObjective
    from luthier.tasks.vectors import settings_of

    generator = torch.Generator().manual_seed(0)
    fresh: tuple[str, ...] = ()
    rows = args.batch or args.micro_batch
    texts = 2 * rows if args.task == "similarity" else rows
    ids = torch.randint(1000, 30000, (texts, args.sequence), generator=generator)
    mask, labels = torch.ones_like(ids), torch.zeros(rows, dtype=torch.long)
    mask[-1, args.sequence // 2 :] = 0  # one shorter text, so that the mask is not left out
    whole = EncodedBatch(ids, mask, labels, torch.zeros_like(ids))
    if args.task == "classification":
        model, fresh = load_classifier(
            args.model, ("a", "b", "c", "d"), multi=False, dtype="float32", pad_id=0, seed=0
        )
        objective: Any = ClassificationObjective(multi=False)
        batch: Any = whole
    else:
        model = load_backbone(args.model, dtype="float32")
        choice = SimilarityChoice(loss="in-batch-negatives")
        objective = VectorObjective(settings_of(args.model, "", choice), None, choice, ())
        places = torch.arange(rows)
        batch = TextsBatch(
            whole,
            places,
            places + rows,
            torch.zeros(0, dtype=torch.long),
            torch.zeros(rows),
            chunks_of(mask.sum(dim=1).tolist(), 2 * args.micro_batch),
            recompute=rows > args.micro_batch,
        )
    if args.method == "lora":
        add_lora(model, Lora(rank=args.rank), whole=fresh)
    else:
        model.requires_grad_(True)
    return model, objective, batch


def measure(args: argparse.Namespace) -> dict[str, object]:
    import torch
    import transformers

    from luthier.schema.recipe import TrainingChoice
    from luthier.training.optimizer import Optimizer

    assert torch.__version__
    assert transformers.__version__
    imports = high_water()
    model, objective, batch = chat(args) if args.task == "chat" else padded(args)
    optimizer = Optimizer(model, TrainingChoice(learning_rate=1e-4, epochs=1))
    model.train()
    if args.checkpointing == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ready = high_water()
    phases: dict[str, list[int]] = {"forward": [], "backward": [], "optimizer": []}
    seconds = []
    with objective.scope(model):
        for _ in range(args.steps):
            began = time.process_time()
            reset()
            loss = objective(model, batch).total / max(objective.weight(batch), 1)
            phases["forward"].append(high_water())
            reset()
            loss.backward()
            phases["backward"].append(high_water())
            reset()
            optimizer.clip()
            optimizer.step(1e-4)
            phases["optimizer"].append(high_water())
            seconds.append(round(time.process_time() - began, 2))
    settings = {key: value for key, value in vars(args).items() if key != "model"}
    return {"model": args.model.name, **settings, "after_imports": imports, "ready": ready, **phases,
            "cpu_seconds": seconds}  # fmt: skip


if __name__ == "__main__":
    main()

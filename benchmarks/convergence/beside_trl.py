"""Real weights trained by Luthier and by TRL from one start on the same rows in the same order.

    python benchmarks/convergence/beside_trl.py luthier MODEL ROWS FOLDER --seed 1
    python benchmarks/convergence/beside_trl.py trl MODEL FOLDER --seed 1   (needs trl)
    python benchmarks/convergence/beside_trl.py table FOLDER OUT.jsonl

ROWS holds train.jsonl.gz and validation.jsonl of Disfl-QA (as for `benchmarks/speed/methods.py`): a question
as people stumble through it -> the fluent question. Luthier draws adapters and order by the seed and leaves
both in FOLDER, with every row's tokens; TRL starts from these adapters and takes these rows in that order.
LoRA r=16 on all linear layers, fp32, AdamW, linear schedule without warm-up, gradients clipped to 1. Both are
judged by one loop over the validation rows, one row at a time through transformers' own forward pass.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.nn import functional as F

ASK = "Rewrite this question as it was meant: "
LONGEST = 112
RANK, ALPHA, RATE, BATCH, CLIP = 16, 32, 5e-4, 4, 1.0


def chats(path: Path, most: int) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in text.decode().splitlines()]
    short = [row for row in rows if len(row["anchor"]) + len(row["positive"]) < 150]
    return [
        {
            "messages": [
                {"role": "user", "content": ASK + row["anchor"]},
                {"role": "assistant", "content": row["positive"]},
            ]
        }
        for row in short[:most]
    ]


@torch.no_grad()
def judged(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean loss of the trained tokens of rows (input_ids, labels), in nats, by the model's own logits."""
    model.eval()
    total, tokens = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"])[1:]
        total += float(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        tokens += int((labels != -100).sum())
    return total / tokens


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def single(batch: Any) -> list[dict[str, Any]]:
    """The rows of a micro-batch without their padding."""
    return [
        {"input_ids": ids[kept].tolist(), "labels": labels[kept].tolist()}
        for ids, labels, kept in zip(batch.input_ids, batch.labels, batch.document_ids > 0, strict=True)
    ]


def luthier(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from luthier.data.load import load_splits
    from luthier.data.tokenizer import load_tokenizer
    from luthier.models.adapter_files import save_adapter
    from luthier.schema.recipe import Lora, Recipe
    from luthier.tasks.chat import ChatTask

    write(folder / "train.jsonl", chats(arguments.rows / "train.jsonl.gz", arguments.steps * BATCH * 2))
    write(folder / "validation.jsonl", chats(arguments.rows / "validation.jsonl", 60))
    recipe = Recipe.model_validate(
        {
            "task": "chat",
            "model": {"id": str(arguments.model), "dtype": "float32", "attention": "sdpa"},
            "method": {"name": "lora", "rank": RANK, "alpha": ALPHA},
            "data": {
                "train": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
                "test": str(folder / "validation.jsonl"),
                "packing": False,
                "over_length": "drop",
            },
            "training": {
                "max_steps": arguments.steps,
                "learning_rate": RATE,
                "batch_size": BATCH,
                "micro_batch_size": BATCH,
                "sequence_length": LONGEST,
                "schedule": "linear",
                "warmup_share": 0.0,
                "max_grad_norm": CLIP,
                "weight_decay": 0.0,
                "evaluate_every": arguments.steps,
                "checkpoint_every": arguments.steps,
                "select": "last",
                "activation_checkpointing": "none",
                "compile": False,
            },
            "seed": arguments.seed,
        }
    )
    tokenizer = load_tokenizer(arguments.model)
    data = load_splits(recipe, tokenizer, base=Path("/"), sequence_length=LONGEST)
    task = ChatTask(recipe, arguments.model, tokenizer, device="cpu")
    method = recipe.method
    assert isinstance(method, Lora)
    save_adapter(task.model, folder / "start", base_id=arguments.model.name, lora=method)
    source = task.source(data.splits)
    order = [
        row for step in range(arguments.steps) for batch in source.batches(0, step) for row in single(batch)
    ]
    held_out = [row for batch in task.held_out(data.splits) for row in single(batch)]
    write(folder / "order.jsonl", order)
    write(folder / "held_out.jsonl", held_out)
    before = judged(task.model, held_out)
    events: list[dict[str, Any]] = []
    began = time.perf_counter()
    task.fit(data.splits, folder / "run", recipe_digest="c", on_metrics=events.append)
    return {
        "before": before,
        "after": judged(task.model, held_out),
        "own": [event["loss"] for event in events if event["kind"] == "validation"][-1],
        "losses": [event["loss"] for event in events if event["kind"] == "step"],
        "norms": [event["grad_norm"] for event in events if event["kind"] == "step"],
        "seconds": time.perf_counter() - began,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def trl(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(folder / "start"), is_trainable=True)
    held_out = read(folder / "held_out.jsonl")
    before = judged(model, held_out)
    settings = SFTConfig(
        output_dir=str(folder / "trl"), max_steps=arguments.steps, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1, learning_rate=RATE, lr_scheduler_type="linear", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=CLIP, max_length=LONGEST, packing=False, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        train_sampling_strategy="sequential", seed=arguments.seed,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(read(folder / "order.jsonl")),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
    )
    began = time.perf_counter()
    trainer.train()
    told = [line for line in trainer.state.log_history if "loss" in line]
    return {
        "before": before,
        "after": judged(trainer.model, held_out),
        "losses": [line["loss"] for line in told],
        "norms": [line["grad_norm"] for line in told],
        "seconds": time.perf_counter() - began,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def table(folder: Path, out: Path) -> None:
    """Put the runs together, one line a trainer and seed, and say how far apart they end."""
    found = {
        (name, int(path.name.split("-")[1])): json.loads((path / f"{name}.json").read_text())
        for path in sorted(folder.glob("seed-*"))
        for name in ("luthier", "trl")
    }
    write(out, [{"trainer": name, "seed": seed, **row} for (name, seed), row in found.items()])
    seeds = sorted({seed for _, seed in found})
    print("| seed | before | after, Luthier | after, TRL | difference | largest difference of a step |")
    print("|---|---|---|---|---|---|")
    for seed in seeds:
        ours, theirs = found["luthier", seed], found["trl", seed]
        apart = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        print(f"| {seed} | {ours['before']:.4f} | {ours['after']:.5f} | {theirs['after']:.5f} "
              f"| {ours['after'] - theirs['after']:+.5f} | {apart:.1e} |")  # fmt: skip
    for name in ("luthier", "trl"):
        ends = [found[name, seed]["after"] for seed in seeds]
        spread = statistics.stdev(ends) if len(ends) > 1 else float("nan")
        print(f"{name}: {statistics.mean(ends):.4f} +- {spread:.4f} over {len(ends)} seeds")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = parser.add_subparsers(dest="way", required=True)
    for name in ("luthier", "trl"):
        way = ways.add_parser(name)
        way.add_argument("model", type=Path)
        if name == "luthier":
            way.add_argument("rows", type=Path)
        way.add_argument("folder", type=Path)
        way.add_argument("--seed", type=int, default=1)
        way.add_argument("--steps", type=int, default=40)
    last = ways.add_parser("table")
    last.add_argument("folder", type=Path)
    last.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.way == "table":
        table(arguments.folder, arguments.out)
        return
    folder = arguments.folder.resolve() / f"seed-{arguments.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"luthier": luthier, "trl": trl}[arguments.way](arguments, folder)
    (folder / f"{arguments.way}.json").write_text(json.dumps({"steps": arguments.steps, **found}))
    print(arguments.way, {key: value for key, value in found.items() if key not in ("losses", "norms")})


if __name__ == "__main__":
    main()

"""One table of methods: the same model, rows, steps and card; quality over seeds on real weights.

    python benchmarks/speed/methods.py MODEL_FOLDER DATA_FOLDER OUT.jsonl [--steps 300] [--graphs]

Disfl-QA as a rewriting task (a question as people stumble through it -> the fluent question; DATA_FOLDER
holds train.jsonl.gz and validation.jsonl) by full fine-tuning (also with FP8 products), LoRA r=16 on all
linear layers, QLoRA and LoRA over an FP8 base, each at the rate that is usual for it. Every row of OUT:
trained parameters and their share, bytes of what is saved, median step, peak memory, the loss of every step,
and the validation loss at the end.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from luthier.data.load import load_splits
from luthier.data.tokenizer import load_tokenizer
from luthier.schema.recipe import Recipe
from luthier.tasks.chat import ChatTask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ASK = "Rewrite this question as it was meant: "
LORA = {"rank": 16, "alpha": 32}
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({"name": "full"}, 5e-5),
    "full, FP8 products": ({"name": "full", "products": "float8"}, 5e-5),
    "lora": ({"name": "lora", **LORA}, 5e-4),
    "qlora": ({"name": "qlora", **LORA}, 5e-4),
    "lora, FP8 base": ({"name": "lora", **LORA, "base": "float8"}, 5e-4),
}


def chats(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in text.decode().splitlines()]
    return [
        {
            "messages": [
                {"role": "user", "content": ASK + row["anchor"]},
                {"role": "assistant", "content": row["positive"]},
            ]
        }
        for row in rows
    ]


def trained(arguments: argparse.Namespace, method: str, seed: int, folder: Path) -> dict[str, Any]:
    choice, rate = METHODS[method]
    recipe = Recipe.model_validate(
        {
            "task": "chat",
            "model": {"id": str(arguments.model), "dtype": "bfloat16", "attention": "sdpa"},
            "method": choice,
            "data": {
                "train": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
                "test": str(folder / "validation.jsonl"),
                "packing": False,
            },
            "training": {
                "max_steps": arguments.steps,
                "learning_rate": rate,
                "batch_size": 16,
                "micro_batch_size": 16,
                "sequence_length": 256,
                "schedule": "linear",
                "warmup_share": 0.05,
                "evaluate_every": arguments.steps,
                "checkpoint_every": arguments.steps,
                "select": "last",
                "activation_checkpointing": "none",
                "compile": DEVICE == "cuda",
                "cuda_graphs": DEVICE == "cuda" and arguments.graphs,
            },
            "seed": seed,
        }
    )
    tokenizer = load_tokenizer(arguments.model)
    data = load_splits(recipe, tokenizer, base=Path("/"), sequence_length=256)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    task = ChatTask(recipe, arguments.model, tokenizer, device=DEVICE)
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as run:
        result = task.fit(data.splits, Path(run), recipe_digest="m", on_metrics=events.append)
        saved = Path(run) / "saved"
        task.save_merged(saved) if choice["name"] == "full" else task.save_adapter(saved)
        written = sum(file.stat().st_size for file in saved.glob("*.safetensors"))
    task.free()
    steps = [event for event in events if event["kind"] == "step"]
    return {
        "trained_parameters": result.trainable_parameters,
        "share": result.trainable_parameters / result.total_parameters,
        "saved_bytes": written,
        "step_ms": 1e3 * statistics.median(event["seconds"] for event in steps[len(steps) // 2 :]),
        "tokens": statistics.mean(event["tokens"] for event in steps),
        "training_peak": result.training_peak,
        "validation_loss": [event["loss"] for event in events if event["kind"] == "validation"][-1],
        "losses": [round(event["loss"], 5) for event in steps],
        "notes": [event["text"] for event in events if event["kind"] == "note"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--graphs", action="store_true", help="launch each micro-batch at once")
    arguments = parser.parse_args()
    versions = {}
    for name in ("torch", "transformers", "bitsandbytes"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for split, name in (("train", "train.jsonl.gz"), ("validation", "validation.jsonl")):
            rows = chats(arguments.data / name)[: 6000 if split == "train" else 400]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for seed in arguments.seeds:
            for method in arguments.methods:
                began = time.perf_counter()
                row: dict[str, Any] = {"method": method, "seed": seed, "steps": arguments.steps}
                try:
                    row |= trained(arguments, method, seed, folder)
                except Exception as error:  # the other rows are wanted all the same
                    row["error"] = f"{type(error).__name__}: {error}"[:800]
                row |= {"seconds": time.perf_counter() - began, "card": card, "versions": versions}
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print({key: value for key, value in row.items() if key != "losses"}, flush=True)


if __name__ == "__main__":
    main()

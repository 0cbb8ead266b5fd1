"""Rows a second from a JSONL file to packed tokens with their mask: Luthier against TRL's own preparation.

    python benchmarks/data/prepare.py MODEL_FOLDER ROWS.jsonl [--rounds 5] [--out results.json]

MODEL_FOLDER holds a tokenizer with a ChatML template; ROWS.jsonl (or .jsonl.gz) has question and answer.
Two works: single turns with loss on the answer, and conversations of three turns with loss on every
answer (for TRL the template gets its generation marks). Both sides start from the file and end with
packed sequences of 2,048 tokens; TRL's side is SFTTrainer's own ``_prepare_dataset`` (``datasets.map``, the
same fast tokenizer, best-fit packing). Rounds alternate, each with an empty cache of ``datasets``. CPU
seconds of all processes stand beside the wall clock, as they hardly depend on what else a machine does.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LENGTH = 2048
MARKED = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}\
{% endgeneration %}{{ '
' }}{% else %}{{ message['content'] + '<|im_end|>
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


def works(source: Path, folder: Path) -> dict[str, tuple[Path, int]]:
    """Name -> file and rows, written from the source."""
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as stream:
        pairs = [json.loads(line) for line in stream]
    turns = [
        [{"role": "user", "content": pair["question"]}, {"role": "assistant", "content": pair["answer"]}]
        for pair in pairs
    ]
    chats = [list(chain.from_iterable(turns[n : n + 3])) for n in range(0, len(turns), 3)] * 2
    found = {}
    for name, rows in (
        ("single turns", [{"prompt": turn[:1], "completion": turn[1:]} for turn in turns]),
        ("three turns", [{"messages": chat} for chat in chats]),
    ):
        path = folder / f"{name.replace(' ', '_')}.jsonl"
        # Luthier reads both as messages; TRL wants prompt and completion apart for single turns.
        ours = folder / f"{path.stem}_messages.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        joined = [{"messages": row.get("messages") or row["prompt"] + row["completion"]} for row in rows]
        ours.write_text("".join(json.dumps(row) + "\n" for row in joined), encoding="utf-8")
        found[name] = (path, len(rows))
    return found


def luthier(path: Path, model: Path) -> dict[str, Any]:
    """Read, map, render, mask and pack with Luthier."""
    from luthier.data.batching import fill, plan_epoch
    from luthier.data.read import read_rows
    from luthier.data.render import render_rows
    from luthier.data.shapes import map_rows
    from luthier.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    source = path.with_name(f"{path.stem}_messages.jsonl")
    started = clock()
    _, chats = map_rows(read_rows((source.name,), base=source.parent))
    rows = list(render_rows(chats, tokenizer))
    sizes = [len(row.ids) for row in rows]
    steps = plan_epoch(
        sizes, batch_size=16, micro_batch_size=1, sequence_length=LENGTH, packing=True, seed=0, epoch=0
    )
    return finished(
        started,
        tokens=sum(sizes),
        trained=sum(int(row.trained.sum()) for row in rows),
        sequences=sum(len(micro) for step in steps for micro in step),
        fill=fill(steps, sizes, LENGTH),
    )


def trl(path: Path, model: Path, processes: int | None) -> dict[str, Any]:
    """The same with TRL's SFTTrainer._prepare_dataset."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = "messages" not in path.name and "three" in path.name
    if turns:
        tokenizer.chat_template = MARKED
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, max_length=LENGTH, packing=True, dataset_num_proc=processes,
            assistant_only_loss=turns, use_cpu=True, bf16=False, report_to=[],
        )  # fmt: skip
        trainer = SimpleNamespace(
            _tokenizer=tokenizer, chat_template=None, completion_only_loss=not turns, args=settings,
            padding_free=True, _is_vlm=False, _is_vision_dataset=False,
        )  # fmt: skip
        started = clock()
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=folder)
        packed = SFTTrainer._prepare_dataset(trainer, rows, tokenizer, settings, True, None, "train")
        found = finished(started)
    ids, labels = packed["input_ids"], packed["labels"]
    found["tokens"] = sum(map(len, ids))
    found["trained"] = sum(one != -100 for row in labels for one in row)
    found["sequences"] = len(ids)
    found["fill"] = found["tokens"] / (len(ids) * LENGTH)
    return found


def clock() -> tuple[float, float]:
    spent = os.times()
    return time.perf_counter(), spent.user + spent.system + spent.children_user + spent.children_system


def finished(started: tuple[float, float], **facts: Any) -> dict[str, Any]:
    now = clock()
    return {"wall_s": round(now[0] - started[0], 3), "cpu_s": round(now[1] - started[1], 3), **facts}


def child(words: list[str]) -> dict[str, Any]:
    """One round in a process of its own: nothing is warm that a run would find cold."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", *words], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results: dict[str, Any] = {}
        for work, (path, count) in works(words.rows, Path(name)).items():
            sides: dict[str, list[dict[str, Any]]] = {"luthier": [], "trl": [], "trl, 2 processes": []}
            for _ in range(words.rounds):
                sides["luthier"].append(child(["luthier", str(path), str(words.model)]))
                sides["trl"].append(child(["trl", str(path), str(words.model)]))
                sides["trl, 2 processes"].append(child(["trl", str(path), str(words.model), "2"]))
            results[work] = {"rows": count, "rounds": sides, "median": medians(sides, count)}
            print(work, json.dumps(results[work]["median"], indent=1))
    report = {
        "source": words.rows.name,
        "rows_of_source": "GSM8K train (7,473 rows)",
        "sequence_length": LENGTH,
        "load_average": os.getloadavg(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {
            one: importlib.metadata.version(one)
            for one in ("trl", "transformers", "datasets", "tokenizers", "numpy")
        },
        "works": results,
    }
    if words.out:
        words.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def medians(sides: dict[str, list[dict[str, Any]]], count: int) -> dict[str, Any]:
    """Rows a second by wall clock and by CPU second, and how many times TRL's."""
    middle: Callable[[str, str], float] = lambda side, key: statistics.median(one[key] for one in sides[side])  # noqa: E731
    found = {
        side: {
            "rows_per_s": round(count / middle(side, "wall_s"), 1),
            "rows_per_cpu_s": round(count / middle(side, "cpu_s"), 1),
            "tokens": sides[side][0]["tokens"],
            "trained": sides[side][0]["trained"],
            "sequences": sides[side][0]["sequences"],
            "fill": round(sides[side][0]["fill"], 4),
        }
        for side in sides
    }
    ours = found["luthier"]
    best = max(found[side]["rows_per_s"] for side in found if side != "luthier")
    ratios = {
        "wall_times_best_trl": round(ours["rows_per_s"] / best, 2),
        "cpu_times_trl": round(ours["rows_per_cpu_s"] / found["trl"]["rows_per_cpu_s"], 2),
    }
    return {**found, **ratios}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        side, path_, model_, *rest = sys.argv[2:]
        run = (
            luthier(Path(path_), Path(model_))
            if side == "luthier"
            else trl(Path(path_), Path(model_), int(rest[0]) if rest else None)
        )
        print(json.dumps(run))
    else:
        main()

"""A small model with rows of 256, pretrained from scratch, to measure what quantisation costs it.

    python benchmarks/export/scratch.py DATA FOLDER
    luthier train FOLDER/scratch-256.yaml

DATA holds clinc150/train.jsonl and clinc150/test.jsonl, packed (.gz) or not. The run's own table is the
result: docs/export.md has one, and scratch.json beside this file the records behind it.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

HELD_OUT = 500
RECIPE = """\
version: 1
name: scratch-256
task: chat
model:
  id: scratch-256
  from_scratch:
    {family: llama, parameters: 8M, vocabulary: 2048, context: 128, hidden_size: 256, layers: 6, heads: 4}
  chat_template: plain
method: {name: full}
data: {train: train.jsonl, test: test.jsonl}
training: {learning_rate: 1.0e-3, epochs: 8, batch_size: 64}
evaluation: {max_new_tokens: 16, probe_rows: 0, floor_rows: 0}
export: {gguf: [F16, Q8_0, Q5_K_M, Q4_K_M], quality_rows: 500}
"""


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    """Requests with one of the 150 intents, in the order of seed 0."""
    path = data / "clinc150" / name
    opened = open if path.exists() else gzip.open
    with opened(path if path.exists() else path.with_name(f"{name}.gz"), "rt", encoding="utf-8") as file:
        found = [row for line in file if line.strip() and (row := json.loads(line))["label"] != "oos"]
    random.Random(0).shuffle(found)
    return found


def chat(row: dict[str, Any]) -> str:
    """A request and its intent, as one line."""
    answer = row["label"].replace("_", " ")
    turns = [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


def main() -> None:
    """Write rows and recipe."""
    data, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(map(chat, rows(data, "train.jsonl"))), encoding="utf-8")
    held = rows(data, "test.jsonl")[:HELD_OUT]
    (folder / "test.jsonl").write_text("".join(map(chat, held)), encoding="utf-8")
    (folder / "scratch-256.yaml").write_text(RECIPE, encoding="utf-8")


if __name__ == "__main__":
    main()

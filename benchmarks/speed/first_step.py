"""How long `luthier train` takes from its start to the end of the first step, file caches warm.

    python benchmarks/speed/first_step.py OUT.jsonl FOLDERS [MODEL] [METHOD] [--times 2]

Writes the model's folder with random weights of the real shape (`folders.py`) if it is missing, and 64 rows;
starts the command so many times, each in a process and a run of its own, and stops it after three steps. The
baseline is judged on one row before the training. The first time also fills the caches of files
and compiled kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from folders import folder_of

from luthier.version import __version__

RECIPE = """version: 1
task: chat
model: {{id: {model}}}
method: {{name: {method}}}
data: {{train: {rows}, test: {rows}, validation_share: 0, over_length: truncate}}
training: {{max_steps: 50, learning_rate: 1e-5, batch_size: 4, micro_batch_size: 4, sequence_length: 2048}}
evaluation: {{max_rows: 1, max_new_tokens: 1, floor_rows: 0, probe_rows: 0}}
export: {{adapter: true, merged: false}}
"""


def write_rows(path: Path) -> None:
    """Conversations of about a thousand tokens of one byte each."""
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(64):
            said = ["".join(draw.choices("abcdefgh ", k=length)) for length in (400, 600)]
            roles = zip(("user", "assistant"), said, strict=True)
            file.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in roles]}) + "\n")


def first_step(recipe: Path, home: Path, name: str) -> dict[str, float]:
    """Seconds from the command's start until the first steps had ended, by what the run recorded."""
    began = time.time()
    command = [sys.executable, "-m", "luthier", "train", str(recipe), "--run", name, "--offline"]
    child = subprocess.Popen(command, env=os.environ | {"LUTHIER_RUNS": str(home)})
    found: dict[str, float] = {}
    while child.poll() is None and len(found) < 3 and time.time() - began < 300:
        time.sleep(0.05)
        for metrics in home.rglob("metrics.jsonl"):
            if name not in str(metrics):
                continue
            events = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
            for step in [event for event in events if event["kind"] == "step"]:
                found.setdefault(f"step {step['step']}", round(time.time() - began, 2))
    child.terminate()
    child.wait(60)
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("out", type=Path)
    words.add_argument("folders", type=Path)
    words.add_argument("model", nargs="?", default="llama-3.1-8b")
    words.add_argument("method", nargs="?", default="lora")
    words.add_argument("--times", type=int, default=2)
    asked = words.parse_args()
    model = folder_of(asked.model, asked.folders)
    with tempfile.TemporaryDirectory() as scratch:
        rows, recipe = Path(scratch) / "rows.jsonl", Path(scratch) / "recipe.yaml"
        write_rows(rows)
        recipe.write_text(RECIPE.format(model=model, method=asked.method, rows=rows))
        for number in range(1, asked.times + 1):
            took = first_step(recipe, Path(scratch) / "runs", f"first-{number}")
            line = {
                "model": asked.model,
                "method": asked.method,
                "time": number,
                "version": __version__,
                **took,
            }
            with asked.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

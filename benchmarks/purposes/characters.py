"""Tiny Shakespeare at character level in the size of nanoGPT's GPU recipe (6 layers of 384, 256 characters):

    python benchmarks/purposes/characters.py --data FOLDER --out WORK [--set NAME VALUE ...]

First 90 % of the text train, last 10 % are held out; the validation rows, by which the best weights are
chosen, come from the training part. Trainings of `CHOICES` run beside each other; one line each goes to
WORK/characters.jsonl: steps, best validation loss, held-out nats a character with its interval. A choice
among them is one by validation loss.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIZE = (
    "model.from_scratch.parameters=10.7M",
    "model.from_scratch.hidden_size=384",
    "model.from_scratch.layers=6",
    "model.from_scratch.heads=6",
    "model.from_scratch.context=256",
    "training.sequence_length=256",
    "training.batch_size=64",
    "training.evaluate_every=50",
    "training.compile=false",
    "evaluation.floor_rows=0",
    "evaluation.probe_rows=0",
)
CHOICES = {
    "500 steps": ("training.max_steps=500", "training.weight_decay=0.3"),
    "750 steps": ("training.max_steps=750", "training.weight_decay=1.0"),
    "1000 steps": ("training.max_steps=1000", "training.weight_decay=1.0", "training.neftune_alpha=5"),
}


def prepare(data: Path, folder: Path) -> None:
    """The two parts of the text where the recipe looks for them."""
    text = gzip.decompress((data / "tinyshakespeare" / "input.txt.gz").read_bytes()).decode()
    cut = len(text) * 9 // 10
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.txt").write_text(text[:cut])
    (folder / "held.txt").write_text(text[cut:])


def started(folder: Path, words: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """`luthier train` on the shipped recipe with these settings."""
    env = {**os.environ, "LUTHIER_RUNS": str(folder / "runs"), "NO_COLOR": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    recipe = ROOT / "src" / "luthier" / "catalog" / "recipes" / "pretrain-characters-cpu.yaml"
    (folder / "recipe.yaml").write_text(recipe.read_text())
    command = [sys.executable, "-m", "luthier", "train", "recipe.yaml", "data.test=held.txt", *SIZE, *words]
    said = (folder / "said.txt").open("wb")
    return subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=subprocess.STDOUT)


def outcome(folder: Path) -> dict[str, object]:
    """What a finished run measured."""
    (run,) = (folder / "runs").iterdir()
    told, judged = (json.loads((run / f"{name}.json").read_text())["result"] for name in ("train", "tuned"))
    names = ("steps", "best_step", "best_validation_loss", "seconds", "total_parameters", "dtype", "device")
    return {**{name: told[name] for name in names}, "held_out": judged["test"]["metrics"]["loss"]}


def main() -> None:
    """Train every choice and say what each reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], help="settings for all of them")
    asked = parser.parse_args()
    began, running = time.perf_counter(), {}
    for name, words in CHOICES.items():
        folder = asked.out / name.replace(" ", "-")
        prepare(asked.data, folder)
        running[name] = folder, started(folder, (*words, *asked.set))
    for name, (folder, process) in running.items():
        if process.wait():
            print(name, "failed:", (folder / "said.txt").read_text()[-3000:])
            continue
        whole = round(time.perf_counter() - began, 1)
        line = {"choice": name, **outcome(folder), "whole_seconds": whole}
        with (asked.out / "characters.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

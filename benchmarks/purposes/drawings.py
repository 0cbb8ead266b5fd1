"""Pictures of real data sets through the whole way, on tiny random models of each architecture that sees:

    python benchmarks/purposes/drawings.py --data FOLDER --out drawings.jsonl [--families qwen3_vl ...]

FOLDER holds nlvr_mini (is a sentence true of a drawing) and twemoji_captions (what a picture shows). The
shipped recipe of a seeing model with LoRA on the language part, the projector trained, the tower frozen. No
weights that see are in the package index, and random ones of this size learn little from so few rows: what
is shown is that the rows are read, trained on, judged and answered, not a score worth having.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import about, write

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from seeing import FAMILIES, save_seeing_model  # noqa: E402

RECIPE = "vision-qwen3-vl-4b-lora"
COLUMNS = {
    "nlvr_mini": ("{prompt: 'Is it true? {sentence}', completion: label}", "exact_match"),
    "twemoji_captions": ("{prompt: '{category}: what does it show?', completion: name}", "chrf"),
}
"""How the rows of each set are read, and what they are judged by."""


def luthier(folder: Path, *words: str) -> str:
    """A command's output; its errors where it fails."""
    took = subprocess.run(
        [sys.executable, "-m", "luthier", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    if took.returncode:
        raise SystemExit(f"luthier {' '.join(words)}\n{took.stdout}{took.stderr}")
    return took.stdout


def outcome(run: Path, name: str) -> Any:
    """What a stage of the run found."""
    return json.loads((run / f"{name}.json").read_text())["result"]


def tuned(data: Path, family: str, held: str, steps: int) -> dict[str, Any]:
    """One training from recipe to answer; losses, scores before and after, and an answer."""
    columns, metric = COLUMNS[held]
    folder = data.resolve() / held
    most = () if family == "gemma3" else ("vision.max_pixels=4096",)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        save_seeing_model(home / "model", family)
        luthier(home, "recipes", "copy", RECIPE, "recipe.yaml")
        luthier(
            home, "train", "recipe.yaml", "model.id=model", "model.dtype=float32",
            f"data.train={folder / 'train.jsonl'}", f"data.test={folder / 'validation.jsonl'}",
            f"data.columns={columns}", "vision.max_pixels=null", *most, "vision.projector=true",
            f"training.max_steps={steps}", "training.batch_size=8", "training.learning_rate=1e-2",
            "training.sequence_length=384", f"training.evaluate_every={steps}",
            f"evaluation.metrics=[{metric}]", "evaluation.max_new_tokens=12", "export.gguf=[]",
        )  # fmt: skip
        (run,) = (home / "runs").iterdir()
        (comparison,) = outcome(run, "comparison")
        main = comparison["differences"][0]
        steps_told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in steps_told if row["kind"] == "step"]
        image = sorted((folder / "images").iterdir())[0]
        said = luthier(home, "generate", "latest", "What does it show?", "--image", str(image))
    return {
        "metric": comparison["primary"],
        "verdict": comparison["verdict"],
        "rows": main["tuned"]["n"],
        "baseline": main["baseline"]["value"],
        "tuned": main["tuned"]["value"],
        "first_loss": losses[0],
        "last_loss": sum(losses[-4:]) / 4,
        "answered": bool(said.strip()),
    }


def main() -> None:
    """Train what is asked for and not yet in the output, one line a training."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--out", type=Path, required=True)
    words.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    words.add_argument("--steps", type=int, default=50)
    asked = words.parse_args()
    held = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    done = {(row["family"], row["data"], row["steps"]) for row in held}
    for family in asked.families:
        for name in COLUMNS:
            if (family, name, asked.steps) not in done:
                facts = {"family": family, "data": name, "steps": asked.steps, **about("float32")}
                write(asked.out, {**facts, **tuned(asked.data, family, name, asked.steps)})


if __name__ == "__main__":
    main()

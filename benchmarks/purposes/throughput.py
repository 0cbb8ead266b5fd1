"""Rows a second of classifiers and embedders beside transformers' Trainer and sentence-transformers:

    python benchmarks/purposes/throughput.py --encoder MINILM --data FOLDER --out throughput.jsonl

MINILM is a folder of all-MiniLM-L6-v2; BERT-base is made here, random weights of its shape with that
tokenizer. bf16, 64 rows a step, banking77 (77 labels) and snli (triplets, in-batch negatives). The other
tools take bf16 autocast, fused AdamW, four reading processes and, for classification, batches of like
length, as their guides say; Luthier draws its rows at random. Measured from the 20th step on; the ratio of
each seed is printed, for between seeds a host changes its pace. Needs luthier, sentence-transformers,
datasets, accelerate.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import classification
import pairs
import torch
from side_by_side import OURS, Job, about, key_of, parser, read, write

STEPS, BATCH = 100, 64
DTYPE = "bfloat16"


def bert_base(encoder: Path, folder: Path) -> Path:
    """Random weights of BERT-base's shape in a folder that is otherwise the encoder's."""
    from transformers import BertConfig, BertModel

    shutil.copytree(encoder, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "onnx"))
    for pooling in folder.glob("*_Pooling/config.json"):
        settings = json.loads(pooling.read_text())
        wide = {name: 768 for name in ("word_embedding_dimension", "embedding_dimension") if name in settings}
        pooling.write_text(json.dumps({**settings, **wide}))
    torch.manual_seed(0)
    words = json.loads((encoder / "config.json").read_text())["vocab_size"]
    BertModel(BertConfig(vocab_size=words)).save_pretrained(folder)
    return folder


def jobs(data: Path, tiny: bool) -> list[tuple[Job, object, object, str]]:
    """Each job with Luthier's arm and the other tool's."""
    banking = read(data / "banking77" / "train.jsonl")
    random.Random(0).shuffle(banking)
    triplets = read(data / "snli" / "triplets_validation.jsonl")
    steps = 24 if tiny else STEPS
    words = {"batch_size": 8 if tiny else BATCH, "steps": steps, "judge": lambda _: {}, "fastest": True}
    one = Job("banking77", classification.ONE, banking, "cross-entropy", rate=2e-5, length=64, **words)
    two = Job("snli", "similarity", triplets, pairs.IN_BATCH, rate=2e-5, length=128, **words)
    return [
        (one, classification.ours, classification.theirs, "transformers"),
        (two, pairs.ours, pairs.theirs, "sentence-transformers"),
    ]


def ratios(out: Path) -> list[str]:
    """Luthier's rows a second beside the other tool's, one line a shape, job and seed that both have."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = []
    for key in dict.fromkeys((row["shape"], row["job"], row["seed"]) for row in rows):
        mine = [row for row in rows if (row["shape"], row["job"], row["seed"]) == key]
        pace = {row["arm"] == OURS: row["rows_per_second"] for row in mine}
        if len(pace) == 2:
            shape, job, seed = key
            said = f"{pace[True]:,.0f} against {pace[False]:,.0f} rows a second"
            found.append(f"{shape}, {job}, seed {seed}: {said}, {pace[True] / pace[False]:.2f}")
    return found


def main() -> None:
    """Train what is not yet in the output, one line a training, and print the ratios."""
    words = parser(__doc__)
    words.add_argument("--encoder", type=Path, required=True)
    asked = words.parse_args()
    began = time.perf_counter()
    held = asked.out.read_text().splitlines() if asked.out.exists() else []
    done = {(key_of(json.loads(line)), json.loads(line)["shape"]) for line in held}
    with tempfile.TemporaryDirectory() as made:
        shapes = {"MiniLM": asked.encoder}
        if not asked.tiny:
            shapes["BERT-base"] = bert_base(asked.encoder, Path(made) / "bert-base")
        for turn, seed in enumerate(asked.seeds):
            for shape, model in shapes.items():
                for job, ours, theirs, other in jobs(asked.data, asked.tiny):
                    facts = {"job": job.name, "rows": len(job.rows), "steps": job.steps, "rate": job.rate}
                    facts |= {"batch": job.batch_size, "loss": job.loss, "seed": seed, **about(DTYPE)}
                    arms = {OURS: ours, other: theirs}
                    for name in list(arms)[:: 1 if turn % 2 == 0 else -1]:
                        line = {**facts, "arm": name}
                        if (key_of(line), shape) in done:
                            continue
                        if asked.minutes is not None and time.perf_counter() - began > 60 * asked.minutes:
                            print(f"stopped before {shape}, {job.name}, seed {seed}")
                            return
                        with tempfile.TemporaryDirectory() as scratch:
                            out = Path(scratch) / "model"
                            took = arms[name](job, model, seed, out, DTYPE)  # type: ignore[operator]
                        write(asked.out, {**line, "shape": shape, **took})
    print("\n".join(ratios(asked.out)))


if __name__ == "__main__":
    main()

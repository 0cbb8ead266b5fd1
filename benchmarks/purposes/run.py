"""Every purpose beside the tool that its users know, in one command a machine:

    python benchmarks/purposes/run.py --encoder MINILM --decoder SMOLLM2 --data FOLDER --out results.jsonl
    python benchmarks/purposes/table.py results.jsonl

Same base weights, rows, batch, steps, rate, schedule and seeds; one process, the two taking turns at going
first. MINILM is a folder of all-MiniLM-L6-v2, SMOLLM2 a folder of SmolLM2-135M-Instruct; a purpose whose
model is not given is left out. FOLDER holds stsb_multi, snli, scifact, banking77, clinc150, goemotions,
disfl_qa and oasst1_en. Needs luthier, sentence-transformers, datasets, accelerate, scikit-learn, trl.
--tiny runs a few steps of everything; --short is a reranker at 48 tokens, 320 steps of 4 lists, judged on the
first 20 by words of 80 queries: how a fresh head sets out, on a processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import classification
import generation
import pairs
from side_by_side import DEVICE, Turn, compare, parser


def main() -> None:
    """Train what is asked for and not yet in the output, one line a training."""
    words = parser(__doc__)
    words.add_argument("--encoder", type=Path)
    words.add_argument("--decoder", type=Path)
    words.add_argument("--short", action="store_true", help="the reranker alone, cut for a processor")
    asked = words.parse_args()
    warmed: set[Any] = set()
    todo = []
    if asked.encoder is not None:
        if not asked.short:
            found = classification.jobs(asked.data, asked.tiny)
            todo.append((found, classification.ours, classification.theirs, "transformers", asked.encoder))
        found = pairs.jobs(asked.data, asked.encoder, asked.tiny, asked.short)
        todo.append((found, pairs.ours, pairs.theirs, "sentence-transformers", asked.encoder))
    if asked.decoder is not None:
        chats = generation.jobs(asked.data, asked.decoder, asked.tiny)
        todo.append((chats, generation.ours, generation.theirs, "trl", asked.decoder))
    for turn, seed in enumerate(asked.seeds):  # a run that is stopped early has as many seeds of everything
        for jobs, ours, theirs, other, model in todo:
            dtype = "bfloat16" if other == "trl" and DEVICE != "cpu" else "float32"
            one = Turn(seed, turn % 2 == 0, warmed)
            compare(jobs, ours, theirs, other, asked, turn=one, model=model, dtype=dtype)


if __name__ == "__main__":
    main()

"""Every purpose beside the tool that its users know, in one command a machine:

    python benchmarks/purposes/run.py --encoder MINILM --decoder SMOLLM2 --data FOLDER --out results.jsonl
    python benchmarks/purposes/table.py results.jsonl

Same base weights, rows, batch, steps, rate, schedule and seeds; one process, the two taking turns at going
first. MINILM is a folder of all-MiniLM-L6-v2, SMOLLM2 a folder of SmolLM2-135M-Instruct; a purpose whose
model is not given is left out. FOLDER holds stsb_multi, snli, scifact, banking77, clinc150, goemotions,
disfl_qa and oasst1_en. Needs luthier, sentence-transformers, datasets, accelerate, scikit-learn, trl.
--tiny runs a few steps of everything.
"""

from __future__ import annotations

from pathlib import Path

import classification
import generation
import pairs
from side_by_side import DEVICE, compare, parser


def main() -> None:
    """Train what is asked for and not yet in the output, one line a training."""
    words = parser(__doc__)
    words.add_argument("--encoder", type=Path)
    words.add_argument("--decoder", type=Path)
    asked = words.parse_args()
    if asked.encoder is not None:
        jobs = classification.jobs(asked.data, asked.tiny)
        compare(jobs, classification.ours, classification.theirs, "transformers", asked, model=asked.encoder)
        found = pairs.jobs(asked.data, asked.encoder, asked.tiny)
        compare(found, pairs.ours, pairs.theirs, "sentence-transformers", asked, model=asked.encoder)
    if asked.decoder is not None:
        chats = generation.jobs(asked.data, asked.decoder, asked.tiny)
        dtype = "float32" if DEVICE == "cpu" else "bfloat16"
        compare(chats, generation.ours, generation.theirs, "trl", asked, model=asked.decoder, dtype=dtype)


if __name__ == "__main__":
    main()

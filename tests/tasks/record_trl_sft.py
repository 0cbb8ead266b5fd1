"""Record thirty steps of TRL's SFT trainer on a tiny model:

    python tests/tasks/record_trl_sft.py tests/tasks/trl_sft.json

Needs trl, which no test does. Weights and rows follow from formulas.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from record_trl import tokenizer
from torch.nn import functional as F

from preference_case import model_of
from sft_case import BATCH, CLIP, DECAY, HELD_OUT, RATE, STEPS, TRAIN


@torch.no_grad()
def judged(model: Any) -> float:
    """Mean loss of the trained tokens of the held-out rows, in nats."""
    model.eval()
    total, tokens = 0.0, 0
    for row in HELD_OUT:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        labels = torch.tensor(row["labels"])[1:]
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    return total / tokens


def trained(folder: Path, accumulation: int) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = model_of(0)
    settings = SFTConfig(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH // accumulation,
        gradient_accumulation_steps=accumulation, learning_rate=RATE, lr_scheduler_type="cosine",
        warmup_steps=0, weight_decay=DECAY, max_grad_norm=CLIP, max_length=64, packing=False, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(TRAIN), processing_class=tokenizer(folder)
    )
    trainer.train()
    told = [line for line in trainer.state.log_history if "loss" in line]
    return {
        "losses": [float(line["loss"]) for line in told],
        "norms": [float(line["grad_norm"]) for line in told],
        "held_out": judged(trainer.model),
    }


def main() -> None:
    import transformers
    import trl

    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as name:
        runs = {str(count): trained(Path(name), count) for count in (1, 2)}
    Path(sys.argv[1]).write_text(json.dumps({"made_with": versions, **runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

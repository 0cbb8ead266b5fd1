"""Record what TRL's DPO and ORPO trainers make of a tiny model:

    python tests/tasks/record_trl.py tests/tasks/trl_preference.json

Needs trl, which no test does. Weights and tokens follow from formulas, so that they are the same wherever
they are made.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from preference_case import BETA, PAIRS, model_of, padded


def gradients(model: Any, loss: Any) -> dict[str, float]:
    model.zero_grad()
    loss.backward()
    return {
        name: float(weight.grad.norm())
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def dataset() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)


def tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "a", "b", "c"])}, unk_token="<pad>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


def dpo(folder: Path, pairs: Any, **settings: Any) -> dict[str, Any]:
    from trl import DPOConfig, DPOTrainer

    model = model_of(0)
    trainer = DPOTrainer(
        model=model,
        ref_model=model_of(1),
        args=DPOConfig(
            output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, beta=BETA, **settings
        ),
        train_dataset=dataset(),
        processing_class=tokenizer(folder),
    )
    batch = padded(pairs)
    inputs = {
        "input_ids": torch.cat((batch["chosen"][0], batch["rejected"][0])),
        "attention_mask": torch.cat((batch["chosen"][1], batch["rejected"][1])),
        "completion_mask": torch.cat((batch["chosen"][2], batch["rejected"][2])),
    }
    loss = trainer.compute_loss(trainer.model, inputs)
    told = {
        name: values[-1]
        for name, values in trainer._metrics["train"].items()
        if name.startswith(("rewards", "logps"))
    }
    return {"loss": float(loss), **told, "gradients": gradients(trainer.model, loss)}


def orpo(folder: Path, pairs: Any) -> dict[str, Any]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer = ORPOTrainer(
        model=model_of(0),
        args=ORPOConfig(
            output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, beta=BETA, max_length=32
        ),
        train_dataset=dataset(),
        processing_class=tokenizer(folder),
    )
    batch = padded(pairs)
    inputs = {}
    for side in ("chosen", "rejected"):
        ids, mask, answer = batch[side]
        inputs |= {
            f"{side}_input_ids": ids,
            f"{side}_attention_mask": mask,
            f"{side}_labels": ids.masked_fill(answer == 0, -100),
        }
    loss, told = trainer.get_batch_loss_metrics(trainer.model, inputs)
    kept = {
        name: value
        for name, value in told.items()
        if name.startswith(("rewards", "logps", "nll", "log_odds"))
    }
    return {"loss": float(loss), **kept, "gradients": gradients(trainer.model, loss)}


def main() -> None:
    import transformers
    import trl

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            "made_with": {
                "trl": trl.__version__,
                "transformers": transformers.__version__,
                "torch": torch.__version__,
            },
            "dpo": dpo(folder, PAIRS),
            "dpo_sft": dpo(folder, PAIRS, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5]),
            # Sorted margins of one pair are its own, so this is the sigmoid loss with smoothed labels.
            "dpo_smoothed": dpo(folder, PAIRS[:1], loss_type=["aot"], label_smoothing=0.2),
            "orpo": orpo(folder, PAIRS),
        }
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

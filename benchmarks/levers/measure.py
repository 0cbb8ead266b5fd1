"""What each option of a full fine-tuning costs: memory beside the prediction, time, stalls for checkpoints.

    python benchmarks/levers/measure.py [--steps 12] [--small]

On CUDA a model of Qwen2.5-0.5B's shape in bf16 with micro-batches of 4 x 2,048 tokens, on a CPU one of 29
million weights in fp32 and 2 x 256 (--small takes that on CUDA too). Weights and rows are random; every
option trains in a process of its own. One line an option goes into results.jsonl: peak bytes measured (CUDA:
allocated tensors; CPU: resident set) and predicted by the closed form for each phase, median seconds a step,
and for checkpoints the median seconds that training stood still for each and that each took to the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "src"))

OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw, checkpoints in the way": {"background_checkpoints": False},
    "update_in_backward": {"update_in_backward": True, "max_grad_norm": 0.0},
    "adamw-bf16": {"optimizer": "adamw-bf16"},
    "adamw-bf16-kahan": {"optimizer": "adamw-bf16-kahan"},
    "adamw-bf16, update_in_backward": {"optimizer": "adamw-bf16", "update_in_backward": True,
                                       "max_grad_norm": 0.0},
    "muon": {"optimizer": "muon"},
    "ema": {"ema": 0.999},
    "neftune": {"neftune_alpha": 5.0},
    "full checkpointing": {"activation_checkpointing": "full"},
    "offloaded checkpointing": {"activation_checkpointing": "offload"},
    "adamw-8bit": {"optimizer": "adamw-8bit"},
    "paged-adamw-8bit": {"optimizer": "paged-adamw-8bit"},
}  # fmt: skip
LARGE = {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2}  # fmt: skip
SMALL = {"vocab_size": 8_192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4}  # fmt: skip


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--steps", type=int, default=12)
    words.add_argument("--small", action="store_true")
    words.add_argument("--option", help="measure this one here")
    words.add_argument("--only", nargs="*", default=list(OPTIONS), help="measure these options alone")
    asked = words.parse_args()
    if asked.option:
        print(json.dumps(measure(asked.option, asked.steps, small=asked.small)))
        return
    for name in asked.only:
        command = [sys.executable, __file__, "--option", name, "--steps", str(asked.steps)]
        done = subprocess.run(
            [*command, *(["--small"] if asked.small else [])], capture_output=True, text=True, check=False
        )
        line = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else None
        if line is None:
            print(name, "failed:", done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode)
            continue
        print(line, flush=True)
        with (HERE / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(frozen=True)
class Micro:
    input_ids: Any
    labels: Any
    position_ids: Any
    document_ids: Any


class Rows:
    """Random rows of one length, the same for every option."""

    def __init__(self, rows: int, length: int, vocabulary: int, steps: int) -> None:
        import torch

        draw = torch.Generator().manual_seed(1)
        shape = (rows, length)
        ids = [torch.randint(3, vocabulary, shape, generator=draw) for _ in range(steps)]
        places, ones = torch.arange(length).expand(shape), torch.ones(shape, dtype=torch.long)
        self.all = [Micro(one, one.clone(), places, ones) for one in ids]

    def steps(self, epoch: int) -> int:
        del epoch
        return len(self.all)

    def batches(self, epoch: int, step: int) -> list[Micro]:
        del epoch
        return [self.all[step]]

    def rows(self, epoch: int, step: int) -> list[str]:
        return [f"random:{epoch}-{step}"]


def measure(name: str, steps: int, *, small: bool) -> dict[str, Any]:
    """Train with one option."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from luthier.planning.estimate import kernels_for
    from luthier.schema.estimate import TrainingShape
    from luthier.schema.recipe import Full, TrainingChoice
    from luthier.sizing.model_config import architecture_from_config
    from luthier.sizing.training import training_memory
    from luthier.tasks.causal import causal_objective
    from luthier.training.loop import fit

    cuda = torch.cuda.is_available()
    large = cuda and not small
    rows, length, dtype = (4, 2048, "bfloat16") if large else (2, 256, "bfloat16" if cuda else "float32")
    torch.manual_seed(0)
    config = Qwen2Config(**(LARGE if large else SMALL), tie_word_embeddings=True)
    device = torch.device("cuda" if cuda else "cpu")
    model = Qwen2ForCausalLM(config).to(device, getattr(torch, dtype))
    choice = TrainingChoice(
        **{
            "max_steps": steps, "learning_rate": 1e-5, "batch_size": rows, "micro_batch_size": rows,
            "sequence_length": length, "checkpoint_every": 4, "evaluate_every": 1000, "keep_last": 1,
            "activation_checkpointing": "none", "select": "last", **OPTIONS[name],
        }
    )  # fmt: skip
    shape = TrainingShape(
        micro_batch_size=rows,
        sequence_length=length,
        activation_checkpointing=choice.activation_checkpointing or "none",
        optimizer=choice.optimizer,
        update_in_backward=choice.update_in_backward,
        ema=choice.ema is not None,
    )
    predicted = training_memory(
        architecture_from_config(config.to_dict()),
        Full(),
        shape,
        dtype=dtype,
        kernels=kernels_for("cuda" if cuda else "cpu", dtype),
        hopper=cuda and torch.cuda.get_device_capability() >= (9, 0),
        cuda=cuda,
    )
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            model,
            causal_objective(model),
            Rows(rows, length, config.vocab_size, steps),
            [],
            choice=choice,
            seed=1,
            directory=Path(folder),
            recipe_digest="levers",
            device=device,
            on_metrics=events.append,
        )
    times = [event["seconds"] for event in events if event["kind"] == "step"]
    saves = [event for event in events if event["kind"] == "checkpoint"]
    return {
        "option": name,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "parameters": result.total_parameters,
        "tokens": rows * length,
        "dtype": dtype,
        "predicted": {phase.name: phase.total for phase in predicted.phases},
        "measured": result.phase_memory,
        "seconds": median(times[3:]),
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
        "saves": len(saves),
        "stalled": median(event["stalled"] for event in saves),
        "written": median(event["seconds"] for event in saves),
    }


if __name__ == "__main__":
    main()

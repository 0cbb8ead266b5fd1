"""Time of a LoRA step on a CPU: Luthier's loop against plain transformers + PEFT on the same batches.

    python benchmarks/cpu/lora_step.py MODEL_DIR [--threads 2] [--windows 5] [--uneven] [--out FILE]

Both take the same rows of one length (so that nothing is padded), the same adapters (r=16 on all
linear layers, the same starting values), the same AdamW and clipping, in fp32. Windows of one step alternate
between the two within one process, so that whatever else the machine does falls on both; each gives
wall and processor seconds. The losses of both are kept: they must be the same curve. --uneven: rows of many
lengths, which Luthier lays end to end and the other pads to the longest of the batch (tokens count unpadded).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import peft
import torch
from transformers import AutoModelForCausalLM

from luthier.models.adapter_files import adapter_tensors
from luthier.models.load import load_causal
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.training.optimizer import Optimizer

RATE = 3e-4


def rows_of(count: int, length: int, trained: float, vocab: int) -> SimpleNamespace:
    """Random rows; the last `trained` share of each carries loss, as an answer after a prompt does."""
    ids = torch.randint(5, vocab, (count, length))
    labels = ids.clone()
    labels[:, : round(length * (1 - trained))] = -100
    return SimpleNamespace(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(length).repeat(count, 1),
        document_ids=torch.ones_like(ids),
    )


def uneven(count: int, longest: int, trained: float, vocab: int) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Rows of a sixteenth of the longest and more, the last of that length: end to end, and padded."""
    lengths = [*torch.randint(longest // 16, longest, (count - 1,)).tolist(), longest]
    rows = [rows_of(1, length, trained, vocab) for length in lengths]
    for number, row in enumerate(rows, 1):
        row.document_ids *= number
    names = ("input_ids", "labels", "position_ids", "document_ids")
    joined = SimpleNamespace(**{name: torch.cat([getattr(row, name) for row in rows], 1) for name in names})
    ids, labels = torch.zeros(count, longest, dtype=torch.long), torch.full((count, longest), -100)
    mask = torch.zeros_like(ids)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[place, :length], labels[place, :length], mask[place, :length] = row.input_ids, row.labels, 1
    return joined, SimpleNamespace(input_ids=ids, labels=labels, attention_mask=mask)


class Ours:
    def __init__(self, directory: Path) -> None:
        self.model = load_causal(directory, dtype="float32")
        add_lora(self.model, Lora(rank=16), seed=0)
        self.objective = causal_objective(self.model)
        self.optimizer = Optimizer(self.model, TrainingChoice())
        self.model.train()

    def step(self, batch: SimpleNamespace) -> float:
        with self.objective.scope(self.model):
            loss = self.objective(self.model, batch)
            mean = loss.total / loss.weight
            mean.backward()
        self.optimizer.clip()
        self.optimizer.step(RATE)
        return mean.item()


class Plain:
    def __init__(self, directory: Path, start: dict[str, torch.Tensor]) -> None:
        base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = peft.get_peft_model(base, config)
        peft.set_peft_model_state_dict(self.model, start)
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.adamw = torch.optim.AdamW(self.trained, lr=RATE, weight_decay=0.0)
        self.model.train()

    def step(self, batch: SimpleNamespace) -> float:
        mask = getattr(batch, "attention_mask", torch.ones_like(batch.input_ids))
        loss = self.model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--trained", type=float, nargs="+", default=[1.0, 0.3])
    parser.add_argument("--uneven", action="store_true", help="rows of many lengths, padded for the other")
    parser.add_argument("--only", choices=["ours", "plain"], help="one alone, for its peak memory")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    ours = Ours(given.model)
    start = {name: tensor.clone() for name, tensor in adapter_tensors(ours.model).items()}
    sides = {}
    if given.only != "plain":
        sides["ours"] = ours
    else:
        del ours
    if given.only != "ours":
        sides["plain"] = Plain(given.model, start)
    vocab = 49_000
    results = []
    for trained in given.trained:
        figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
        counts: list[int] = []
        for window in range(given.windows + 1):
            if given.uneven:
                joined, padded = uneven(given.rows, given.length, trained, vocab)
            else:
                joined = padded = rows_of(given.rows, given.length, trained, vocab)
            counts.append(joined.input_ids.numel())
            for name, side in sides.items():
                wall, cpu = time.perf_counter(), time.process_time()
                loss = side.step(joined if name == "ours" else padded)
                if window:  # the first warms up
                    figures[name].append((time.perf_counter() - wall, time.process_time() - cpu, loss))
        counts = counts[1:]
        row: dict[str, object] = {"trained_share": trained, "tokens": statistics.mean(counts)}
        if given.uneven:
            row["padded_tokens"] = given.rows * given.length
        for name, steps in figures.items():
            row[name] = {
                "wall_seconds": [round(wall, 3) for wall, _, _ in steps],
                "cpu_seconds": [round(cpu, 3) for _, cpu, _ in steps],
                "losses": [loss for _, _, loss in steps],
                "tokens_per_second": statistics.median(
                    count / wall for count, (wall, _, _) in zip(counts, steps, strict=True)
                ),
            }
        if len(sides) == 2:
            pairs = list(zip(figures["plain"], figures["ours"], strict=True))
            row["speedup_wall"] = statistics.median(plain[0] / mine[0] for plain, mine in pairs)
            row["speedup_cpu"] = statistics.median(plain[1] / mine[1] for plain, mine in pairs)
            row["largest_loss_difference"] = max(abs(plain[2] - mine[2]) for plain, mine in pairs)
        results.append(row)
        print(json.dumps(row))
    report = {
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "python": platform.python_version(),
        "threads": given.threads,
        "load_at_end": os.getloadavg(),
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "results": results,
    }
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

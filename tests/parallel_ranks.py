"""What two processes compute together, for tests to hold against one: ``python -m parallel_ranks FOLDER``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from families import build
from luthier.models.lora import adapted, add_lora
from luthier.schema.recipe import Lora, Parallel
from luthier.tasks.causal import causal_objective
from luthier.training.division import Division
from luthier.training.world import World, together

Found = dict[str, Any]
LAYOUT = [(40, 30), (50,), (5, 20, 25)]
"""Lengths of the documents in each row: 170 tokens, filled up to 256, with the middle in the fifth one."""


@dataclass(frozen=True)
class Case:
    """One model trained in one way, on one side of the grid."""

    side: str
    family: str
    method: str
    changes: dict[str, Any] = field(default_factory=dict)


def _cases() -> dict[str, Case]:
    wanted = {
        "context": ("Llama", "Mistral", "Qwen3", "Gemma2", "Gemma3", "Mixtral"),
        "tensor": ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3"),
        "expert": ("Mixtral", "Qwen3Moe"),
        "pipeline": ("Llama", "Gemma2", "Gemma3", "Granite", "Mixtral"),
    }
    found = {
        f"{side} {family} {method}": Case(side, family, method)
        for side, families in wanted.items()
        for family in families
        for method in ("full", "lora")
    }
    odd = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3}
    found["pipeline Llama tied"] = Case("pipeline", "Llama", "full", {"tie_word_embeddings": True})
    found["context Llama 3 heads"] = Case("context", "Llama", "lora", odd)
    found["context Llama 1 key head"] = Case("context", "Llama", "lora", {"num_key_value_heads": 1})
    return found


CASES = _cases()


def batch() -> Any:
    """Packed rows; about a third of the tokens carry no loss."""
    draw = torch.Generator().manual_seed(4)
    width = max(map(sum, LAYOUT)) + 2
    ids = torch.randint(3, 90, (len(LAYOUT), width), generator=draw)
    labels = torch.where(torch.rand(ids.shape, generator=draw) < 0.35, -100, ids)
    positions, documents = torch.zeros_like(ids), torch.zeros_like(ids)
    for index, row in enumerate(LAYOUT):
        start = 0
        for number, length in enumerate(row, 1):
            positions[index, start : start + length] = torch.arange(length)
            documents[index, start : start + length] = number
            start += length
    return SimpleNamespace(input_ids=ids, labels=labels, position_ids=positions, document_ids=documents)


def model_of(case: Case) -> Any:
    """A tiny model whose adapters, if it has any, are not at zero."""
    model = build(case.family, **case.changes)
    if case.method == "full":
        return model.requires_grad_(True).train()
    add_lora(model, Lora(rank=4, dropout=0), seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_B.normal_(std=0.1, generator=draw)
    return model.train()


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def computed(model: Any, objective: Any, division: Division) -> Found:
    """Loss, norm and whole gradients after one micro-batch."""
    loss = objective(model, batch())
    with objective.scope(model):
        loss.total.backward()
    return measured(model, loss.total, division)


def measured(model: Any, loss: torch.Tensor, division: Division) -> Found:
    """Loss, norm and whole gradients after a backward pass."""
    weights = trained(model)
    division.add_up(weights)
    norm = division.norm(weights).item()
    grads = division.whole({name: one.grad for name, one in weights.items() if one.grad is not None})
    return {"loss": loss.item(), "norm": norm, "grads": grads}


def alone(case: Case) -> Found:
    """What one process computes."""
    model = model_of(case)
    return computed(model, causal_objective(model), Division())


def context(world: World, case: Case) -> Found:
    """The same where each process has a run of the tokens."""
    from luthier.tasks.context import context_objective

    model = model_of(case)
    division = Division(world, "context", summed=frozenset(trained(model)))
    return computed(model, context_objective(causal_objective(model), division.group), division)


def tensor(world: World, case: Case) -> Found:
    """The same where each process has slices of the matrices."""
    from luthier.models.tensor_parallel import divide_matrices

    model = model_of(case)
    objective = causal_objective(model)
    division = Division(world, "tensor")
    divided = divide_matrices(model, division.group)
    return computed(model, objective, replace(division, cuts=divided.cuts, summed=frozenset(divided.summed)))


def expert(world: World, case: Case) -> Found:
    """The same where each process has some of the experts."""
    from luthier.models.expert_parallel import divide_experts

    model = model_of(case)
    objective = causal_objective(model)
    division = Division(world, "expert")
    return computed(model, objective, replace(division, cuts=divide_experts(model, division.group)))


def pipeline(world: World, case: Case) -> Found:
    """The same where each process has some of the layers; each row is a micro-batch."""
    from luthier.models.stage import keep_stage
    from luthier.tasks.pipeline import pipeline_objective

    model = model_of(case)
    plain = causal_objective(model)
    division = Division(world, "pipeline")
    stage, twins = keep_stage(model, division.place, 2)
    objective = pipeline_objective(plain, stage, division.group)
    whole = batch()
    few = objective.step(model, [whole], 1.0)  # fewer micro-batches than stages
    torch.testing.assert_close(objective(model, whole).total, few)
    model.zero_grad()
    rows = [SimpleNamespace(**{n: t[i : i + 1] for n, t in vars(whole).items()}) for i in range(len(LAYOUT))]
    loss = objective.step(model, rows, 1.0)
    torch.testing.assert_close(loss, few)
    return measured(model, loss, replace(division, twins=twins))


SIDES = {"context": context, "tensor": tensor, "expert": expert, "pipeline": pipeline}


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    with together(rank, 2, "cpu", local=rank, address=f"file://{folder / 'meeting'}") as world:
        found = {}
        for side, run in SIDES.items():
            part = World(rank, 2, world.device, Parallel(**{side: 2}))
            found |= {name: run(part, case) for name, case in CASES.items() if case.side == side}
        torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

"""What two processes compute together, or four: ``python -m parallel_ranks FOLDER cpu`` (cuda, four)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from families import build
from luthier.models.lora import adapted, add_lora
from luthier.models.packed import pack_base
from luthier.planning.division import FAMILIES
from luthier.schema.recipe import Lora, Parallel, QLora, TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.tasks.parallel import take_part
from luthier.training.division import WHOLE, Division
from luthier.training.layers import Keeping, prepared
from luthier.training.loop import fit
from luthier.training.objective import WholeStep
from luthier.training.world import World, together

Found = dict[str, Any]
NAMES = {
    "gemma2": "Gemma2", "gemma3_text": "Gemma3", "granite": "Granite", "llama": "Llama", "mistral": "Mistral",
    "mixtral": "Mixtral", "olmo2": "Olmo2", "phi3": "Phi3", "qwen2": "Qwen2", "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe", "smollm3": "SmolLM3",
}  # fmt: skip
"""Model type -> its name in `families`: every family that the planner lets through is computed."""
METHODS = {
    "lora": Lora(rank=4, dropout=0),
    "dora": Lora(rank=4, dropout=0, dora=True),
    "qlora": QLora(rank=4, dropout=0),
}
ADAPTED = ("llama", "qwen3", "gemma2", "mixtral")
"""Those that are computed with adapters too, which stand beside matrices of every family alike."""
LAYOUT = [(40, 30), (50,), (5, 20, 25)]
"""Lengths of the documents in each row: 170 tokens, filled up to 256, with the middle in the fifth one."""


@dataclass(frozen=True)
class Case:
    """One model trained in one way, on one side of the grid."""

    side: str
    family: str
    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    keeping: Keeping = "none"
    """What the backward pass finds kept."""


def _cases() -> dict[str, Case]:
    found = {
        f"{side} {kind} {method}": Case(side, NAMES[kind], method)
        for side, kinds in FAMILIES.items()
        for kind in sorted(kinds)
        for method in (("full", "lora") if kind in ADAPTED else ("full",))
    }
    for side in ("context", "pipeline", "expert"):
        kind = "mixtral" if side == "expert" else "llama"
        found |= {f"{side} {kind} {m}": Case(side, NAMES[kind], m) for m in ("dora", "qlora")}
    for side in ("context", "tensor", "pipeline"):
        found[f"{side} llama recomputed"] = Case(side, "Llama", "lora", keeping="full")
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
    labels[2, 8] = ids[2, 8]  # the first token of the second run: predicted from the last one of the first
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
    method = METHODS[case.method]
    pack_base(model, method)
    add_lora(model, method, seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_B.normal_(std=0.1, generator=draw)
    return model.train()


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def computed(model: Any, objective: Any, division: Division) -> Found:
    """Loss, norm of the gradients and whole gradients after one step over the rows."""
    device = next(model.parameters()).device
    whole = SimpleNamespace(**{name: tensor.to(device) for name, tensor in vars(batch()).items()})
    if isinstance(objective, WholeStep):
        few = objective.step(model, [whole], 1.0)  # fewer micro-batches than stages
        torch.testing.assert_close(objective(model, whole).total, few)
        model.zero_grad()
        rows = [replaced(whole, slice(row, row + 1)) for row in range(len(LAYOUT))]
        loss = objective.step(model, rows, 1.0)
        torch.testing.assert_close(loss, few)
    else:
        with objective.scope(model):
            loss = objective(model, whole).total
            loss.backward()
    weights = trained(model)
    division.add_up(weights)
    norm = division.norm(weights).item()
    found = {name: one.grad for name, one in weights.items() if one.grad is not None}
    grads = division.whole(found, weights)
    grads = {name: grad.cpu() for name, grad in grads.items()}
    return {"loss": loss.item(), "norm": norm, "grads": grads}


def replaced(whole: Any, rows: slice) -> Any:
    return SimpleNamespace(**{name: tensor[rows] for name, tensor in vars(whole).items()})


def alone(case: Case) -> Found:
    """What one process computes."""
    model = model_of(case)
    return computed(model, causal_objective(model), WHOLE)


def shared(world: World, case: Case) -> Found:
    """What this one of two processes computes, and the gradients of both."""
    model = model_of(case).to(world.device)
    objective, division = take_part(model, causal_objective(model), world, world.device)
    with prepared(model, keeping=case.keeping):
        return computed(model, objective, division)


class Rows:
    """Three micro-batches of one row each, in every step: two processes have two and one of them."""

    def steps(self, epoch: int) -> int:
        return 4

    def batches(self, epoch: int, step: int) -> list[Any]:
        whole = batch()
        return [replaced(whole, slice(row, row + 1)) for row in range(len(LAYOUT))]

    def rows(self, epoch: int, step: int) -> list[str]:
        return []


def fitted(world: World, case: Case, folder: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of a training, whose checkpoints go below the folder."""
    model, division, events = model_of(case), WHOLE, []
    objective: Any = causal_objective(model)
    if world.size > 1:
        objective, division = take_part(model, objective, world, world.device)
    choice = TrainingChoice(
        max_steps=4, learning_rate=1e-3, evaluate_every=2, checkpoint_every=2, select="last"
    )
    fit(
        model, objective, Rows(), Rows().batches(0, 0), choice=choice, seed=1, directory=folder,
        recipe_digest="parts", device=world.device, on_metrics=events.append, world=world, division=division,
    )  # fmt: skip
    return [(event["loss"], event["grad_norm"]) for event in events if event["kind"] == "step"]


FITTED = {
    "context": Case("context", "Llama", "lora"),
    "tensor": Case("tensor", "Llama", "full"),
    "pipeline": Case("pipeline", "Llama", "full", {"tie_word_embeddings": True}),
    "expert": Case("expert", "Mixtral", "full"),
}


def twins(world: World, folder: Path) -> dict[str, torch.Tensor]:
    """Weights that the first and the last stage both have, after updates that round them by chance."""
    model = model_of(FITTED["pipeline"]).bfloat16()
    objective, division = take_part(model, causal_objective(model), world, world.device)
    before = {name: model.get_parameter(name).detach().clone() for name in division.twins}
    choice = TrainingChoice(
        max_steps=4, learning_rate=1e-3, evaluate_every=4, checkpoint_every=4, optimizer="adamw-bf16"
    )
    fit(
        model, objective, Rows(), [], choice=choice, seed=1, directory=folder, recipe_digest="twins",
        device=world.device, on_metrics=lambda _: None, world=world, division=division,
    )  # fmt: skip
    found = {name: model.get_parameter(name).detach().cpu() for name in division.twins}
    assert not any(torch.equal(weight, before[name].cpu()) for name, weight in found.items())
    return found


def main_of_four(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    with together(rank, 4, "cpu", local=rank, address=f"file://{folder / 'meeting'}") as world:
        for side, case in FITTED.items():
            (folder / side).mkdir(exist_ok=True)
            part = World(rank, 4, world.device, Parallel(replicate=2, **{side: 2}))
            found = fitted(part, case, folder / side)
            if rank == 0:
                torch.save(found, folder / f"{side}.pt")


def main(folder: Path, kind: str) -> None:
    rank = int(os.environ["RANK"])
    with together(rank, 2, kind, local=rank, address=f"file://{folder / 'meeting'}") as world:
        found = {}
        for side in FAMILIES:
            part = World(rank, 2, world.device, Parallel(**{side: 2}))
            found |= {name: shared(part, case) for name, case in CASES.items() if case.side == side}
        found["twins"] = twins(World(rank, 2, world.device, Parallel(pipeline=2)), folder)
        torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "four":
        main_of_four(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2])

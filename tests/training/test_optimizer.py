"""Optimisers besides AdamW with fp32 masters, and layers that are left alone."""

import pytest
import torch
from torch import nn

from luthier.errors import RecipeError, Unsupported
from luthier.schema.recipe import TrainingChoice
from luthier.training import fused
from luthier.training.layers import train_all_but
from luthier.training.optimizer import Optimizer
from luthier.training.rounding import RoundedAdamW, stochastic


def test_rounding_by_chance_is_exact_on_average():
    torch.manual_seed(0)
    value = 1 + 3 / 1024  # between two bf16 numbers, 1 and 1 + 1/128, three eighths of the way
    rounded = stochastic(torch.full((200_000,), value), torch.bfloat16)
    assert set(rounded.float().unique().tolist()) == {1.0, 1 + 1 / 128}
    assert rounded.float().mean().item() == pytest.approx(value, abs=1e-4)
    odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 3.0, -2.5])
    assert torch.equal(stochastic(odd, torch.bfloat16), odd.to(torch.bfloat16))
    assert stochastic(torch.tensor([float("nan")]), torch.bfloat16).isnan().all()


def test_in_fp32_it_is_adamw():
    torch.manual_seed(0)
    start = torch.randn(5, 7)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = RoundedAdamW([ours], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    other = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(6):
        ours.grad = torch.randn(5, 7)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_small_updates_are_not_lost_in_bf16():
    """A thousand steps, each a twentieth of what bf16 can tell apart."""
    torch.manual_seed(0)
    found = {}
    for name in ("adamw-bf16", "nearest"):
        weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        if name == "nearest":
            update = torch.optim.AdamW([weight], lr=2e-4, weight_decay=0.0)
        else:
            update = RoundedAdamW([weight], lr=2e-4, betas=(0.9, 0.999))
        for _ in range(500):
            weight.grad = torch.ones_like(weight)
            update.step()
        found[name] = weight.float().mean().item()
    assert found["nearest"] == 1.0
    assert found["adamw-bf16"] == pytest.approx(0.9, abs=0.005)


def test_pure_bf16_has_no_masters_and_goes_on_from_its_state():
    def run(steps, model, optimizer):
        for step in steps:
            torch.manual_seed(step)
            model(torch.randn(3, 8, dtype=torch.bfloat16)).square().sum().backward()
            torch.manual_seed(step)
            optimizer.step(1e-3)

    def fresh():
        torch.manual_seed(1)
        model = nn.Linear(8, 8).to(torch.bfloat16)
        return model, Optimizer(model, TrainingChoice(optimizer="adamw-bf16"))

    whole, one = fresh()
    assert all(one.masters[name] is weight for name, weight in one.model_weights.items())
    run(range(6), whole, one)
    part, two = fresh()
    run(range(3), part, two)
    again, three = fresh()
    three.load_weights({name: weight.detach().clone() for name, weight in two.weights().items()})
    three.load_state(two.state())
    run(range(3, 6), again, three)
    assert torch.equal(again.weight, whole.weight)


def test_eight_bits_are_refused_on_a_cpu():
    with pytest.raises(Unsupported, match="works on CUDA only"):
        Optimizer(nn.Linear(2, 2), TrainingChoice(optimizer="adamw-8bit"))


def test_the_first_layers_are_left_alone(tiny):
    model = tiny()
    train_all_but(model, 1)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in trained)
    train_all_but(model, 0)
    assert all(weight.requires_grad for weight in model.parameters())
    with pytest.raises(RecipeError, match="leave nothing to train"):
        train_all_but(model, 2)


def test_the_norm_of_narrow_gradients_is_summed_in_fp32():
    torch.manual_seed(0)
    model = nn.Linear(64, 33).to(torch.bfloat16)
    optimizer = Optimizer(model, TrainingChoice(optimizer="adamw-bf16", max_grad_norm=0.0))
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    wanted = torch.cat([weight.grad.double().flatten() for weight in model.parameters()]).norm().item()
    assert optimizer.clip().item() == pytest.approx(wanted, rel=1e-5)  # bf16 is right to 4e-3


def test_kernels_that_are_missing_on_a_gpu_are_said_with_what_it_costs(monkeypatch):
    monkeypatch.setattr(fused, "kernels", object)
    assert fused.missing(torch.device("cuda")) is None
    monkeypatch.setattr(fused, "kernels", lambda: None)
    assert fused.missing(torch.device("cpu")) is None
    said = fused.missing(torch.device("cuda"))
    assert said is not None
    assert "twice as long" in said
    assert "pip install triton" in said

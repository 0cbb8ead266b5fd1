"""Full fine-tuning with products in eight bits, on a CPU by casting and multiplying wide."""

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from luthier.errors import Unsupported
from luthier.models.float8_training import Float8Linear, float8_products
from luthier.schema.recipe import TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.training.layers import layers_of, prepared
from luthier.training.loop import fit

CHOICE = TrainingChoice(
    max_steps=20, learning_rate=3e-3, batch_size=4, micro_batch_size=2, sequence_length=32, evaluate_every=20,
    checkpoint_every=5, keep_last=9, select="last",
)  # fmt: skip
NEAR = 0.06
"""Relative error of a product of two matrices in e4m3 (3 bits of fraction: up to 1/16 a number, 1/28 in the
mean square each)."""
NEAR_FAR = 0.09
"""The same with one of them in e5m2 (2 bits of fraction)."""


def far(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


def one_layer(tokens=37, dtype=torch.float32):
    torch.manual_seed(3)
    layer = nn.Linear(64, 96, dtype=dtype).train()
    return layer, torch.randn(2, tokens, 64, dtype=dtype), torch.randn(2, tokens, 96, dtype=dtype)


def passes(layer, x, grad):
    x = x.clone().requires_grad_(True)
    layer.zero_grad()
    out = layer(x)
    out.backward(grad)
    return out.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_products_and_gradients_are_near_the_wide_ones(dtype):
    layer, x, grad = one_layer(dtype=dtype)
    wide = passes(layer, x, grad)
    with float8_products(layer, [layer]):
        found = passes(layer, x, grad)
    assert [one.dtype for one in found] == [dtype] * 4
    for place, bound in enumerate((NEAR, NEAR_FAR, NEAR_FAR)):
        assert 1e-3 < far(found[place], wide[place]) < bound
    assert torch.equal(found[3], wide[3])


def test_a_large_number_takes_the_range_and_nothing_overflows():
    layer, x, grad = one_layer()
    x[0, 0, 0], grad[0, 0, 0] = 1e6, 3e7
    with float8_products(layer, [layer]):
        assert all(torch.isfinite(one).all() for one in passes(layer, x, grad))
        zero = passes(layer, torch.zeros_like(x), torch.zeros_like(grad))
    assert not zero[1].any()
    assert not zero[2].any()


def test_only_trained_layers_whose_sides_fit_take_part_and_only_in_training(tiny):
    model = tiny()
    layers = layers_of(model)
    layers[0].self_attn.q_proj.weight.requires_grad_(False)
    odd = layers[1].mlp
    odd.gate_proj, odd.up_proj, odd.down_proj = nn.Linear(32, 50), nn.Linear(32, 50), nn.Linear(50, 32)
    kinds = {name: type(part) for name, part in model.named_modules()}
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        wide = model(ids).logits
    with float8_products(model, layers) as many:
        assert many == 2 * 7 - 1 - 3
        assert type(layers[0].self_attn.q_proj) is nn.Linear
        assert type(layers[0].mlp.down_proj) is Float8Linear
        assert type(model.lm_head) is nn.Linear
        names = list(model.state_dict())
        with torch.no_grad():
            assert torch.equal(model.eval()(ids).logits, wide)
            assert not torch.equal(model.train()(ids).logits, wide)
        model.eval()
    assert kinds == {name: type(part) for name, part in model.named_modules()}
    assert names == list(model.state_dict())


def test_a_model_without_such_a_layer_is_refused(tiny):
    model = tiny().requires_grad_(False)
    with pytest.raises(Unsupported, match="no linear layer"), float8_products(model, layers_of(model)):
        pass


class Killed(Exception):
    pass


def train(tiny, source, directory, *, narrow=True, killed_at=None, resume=False):
    model = tiny().bfloat16().requires_grad_(True)
    events = []

    def control():
        if sum(event["kind"] == "step" for event in events) == killed_at:
            raise Killed

    with float8_products(model, layers_of(model)) if narrow else nullcontext():
        fit(
            model, causal_objective(model), source, [], choice=CHOICE, seed=5, directory=directory,
            recipe_digest="r", device=torch.device("cpu"), on_metrics=events.append, control=control,
            resume=resume,
        )  # fmt: skip
    return model, [event["loss"] for event in events if event["kind"] == "step"]


def test_the_loss_falls_as_in_sixteen_bits_and_plain_weights_are_saved(
    tiny, make_source, make_documents, tmp_path
):
    rows = make_documents(40)
    _, wide = train(tiny, make_source(rows), tmp_path / "wide", narrow=False)
    model, narrow = train(tiny, make_source(rows), tmp_path / "narrow")
    assert wide != narrow
    fallen = wide[0] - sum(wide[-4:]) / 4
    assert fallen > 0.5
    assert abs(sum(narrow[-4:]) - sum(wide[-4:])) / 4 < 0.05 * fallen
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert {one.dtype for one in saved.values()} == {torch.bfloat16}
    for name, weight in model.named_parameters():
        assert torch.equal(saved[name], weight), name


def test_a_killed_run_goes_on_to_the_same_weights(tiny, make_source, make_documents, tmp_path):
    rows = make_documents(40)
    whole, losses = train(tiny, make_source(rows), tmp_path / "whole")
    with pytest.raises(Killed):
        train(tiny, make_source(rows), tmp_path / "cut", killed_at=8)
    again, rest = train(tiny, make_source(rows), tmp_path / "cut", resume=True)
    assert rest == losses[-len(rest) :]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.filterwarnings(  # torch's own tracing
    "ignore:The .grad attribute of a Tensor:UserWarning",
    "ignore:.*Function.> should not be inst:DeprecationWarning",
)
@pytest.mark.parametrize("keeping", ["none", "selective", "full", "offload"])
def test_compiled_layers_compute_the_same(tiny, make_micro, make_documents, fresh_compiler, keeping):
    batch = make_micro([[one] for one in make_documents(3)])

    def gradients(**kinds):
        model = tiny().requires_grad_(True).train()
        objective = causal_objective(model)
        narrow, within = float8_products(model, layers_of(model)), objective.scope(model)
        with narrow, within, prepared(model, backend="aot_eager", **kinds) as clock:
            objective(model, batch).total.backward()
        assert not clock.failed
        assert bool(clock.graphs) == kinds.get("compiled", False)
        return [weight.grad for weight in model.parameters()]

    for found, wanted in zip(gradients(compiled=True, keeping=keeping), gradients(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

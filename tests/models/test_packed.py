"""Frozen weights in four and eight bits: as bitsandbytes has them, right gradients, merged as trained."""

import json

import pytest
import torch
from torch import nn

from luthier.errors import Unsupported
from luthier.models import float8, nf4
from luthier.models.adapter_files import save_adapter
from luthier.models.load import load_causal
from luthier.models.lora import adapted, add_lora
from luthier.models.merging import merge_and_compare
from luthier.models.packed import PackedLinear, demand_float8, pack_base, pack_linears, packing_of
from luthier.schema.recipe import Lora, QLora

bnb = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(48, 64), (64, 96), (128, 256)])
def test_dequantised_is_what_bitsandbytes_gives(double, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    parts = nf4.quantise(weight, double=double)
    assert torch.equal(parts[0], packed)
    found = nf4.dequantised(parts, shape[1], torch.float32)
    if shape[1] % 64 == 0:  # bitsandbytes' own answer for other widths is wrong on a CPU (0.50.2)
        assert torch.equal(found, bnb.functional.dequantize_4bit(packed, state))
    assert len(parts) == (6 if double else 3)
    assert 0.05 < (found - weight).norm() / weight.norm() < 0.12


def test_forward_and_gradients_are_those_of_bitsandbytes_layer():
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
    theirs = bnb.nn.Linear4bit(
        64, 48, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    )
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to("cpu")
    ours = PackedLinear(64, 48, nf4.quantise(plain.weight.detach()), "nf4", torch.float32, plain.bias)
    x = torch.randn(2, 7, 64, requires_grad=True)
    grad = torch.randn(2, 7, 48)
    got, wanted = ours(x), theirs(x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    (mine,) = torch.autograd.grad(got, x, grad)
    (other,) = torch.autograd.grad(wanted, x, grad)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [QLora(rank=4), Lora(rank=4, base="float8"), QLora(rank=4, dora=True)])
def test_adapters_over_a_packed_base_equal_adapters_over_what_it_stands_for(tiny, family, kind):
    packed, plain = tiny(family), tiny(family)
    pack_base(packed, kind)
    with torch.no_grad():
        for path, layer in [(p, m) for p, m in packed.named_modules() if isinstance(m, PackedLinear)]:
            plain.get_submodule(path).weight.copy_(layer.frozen_weight())
    for model in (packed, plain):
        add_lora(model, kind.model_copy(update={"base": None}), seed=3)
        generator = torch.Generator().manual_seed(4)
        for _, layer in adapted(model):
            layer.lora_B.data.normal_(0, 0.1, generator=generator)
    ids = torch.arange(3, 40)[None]
    losses, grads = [], []
    for model in (packed, plain):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        grads.append({name: w.grad for name, w in model.named_parameters() if w.grad is not None})
    # Eight-bit products round what goes through them too; four-bit ones do not.
    near = 5e-2 if kind.base == "float8" else 1e-4
    assert losses[0] == pytest.approx(losses[1], rel=near)
    assert grads[0].keys() == grads[1].keys()
    if kind.base != "float8":
        for name, grad in grads[1].items():
            torch.testing.assert_close(grads[0][name], grad, rtol=near, atol=near * grad.abs().max().item())


def test_only_the_head_and_what_is_asked_stay_as_they_are(tiny):
    model = tiny("qwen2")
    assert packing_of(model) == ""
    count = pack_linears(model, "nf4", leave=["model.layers.0.mlp"])
    assert count == 2 * 7 - 3
    assert packing_of(model) == "nf4"
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert pack_base(model, QLora()) == 3


def test_a_model_read_in_four_bits_is_the_same_model_packed(tiny, tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    read = load_causal(tmp_path, dtype="float32", four_bit=QLora())
    pack_linears(model, "nf4")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits)
    assert sum(isinstance(part, PackedLinear) for part in read.modules()) == 14


def test_merging_gives_what_was_trained_and_says_how_near(tiny, tmp_path):
    (tmp_path / "base").mkdir()
    tiny("qwen3").save_pretrained(tmp_path / "base")
    model = load_causal(tmp_path / "base", dtype="float32", four_bit=QLora())
    add_lora(model, QLora(rank=4), seed=1)
    for _, layer in adapted(model):
        layer.lora_B.data.normal_(0, 0.1)
    save_adapter(model, tmp_path / "adapter", base_id="x", lora=QLora(rank=4))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    found = merge_and_compare(model)
    assert found["base"] == "nf4"
    assert found["largest_difference"] < 1e-4 * max(1.0, found["scale"])
    assert found["same_first_choice"] == 1.0
    assert packing_of(model) == ""
    model.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()
    again = load_causal(tmp_path / "merged", dtype="float32")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert merge_and_compare(again) is None


def test_eight_bits_hold_the_weight_to_four_per_cent():
    weight = torch.randn(64, 96)
    parts = float8.quantise(weight)
    assert (float8.dequantised(parts, torch.float32) - weight).norm() < 0.04 * weight.norm()
    x, grad = torch.randn(9, 96), torch.randn(9, 64)
    assert (float8.product(float8.cast(x), parts, None, x.dtype) - x @ weight.t()).norm() < 0.06 * (
        x @ weight.t()
    ).norm()
    assert (float8.product_back(float8.cast(grad), parts, grad.dtype) - grad @ weight).norm() < 0.06 * (
        grad @ weight
    ).norm()


def test_a_device_without_eight_bit_products_is_refused():
    with pytest.raises(Unsupported, match="eight-bit numbers, which this CPU has not"):
        demand_float8("cpu")

"""Frozen weights that come one layer ahead: the same answers and gradients, and what is where when."""

import gc
import weakref

import pytest
import torch
import transformers

from luthier.errors import TrainingError, Unsupported
from luthier.models.lora import adapted as adapted_layers
from luthier.models.lora import add_lora, merge
from luthier.models.packed import pack_base
from luthier.models.streamed import Streamed, settle_on_host, stream_layers
from luthier.schema.recipe import Lora, QLora, TrainingChoice
from luthier.sizing.offload import LEAST
from luthier.training.layers import layers_of, prepared
from luthier.training.optimizer import Optimizer

METHODS = {
    "lora": Lora(rank=4),
    "dora": Lora(rank=4, dora=True, dropout=0.2),
    "qlora": QLora(rank=4),
    "float8": Lora(rank=4, base="float8"),
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def every_weight_waits(monkeypatch):
    """Tiny models have no weights that are worth it."""
    monkeypatch.setattr("luthier.models.streamed.LEAST", 512)


def adapted(tiny, family, method):
    model = tiny(family)
    pack_base(model, method)
    add_lora(model, method, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def batch():
    return torch.randint(3, 160, (2, 17), generator=torch.Generator().manual_seed(9))


def step(model, keeping, compiled=False):
    """Loss and gradients of one pass in training."""
    model.train()
    torch.manual_seed(4)
    ids = batch()
    with prepared(model, keeping=keeping, compiled=compiled, backend="aot_eager"):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    model.eval()
    return loss.detach(), found


@pytest.mark.parametrize("keeping", ["full", "offload"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_weights_that_stay(tiny, family, method, keeping):
    expected_loss, expected = step(adapted(tiny, family, METHODS[method]), keeping)
    model = adapted(tiny, family, METHODS[method])
    chain = stream_layers(model, layers_of(model), CPU)
    seen = []

    def look(layer, _args):
        """A layer's frozen tensors stand in one of the places while it runs."""
        for tensor in layer.base_tensors():
            if tensor.numel() * tensor.element_size() >= 512:
                inside = [
                    place.data_ptr() <= tensor.data_ptr() < place.data_ptr() + place.numel()
                    for place in chain.places
                ]
                seen.append(any(inside))

    for _, layer in list(adapted_layers(model)):
        layer.register_forward_pre_hook(look)
    loss, found = step(model, keeping)
    assert len(seen) >= 2 * 2 * 7
    assert all(seen)
    assert torch.equal(loss, expected_loss)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert torch.equal(grad, expected[name]), name
    # Two layers: each is brought once forwards and both are still there backwards.
    assert chain.copies == 2


# torch's compiler warns of torch's own old names while it is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_compiled_layers_take_streamed_weights(tiny, method):
    expected_loss, expected = step(adapted(tiny, "llama", METHODS[method]), "full")
    model = adapted(tiny, "llama", METHODS[method])
    stream_layers(model, layers_of(model), CPU)
    loss, found = step(model, "full", compiled=True)
    assert torch.allclose(loss, expected_loss, atol=1e-5)
    for name, grad in found.items():
        assert torch.allclose(grad, expected[name], atol=1e-5, rtol=1e-4), name


def test_two_places_serve_any_number_of_layers(tiny):
    config = tiny("llama").config
    config.num_hidden_layers = 5
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    add_lora(model, Lora(rank=2), seed=1)
    ids = batch()
    before = model(ids).logits
    parameters = {id(one): one.data_ptr() for one in model.parameters()}
    chain = stream_layers(model, layers_of(model), CPU)
    assert len(chain.places) == 2
    assert sum(place.numel() for place in chain.places) == 2 * max(chain.sizes)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    # Five layers, and the first again for the next pass.
    assert chain.copies == 6
    assert sorted(chain.holds) == [0, 4]
    waiting = [part for parts in chain.parts for part in parts]
    assert len(waiting) == 5 * 7
    for parts, host in zip(chain.parts, chain.host, strict=True):
        first, last = host.data_ptr(), host.data_ptr() + host.numel()
        assert all(first <= part.tensor.data_ptr() < last for part in parts)
    assert {id(one) for one in model.parameters()} == parameters.keys()
    began = chain.copies
    found = step(model, "full")
    # Forwards five, the first of which was there; backwards all but the two that still were.
    assert chain.copies - began == 4 + 3
    settle_on_host(model)
    expected = step(model, "full")
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(grad, expected[1][name]) for name, grad in found[1].items())


def test_what_a_layer_keeps_would_hold_its_weights(tiny):
    model = adapted(tiny, "llama", METHODS["lora"])
    stream_layers(model, layers_of(model), CPU)
    for settings in ({"keeping": "none"}, {"keeping": "full", "recomputed": 1}):
        with pytest.raises(Unsupported, match="offload_parameters"), prepared(model, **settings):
            pass


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_trained_model_settles_and_merges_as_any_other(tiny, method):
    model, other = (adapted(tiny, "qwen3", METHODS[method]) for _ in range(2))
    stream_layers(model, layers_of(model), CPU)
    for one in (model, other):
        optimizer = Optimizer(one, TrainingChoice(learning_rate=1e-2))
        ids = batch()
        with prepared(one, keeping="full"):
            one(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step(1e-2)
    ids = batch()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, other(ids).logits)
        assert settle_on_host(model)
        assert not settle_on_host(model)
        assert torch.equal(model(ids).logits, other(ids).logits)
        merge(model)
        merge(other)
        assert torch.equal(model(ids).logits, other(ids).logits)


def test_what_does_not_arrive_is_seen_before_a_step(tiny, monkeypatch):
    model = adapted(tiny, "llama", METHODS["qlora"])
    chain = stream_layers(model, layers_of(model), CPU)
    chain.verify()
    assert chain.copies == 2
    copy = Streamed._copy

    def late(self, index, at):
        """The copy into one place comes too late."""
        before = self.places[at].clone()
        copy(self, index, at)
        if index:
            self.places[at].copy_(before)

    monkeypatch.setattr(Streamed, "_copy", late)
    chain.holds = [None, None]
    for place in chain.places:
        place.zero_()
    with pytest.raises(TrainingError, match="layer 1 did not arrive"):
        chain.verify()


def test_small_tensors_stay(tiny, monkeypatch):
    monkeypatch.setattr("luthier.models.streamed.LEAST", LEAST)
    model = adapted(tiny, "llama", METHODS["lora"])
    chain = stream_layers(model, layers_of(model), CPU)
    assert chain.sizes == [0, 0]
    with torch.no_grad():
        model(batch())


def test_a_model_that_nobody_asks_for_is_gone_at_once(tiny):
    """With all that waits on the host, before any collection of cycles, as one that stays on the device."""
    model = adapted(tiny, "qwen3", METHODS["lora"])
    chain = stream_layers(model, layers_of(model), CPU)
    step(model, "full")
    gc.collect()
    parts = [weakref.ref(part) for part in (model, chain, *layers_of(model), *chain.host)]
    gc.disable()
    try:
        del model, chain
        assert [part() for part in parts] == [None] * len(parts)
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("keeping", ["full", "offload"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_copies_beside_computing_on_a_gpu(tiny, method, keeping):
    config = tiny("llama").config
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 6, 512, 1024
    found = []
    for away in (False, True):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16)
        pack_base(model, METHODS[method])
        add_lora(model, METHODS[method], seed=1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("lora_B"):
                    weight.normal_(0, 0.02, generator=torch.Generator("cuda").manual_seed(len(name)))
        ids = torch.randint(3, 160, (4, 512), generator=torch.Generator().manual_seed(9)).cuda()
        if away:
            chain = stream_layers(model, layers_of(model), torch.device("cuda"))
            assert all(part.tensor.device.type == "cpu" for parts in chain.parts for part in parts)
        for _ in range(4):
            model.zero_grad()
            with prepared(model.train(), keeping=keeping):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
        grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        with torch.no_grad():
            found.append((loss.detach(), grads, model.eval()(ids).logits))
    (loss, grads, logits), (other_loss, other_grads, other_logits) = found
    assert torch.equal(loss, other_loss)
    assert torch.equal(logits, other_logits)
    assert grads.keys() == other_grads.keys()
    for name, grad in grads.items():  # attention's backward pass adds up in any order there
        near = 2e-2 * float(grad.abs().max())
        assert torch.allclose(grad, other_grads[name], atol=near, rtol=0), name

"""Compiled layers, and layers that keep less, against the model as it is: loss and every gradient."""

from types import SimpleNamespace

import pytest
import torch

from families import FAMILIES, batch, build, gradients
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora
from luthier.tasks.causal import causal_objective
from luthier.training.layers import layers_of, prepared

# Graph capture, autograd's joint graph and its cut into passes as on a GPU, without making C++ of it.
BACKEND = "aot_eager_decomp_partition"

# torch's compiler warns of torch's own old names while it is imported.
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def adapted(family, method="lora"):
    model = build(family).train()
    if method != "full":
        add_lora(model, Lora(rank=4, experts="all" if method == "experts" else "none"), seed=1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def outcome(model, objective, packed, **how):
    with prepared(model, **how) as clock, objective.scope(model):
        loss = objective(model, packed).total
        loss.backward()
    return loss.item(), gradients(model), clock


def same(one, other, near=2e-4):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in other[1].items():
        torch.testing.assert_close(one[1][name], gradient, rtol=near, atol=near * gradient.abs().max().item())


MIXTURES = {"Mixtral": "full", "Qwen3Moe": "lora"}
"""Mixtures of experts, each trained in one way: their graphs take longest to make."""


@pytest.mark.parametrize(
    ("family", "method"),
    [(name, method) for name in FAMILIES if name not in MIXTURES for method in ("lora", "full")]
    + list(MIXTURES.items()),
)
def test_compiled_is_eager(family, method):
    model, packed = adapted(family, method), batch()
    plain = outcome(model, causal_objective(model), packed)
    objective = causal_objective(model, compiled=True, longest=16)
    assert objective.tensors
    compiled = outcome(model, objective, packed, compiled=True, backend=BACKEND)
    same(compiled, plain)
    assert 1 <= compiled[2].graphs <= 2  # full and sliding layers
    assert compiled[2].seconds > 0


@pytest.mark.parametrize("keeping", ["selective", "full", "offload"])
@pytest.mark.parametrize("compiled", [True, False])
def test_whatever_is_kept_the_gradients_are_the_same(keeping, compiled):
    if keeping == "selective" and not compiled:
        pytest.skip("asks for compiled layers")
    model, packed = adapted("Gemma3"), batch()
    plain = outcome(model, causal_objective(model), packed)
    objective = causal_objective(model, compiled=compiled, longest=16)
    for recomputed in (None, 1):
        how = {"keeping": keeping, "compiled": compiled, "recomputed": recomputed, "backend": BACKEND}
        same(outcome(model, objective, packed, **how), plain)


def rows(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    width = sum(lengths)
    ids = torch.randint(3, 90, (1, width), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    documents = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths, 1)])[None]
    return SimpleNamespace(input_ids=ids, labels=ids, position_ids=positions, document_ids=documents)


@pytest.mark.parametrize("keeping", ["none", "selective", "full"])
def test_one_graph_serves_every_length(keeping):
    model = adapted("Llama")
    objective = causal_objective(model, compiled=True, longest=200)
    plain = causal_objective(model)
    layouts = [(30,), (5, 20, 40), (64,), (100, 28), (7,) * 20, (190, 3, 190), (64, 64, 64)]
    with prepared(model, keeping=keeping, compiled=True, backend=BACKEND) as clock, objective.scope(model):
        for number, lengths in enumerate(layouts):
            packed = rows(lengths, number)
            loss = objective(model, packed).total
            loss.backward()
            assert gradients(model)
            assert clock.graphs == 1
            with torch.no_grad():  # runs as it is
                assert plain(model, packed).total.item() == pytest.approx(loss.item(), rel=1e-5)


def test_an_evaluation_makes_no_graphs_and_the_model_is_left_as_it_was():
    model = adapted("Llama")
    objective = causal_objective(model, compiled=True)
    with prepared(model, compiled=True, backend=BACKEND) as clock, objective.scope(model), torch.no_grad():
        objective(model, batch())
    assert clock.graphs == 0
    assert all(layer._compiled_call_impl is None for layer in layers_of(model))


def test_recomputation_keeps_less():
    """Bytes that autograd holds between the passes, counted tensor by tensor."""
    held = {}
    for keeping in ("none", "selective", "full"):
        torch._dynamo.reset()
        model = adapted("Llama")
        objective = causal_objective(model, compiled=True)
        storages = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        with (
            prepared(model, keeping=keeping, compiled=True, backend=BACKEND),
            objective.scope(model),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            loss = objective(model, rows((64, 64), 1)).total
        held[keeping] = sum(size for place, size in storages.items() if place not in own)
        loss.backward()
    assert held["full"] < held["selective"] < held["none"]


def refuses(graph, inputs):
    raise RuntimeError("no kernel for this")


@pytest.mark.parametrize("keeping", ["none", "selective", "full", "offload"])
def test_where_the_compiler_fails_the_layers_run_as_they_are_and_that_is_said_once(keeping):
    torch.manual_seed(0)
    model, packed, said = adapted("Llama"), batch(), []
    objective = causal_objective(model)
    plain = outcome(model, objective, packed)
    model.zero_grad(set_to_none=True)
    found = outcome(
        model, objective, packed, keeping=keeping, compiled=True, backend=refuses, say=said.append
    )
    same(found, plain)
    (words,) = said
    assert "no kernel for this" in words
    assert ("computed again" in words) == (keeping == "selective")


def test_adapters_on_experts_in_fp32_are_not_compiled_and_that_is_said():
    """torch's grouped products are traced in bf16 alone."""
    model, packed, said = adapted("Qwen3Moe", "experts"), batch(), []
    objective = causal_objective(model)
    plain = outcome(model, objective, packed)
    model.zero_grad(set_to_none=True)
    found = outcome(model, objective, packed, compiled=True, backend=BACKEND, say=said.append)
    same(found, plain)
    (words,) = said
    assert "_grouped_mm" in words

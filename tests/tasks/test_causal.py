"""The objective against transformers' own loss, family by family, packed and not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers

from families import FAMILIES, SHAPE, batch, build, gradients, one_by_one
from luthier.models.attention import supports_documents
from luthier.tasks.causal import CausalObjective, causal_objective
from luthier.training.objective import flatten


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.mark.parametrize("way", ["flat", "padded", "flat, own logits", "padded, own logits"])
def test_packed_loss_and_gradients_are_those_of_each_document_alone(family, way):
    model = build(family)
    found = causal_objective(model)
    assert found.documents
    assert found.head is not None
    objective = CausalObjective(None if "own" in way else found.head, "flat" in way)
    packed = batch()
    expected, count = one_by_one(model, packed)
    expected.backward()
    wanted = gradients(model)
    loss = objective(model, packed)
    with objective.scope(model):
        loss.total.backward()
    assert loss.weight == count == objective.weight(packed)
    assert loss.total.item() == pytest.approx(expected.item(), rel=2e-6)
    got = gradients(model)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=2e-4, atol=2e-4 * gradient.abs().max().item())
    assert model.config._attn_implementation != "luthier_documents"


def test_a_filled_up_batch_has_the_same_loss_and_gradients(family):
    """What is recorded on a GPU: few shapes, filled up with places that do not count."""
    model = build(family)
    objective = replace(causal_objective(model), tensors=True, longest=13)
    assert objective.recordable
    packed = batch()
    expected, _ = one_by_one(model, packed)
    expected.backward()
    wanted = gradients(model)
    ids, positions, ends, sources, targets = objective.fixed(packed)
    assert ids.shape == positions.shape == (1, 64)
    assert ends.tolist() == [0, 9, 15, 28, 29, 32, 40, *[64] * 9]
    assert sources.shape == targets.shape == (64,)
    total = objective.total(model, ids, positions, ends, sources, targets)
    with objective.scope(model):
        total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=2e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=2e-4, atol=2e-4 * wanted[name].abs().max().item()
        )


def test_batches_of_many_lengths_come_in_few_shapes():
    model = build("Llama")
    objective = replace(causal_objective(model), tensors=True, longest=4096)
    shapes = set()
    for tokens in range(100, 4000, 37):
        ids = torch.full((1, tokens), 5)
        row = SimpleNamespace(
            input_ids=ids,
            labels=ids,
            position_ids=torch.arange(tokens)[None],
            document_ids=torch.ones_like(ids),
        )
        made = objective.fixed(row)
        assert made[0].shape[1] - tokens < max(64, tokens / 8)
        shapes.add(tuple(one.shape for one in made))
    assert len(shapes) < 50


def test_flattening_drops_padding_and_first_tokens():
    packed = batch()
    flat = flatten(packed)
    assert flat.lengths == (9, 6, 13, 1, 3, 8)
    assert flat.ids.shape == (1, 40)
    assert flat.positions[0, :16].tolist() == [*range(9), *range(6), 0]
    starts = {0, 9, 15, 28, 29, 32}
    assert not starts & set((flat.sources + 1).tolist())
    assert torch.equal(flat.ids[0, flat.sources + 1], flat.targets)


def test_a_document_does_not_see_its_neighbours():
    model = build("Llama")
    objective = causal_objective(model)
    packed = batch()
    before = objective(model, packed).total
    # The first document carries no loss now: changing its tokens must change nothing.
    packed.labels[0, :9] = -100
    first = objective(model, packed).total
    packed.input_ids[0, :9] = (packed.input_ids[0, :9] + 7) % 80 + 3
    assert objective(model, packed).total.item() == pytest.approx(first.item(), rel=1e-6)
    assert before.item() != pytest.approx(first.item(), rel=1e-3)


def test_models_that_cannot_be_flattened_are_padded():
    """A family with linear-attention layers carries state from token to token."""
    config = transformers.Qwen3NextConfig(
        **SHAPE, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
        shared_expert_intermediate_size=8, linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3NextForCausalLM(config).eval()
    assert not supports_documents(model)
    objective = causal_objective(model)
    assert not objective.documents
    packed = batch()
    expected, _ = one_by_one(model, packed)
    assert objective(model, packed).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_head_of_another_shape_is_found_out():
    """A bias on the head is not in the closed form: the model's own logits are used."""
    model = build("Llama")
    model.lm_head.bias = torch.nn.Parameter(torch.randn(90))
    objective = causal_objective(model)
    assert objective.head is None
    packed = batch()
    expected, _ = one_by_one(model, packed)
    assert objective(model, packed).total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_without_loss_weighs_nothing():
    model = build("Llama")
    packed = batch()
    packed.labels[:] = -100
    loss = causal_objective(model)(model, packed)
    assert (loss.total.item(), loss.weight) == (0.0, 0.0)

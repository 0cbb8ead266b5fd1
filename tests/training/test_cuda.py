"""What holds on a GPU; left out where there is none."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from luthier.models import float8
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import CausalObjective, causal_objective
from luthier.training.layers import prepared
from luthier.training.loop import fit
from luthier.training.losses import linear_cross_entropy
from luthier.training.objective import to_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = torch.device("cuda")


def build(window=None):
    torch.manual_seed(11)
    shape = {
        "vocab_size": 500, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "initializer_range": 0.05,
    }  # fmt: skip
    if window is None:
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    return MistralForCausalLM(MistralConfig(**shape, sliding_window=window)).eval()


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_is_padded(make_documents, make_micro, window, dtype):
    """The variable-length kernel against transformers' own attention over padded rows."""
    model = build(window).to(CUDA, dtype)
    add_lora(model, Lora(rank=8), seed=0)
    found = causal_objective(model)
    assert found.documents
    assert found.head is not None
    rows = make_documents(8)
    batch = to_device(make_micro([rows[:3], rows[3:4], rows[4:]]), CUDA)
    results = []
    for objective in (found, CausalObjective(found.head, documents=False)):
        loss = objective(model, batch)
        loss.total.backward()
        grads = [w.grad.clone() for w in model.parameters() if w.grad is not None]
        model.zero_grad(set_to_none=True)
        results.append((loss.total.item(), grads))
    near = 1e-4 if dtype == torch.float32 else 3e-2
    assert results[0][0] == pytest.approx(results[1][0], rel=near / 4)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert (one - other).norm() <= near * 2 * other.norm() + 1e-6


@pytest.mark.parametrize("lora", [Lora(rank=4, dropout=0.1), None])
def test_a_run_learns_and_resumes(make_source, make_documents, tmp_path, lora):
    choice = TrainingChoice(
        epochs=8, learning_rate=3e-3, checkpoint_every=5, activation_checkpointing="full", keep_last=9
    )

    def run(resume):
        model = build().to(CUDA, torch.bfloat16)
        if lora is not None:
            add_lora(model, lora, seed=1)
        events = []
        result = fit(
            model, causal_objective(model), make_source(make_documents(16)), [], choice=choice, seed=1,
            directory=tmp_path, recipe_digest="r", device=CUDA, on_metrics=events.append, resume=resume,
        )  # fmt: skip
        return result, [event["loss"] for event in events if event["kind"] == "step"]

    result, losses = run(resume=False)
    assert result.device == "cuda"
    assert losses[-1] < losses[0] - 0.3
    assert result.peak_memory > 0
    for step in (25, 30, 32):
        (tmp_path / "checkpoints" / f"step-{step:08d}" / "manifest.json").unlink()
    _, after = run(resume=True)
    assert len(after) == 12
    assert after == pytest.approx(losses[20:], rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-bf16"])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 2), (6, 4)])  # one micro-batch, two, two or one
def test_recorded_steps_are_the_plain_ones(make_source, make_documents, tmp_path, optimizer, sizes):
    found = {}
    for recorded in (False, True):
        choice = TrainingChoice(
            epochs=6, learning_rate=2e-3, optimizer=optimizer, cuda_graphs=recorded, checkpoint_every=99
        )
        model, events = build().to(CUDA, torch.bfloat16), []
        objective = replace(causal_objective(model), longest=19)
        assert objective.recordable
        fit(
            model, objective, make_source(make_documents(18), *sizes), [], choice=choice, seed=1,
            directory=tmp_path / str(recorded), recipe_digest="r", device=CUDA, on_metrics=events.append,
        )  # fmt: skip
        found[recorded] = [event["loss"] for event in events if event["kind"] == "step"]
        assert not [event["text"] for event in events if "kernel by kernel" in event.get("text", "")]
    assert found[True][-1] < found[True][0] - 0.3
    assert found[True] == pytest.approx(found[False], rel=0.03)


@pytest.mark.parametrize("keeping", ["none", "selective", "full", "offload"])
def test_compiled_layers_are_the_plain_ones(make_documents, make_micro, keeping):
    """Loss and gradients in bf16, whatever is kept for the backward pass."""
    model = build().to(CUDA, torch.bfloat16).train()
    add_lora(model, Lora(rank=8), seed=0)
    batch = to_device(make_micro([make_documents(8)]), CUDA)
    results = []
    for how in ({}, {"compiled": True, "keeping": keeping}):
        objective = causal_objective(model, compiled=bool(how), longest=64)
        with prepared(model, **how) as clock, objective.scope(model):
            loss = objective(model, batch).total
            loss.backward()
        results.append((loss.item(), [w.grad.clone() for w in model.parameters() if w.grad is not None]))
        model.zero_grad(set_to_none=True)
    assert clock.graphs >= 1
    assert results[1][0] == pytest.approx(results[0][0], rel=5e-3)
    for one, other in zip(results[1][1], results[0][1], strict=True):
        assert (one - other).norm() <= 4e-2 * other.norm() + 1e-6


@pytest.mark.parametrize(("multiplier", "softcap"), [(1.0, None), (0.5, None), (1.0, 5.0)])
def test_the_fused_loss_is_the_plain_one(multiplier, softcap):
    torch.manual_seed(0)
    hidden = torch.randn(700, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(900, 64, device=CUDA) * 0.3).bfloat16().requires_grad_(True)
    targets = torch.randint(0, 900, (700,), device=CUDA)
    loss = linear_cross_entropy(hidden, weight, targets, multiplier=multiplier, softcap=softcap)
    got = torch.autograd.grad(loss, (hidden, weight))
    logits = hidden.float() @ weight.float().t() * multiplier
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=2e-3)
    for one, other in zip(got, torch.autograd.grad(plain, (hidden, weight)), strict=True):
        assert (one.float() - other.float()).norm() <= 2e-2 * other.float().norm()


def test_eight_bit_products_are_near_the_exact_ones():
    torch.manual_seed(0)
    weight = torch.randn(128, 256, device=CUDA, dtype=torch.bfloat16)
    x = torch.randn(96, 256, device=CUDA, dtype=torch.bfloat16)
    parts = float8.quantise(weight)
    exact = x.float() @ weight.float().t()
    found = float8.product(float8.cast(x), parts, None, x.dtype).float()
    assert (found - exact).norm() <= 0.06 * exact.norm()

"""What holds on a GPU; left out where there is none."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import CausalObjective, causal_objective
from luthier.training.loop import fit, to_device

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

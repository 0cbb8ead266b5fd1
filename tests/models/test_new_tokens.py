"""Rows of new tokens trained beside frozen tables, against the peft package's trainable tokens."""

import peft
import pytest
import torch

from luthier.models.adapter_files import adapter_tensors, load_adapter, save_adapter
from luthier.models.lora import adapters_off, add_lora, merge
from luthier.models.merge_files import files_merge
from luthier.models.new_tokens import grow, rows_of_head, train_rows, trained_rows
from luthier.models.packed import pack_base
from luthier.schema.recipe import Lora, QLora
from luthier.tasks.causal import causal_objective
from luthier.training.losses import linear_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

LORA = Lora(rank=4, alpha=8)
PIECES = {160: (5, 9), 161: (9, 12, 40), 162: (7,)}
IDS = list(PIECES)


def with_rows(tiny, family, method=LORA):
    model = tiny(family)
    grow(model, PIECES)
    pack_base(model, method)
    add_lora(model, method, seed=1)
    train_rows(model, IDS)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def batch():
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(3, 160, (2, 17), generator=generator)
    ids[0, 3], ids[0, 9], ids[1, 2], ids[1, 5] = 160, 161, 162, 160
    return ids


def loss_of(model, ids):
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def theirs(tiny, family, folder):
    base = tiny(family)
    base.resize_token_embeddings(163, mean_resizing=False)
    return peft.PeftModel.from_pretrained(base, folder, is_trainable=True)


def test_rows_begin_as_the_mean_of_their_pieces(tiny, family):
    model, before = tiny(family), tiny(family)
    grow(model, PIECES)
    assert model.config.vocab_size == 163
    for table, old in (
        (model.get_input_embeddings(), before.get_input_embeddings()),
        (model.get_output_embeddings(), before.get_output_embeddings()),
    ):
        assert torch.equal(table.weight[:160], old.weight)
        assert torch.allclose(table.weight[161], old.weight[[9, 12, 40]].mean(0), atol=1e-6)
        assert torch.equal(table.weight[162], old.weight[7])


def test_a_table_with_rows_to_spare_keeps_its_length(tiny):
    model, before = tiny("qwen2"), tiny("qwen2")
    grow(model, {150: (5, 9)})
    assert model.get_input_embeddings().weight.shape == before.get_input_embeddings().weight.shape
    assert torch.allclose(model.lm_head.weight[150], before.lm_head.weight[[5, 9]].mean(0), atol=1e-6)
    assert torch.equal(model.lm_head.weight[149], before.lm_head.weight[149])


def test_peft_reads_the_adapter_and_answers_and_learns_alike(tiny, family, tmp_path):
    ours = with_rows(tiny, family)
    save_adapter(ours, tmp_path, base_id="tiny", lora=LORA)
    other = theirs(tiny, family, tmp_path)
    ids = batch()
    assert torch.allclose(ours(ids).logits, other(ids).logits, atol=2e-5)
    loss_of(ours, ids).backward()
    loss_of(other, ids).backward()
    gradients = {
        name.replace(".default", ""): weight.grad
        for name, weight in other.named_parameters()
        if weight.requires_grad and weight.grad is not None
    }
    tied = ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    rows = {path: own.rows.grad for path, _, own in trained_rows(ours)}
    assert len(rows) == (1 if tied else 2)
    for path, grad in rows.items():
        name = f"base_model.model.{path}.token_adapter.trainable_tokens_delta"
        assert grad.abs().max() > 0
        assert torch.allclose(grad, gradients[name], atol=1e-5, rtol=1e-4), path
    for name, weight in ours.named_parameters():
        if name.endswith("lora_B"):
            assert torch.allclose(weight.grad, gradients[f"base_model.model.{name}.weight"], atol=1e-5)


def test_the_loss_in_chunks_gives_the_same_gradients(tiny, family):
    model = with_rows(tiny, family)
    ids = batch()
    (loss_of(model, ids) * 32).backward()
    expected = {path: own.rows.grad.clone() for path, _, own in trained_rows(model)}
    model.zero_grad()
    objective = causal_objective(model)
    assert objective.head is not None
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    head = objective.head
    total = linear_cross_entropy(
        hidden, head.weight, ids[:, 1:].flatten(), multiplier=head.multiplier, softcap=head.softcap,
        new=head.new, places=head.places,
    )  # fmt: skip
    total.backward()
    for path, _, own in trained_rows(model):
        assert torch.allclose(own.rows.grad, expected[path], atol=2e-4, rtol=1e-3), path
    assert model.get_input_embeddings().weight.grad is None


def test_no_other_row_changes_and_adapters_off_is_the_base(tiny, family):
    model = with_rows(tiny, family)
    base = tiny(family)
    grow(base, PIECES)
    ids = batch()
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=0.1)
    loss_of(model, ids).backward()
    optimizer.step()
    tuned = model(ids).logits
    assert torch.equal(model.get_input_embeddings().weight[:160], base.get_input_embeddings().weight[:160])
    assert not torch.equal(model.get_input_embeddings().weight[160], base.get_input_embeddings().weight[160])
    with adapters_off(model):
        assert torch.allclose(model(ids).logits, base(ids).logits, atol=1e-5)
    assert torch.equal(model(ids).logits, tuned)


@pytest.mark.parametrize("method", [LORA, QLora(rank=4, alpha=8)])
def test_merging_leaves_a_plain_model_of_the_same_answers(tiny, family, method):
    model = with_rows(tiny, family, method)
    ids = batch()
    before = model(ids).logits
    merge(model)
    assert not any(True for _ in trained_rows(model))
    assert rows_of_head(model) is None
    assert torch.allclose(model(ids).logits, before, atol=1e-4)


def test_merging_files_is_merging_in_memory(tiny, family, tmp_path):
    tiny(family).save_pretrained(tmp_path / "base")
    model = with_rows(tiny, family)
    streamed = files_merge(model, tmp_path / "base")
    assert streamed is not None
    (tmp_path / "out").mkdir()
    streamed.write(tmp_path / "out")
    model.config.save_pretrained(tmp_path / "out")
    kind = type(model)
    merge(model)
    read = kind.from_pretrained(tmp_path / "out")
    assert read.config.vocab_size == 163
    for name, weight in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight), name


def test_a_saved_adapter_is_read_back(tiny, family, tmp_path):
    model = with_rows(tiny, family)
    save_adapter(model, tmp_path, base_id="tiny", lora=LORA)
    again = tiny(family)
    load_adapter(again, tmp_path)
    assert torch.equal(again(batch()).logits, model(batch()).logits)

"""Our adapters against the peft package: forward, gradients, files and merged weights."""

import json

import peft
import pytest
import torch

from luthier.errors import FileProblem, RecipeError, Unsupported
from luthier.models.adapter_files import adapter_tensors, load_adapter, save_adapter
from luthier.models.lora import adapted, adapters_off, add_lora, merge
from luthier.schema.recipe import Lora

# peft asks transformers for a property that the latter has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

KINDS = {
    "lora": Lora(rank=4, alpha=12),
    "rslora": Lora(rank=4, alpha=6, rslora=True),
    "dora": Lora(rank=3, alpha=5.5, dora=True),
}


@pytest.fixture(params=list(KINDS))
def lora(request):
    return KINDS[request.param]


def stir(model):
    """Move adapters off their start, where B is zero and hides A."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)


def ours(tiny, family, lora):
    model = tiny(family)
    add_lora(model, lora, seed=1)
    stir(model)
    return model


def theirs(tiny, family, lora, tensors):
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(tiny(family), config)
    result = peft.set_peft_model_state_dict(model, tensors)
    assert not result.unexpected_keys
    return model


def batch():
    generator = torch.Generator().manual_seed(9)
    return torch.randint(3, 160, (2, 17), generator=generator)


def their_gradients(model):
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            plain = name.replace(".default", "").replace(
                "lora_magnitude_vector.weight", "lora_magnitude_vector"
            )
            found[plain] = weight.grad
    return found


def our_gradients(model):
    found = {}
    for path, layer in adapted(model):
        found[f"base_model.model.{path}.lora_A.weight"] = layer.lora_A.grad
        found[f"base_model.model.{path}.lora_B.weight"] = layer.lora_B.grad
        if layer.magnitude is not None:
            found[f"base_model.model.{path}.lora_magnitude_vector"] = layer.magnitude.grad
    return found


def test_forward_and_every_gradient_equal_peft(tiny, family, lora):
    mine = ours(tiny, family, lora)
    reference = theirs(tiny, family, lora, adapter_tensors(mine))
    ids = batch()
    expected, got = reference(input_ids=ids, labels=ids), mine(input_ids=ids, labels=ids)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=2e-5)
    expected.loss.backward()
    got.loss.backward()
    wanted, found = their_gradients(reference), our_gradients(mine)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=3e-6, msg=lambda m: f"{name}: {m}")  # noqa: B023
    assert all(weight.grad is None for name, weight in mine.named_parameters() if not weight.requires_grad)


def test_starts_as_peft_starts(tiny):
    """B zero, A uniform within 1/sqrt(in): same law, seeded; the first answer is the base's."""
    base, model = tiny("qwen2"), tiny("qwen2")
    add_lora(model, Lora(rank=8), seed=4)
    again = tiny("qwen2")
    add_lora(again, Lora(rank=8), seed=4)
    other = tiny("qwen2")
    add_lora(other, Lora(rank=8), seed=5)
    for (_, layer), (_, same), (_, differs) in zip(
        adapted(model), adapted(again), adapted(other), strict=True
    ):
        assert torch.equal(layer.lora_A, same.lora_A)
        assert not torch.equal(layer.lora_A, differs.lora_A)
        bound = layer.in_features**-0.5
        assert bound * 0.9 < layer.lora_A.abs().max() <= bound
        assert not layer.lora_B.any()
    reference = peft.get_peft_model(tiny("qwen2"), peft.LoraConfig(r=8, target_modules="all-linear"))
    starts = [w.detach() for n, w in reference.named_parameters() if "lora_A" in n]
    mine = [layer.lora_A.detach() for _, layer in adapted(model)]
    assert torch.cat([w.flatten() for w in starts]).std() == pytest.approx(
        torch.cat([w.flatten() for w in mine]).std().item(), rel=0.05
    )
    ids = batch()
    torch.testing.assert_close(model(ids).logits, base(ids).logits, rtol=1e-5, atol=1e-5)


def test_saved_adapter_gives_the_same_logits_in_peft(tiny, family, lora, tmp_path):
    mine = ours(tiny, family, lora)
    save_adapter(mine, tmp_path, base_id="someone/model", lora=lora)
    loaded = peft.PeftModel.from_pretrained(tiny(family), tmp_path)
    ids = batch()
    torch.testing.assert_close(loaded(ids).logits, mine(ids).logits, rtol=1e-5, atol=2e-5)
    assert (
        json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "someone/model"
    )


def test_adapter_of_peft_is_loaded(tiny, lora, tmp_path):
    mine = ours(tiny, "qwen3", lora)
    reference = theirs(tiny, "qwen3", lora, adapter_tensors(mine))
    reference.save_pretrained(tmp_path)
    model = tiny("qwen3")
    settings = load_adapter(model, tmp_path)
    assert (settings.rank, settings.rslora, settings.dora) == (lora.rank, lora.rslora, lora.dora)
    ids = batch()
    torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-5, atol=2e-5)


def test_merged_equals_adapter(tiny, family, lora):
    model = ours(tiny, family, lora)
    ids = batch()
    with torch.no_grad():
        before = model(ids).logits
        base = tiny(family)(ids).logits
        layers = merge(model)
        after = model(ids).logits
    assert layers == 14
    assert not list(adapted(model))
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in tiny(family).named_parameters()
    ]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=3e-5)
    assert (after - base).abs().max() > 0.05


def test_adapters_off_is_the_base(tiny, lora):
    model, ids = ours(tiny, "llama", lora), batch()
    base = tiny("llama")(ids).logits
    with_adapter = model(ids).logits
    with adapters_off(model):
        assert torch.equal(model(ids).logits, base)
    assert torch.equal(model(ids).logits, with_adapter)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_falls_on_the_adapter_alone(tiny, dora):
    """The mean over many masks is the answer without dropout; the base's path is never dropped."""
    model = tiny("llama")
    add_lora(model, Lora(rank=4, alpha=16, dropout=0.3, dora=dora), seed=1)
    stir(model)
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(2))
    plain = layer(x)
    layer.train()
    torch.manual_seed(0)
    with torch.no_grad():
        many = torch.stack([layer(x) for _ in range(4000)])
    assert many.std(0).max() > 0.05
    torch.testing.assert_close(many.mean(0), plain, rtol=0.05, atol=0.05)


def test_named_targets_and_unknown_ones(tiny, tmp_path):
    model = tiny("llama")
    lora = Lora(rank=2, targets=("q_proj", "layers.1.mlp.up_proj"))
    paths = add_lora(model, lora, seed=0)
    assert paths == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    stir(model)
    save_adapter(model, tmp_path, base_id="x", lora=lora)
    loaded = peft.PeftModel.from_pretrained(tiny("llama"), tmp_path)
    ids = batch()
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=2e-5)
    with pytest.raises(RecipeError) as error:
        add_lora(tiny("llama"), Lora(targets=("q_porj",)))
    assert "did you mean q_proj" in (error.value.hint or "")


def test_frozen_layers_keep_no_activations(tiny):
    """Beside the input that the adapters need anyway, only [tokens, rank] is kept a layer."""
    model = tiny("llama")
    add_lora(model, Lora(rank=2), seed=0)
    layer = model.model.layers[0].mlp.down_proj
    x = torch.randn(1, 50, 48, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    weights = {layer.weight.data_ptr(), layer.lora_A.data_ptr(), layer.lora_B.data_ptr(), x.data_ptr()}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in weights] == [(50, 2)]


def test_bf16_base_with_fp32_adapters(tiny):
    model = tiny("llama").to(torch.bfloat16)
    add_lora(model, Lora(rank=4), seed=0)
    stir(model)
    ids = batch()
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    layers = [layer for _, layer in adapted(model)]
    assert {layer.lora_A.grad.dtype for layer in layers} == {torch.float32}
    assert out.logits.dtype == torch.bfloat16
    merge(model)
    assert {w.dtype for w in model.parameters()} == {torch.bfloat16}


def test_what_is_not_done_is_said(tiny, tmp_path):
    with pytest.raises(FileProblem, match="adapter_config"):
        load_adapter(tiny("llama"), tmp_path)
    model = ours(tiny, "gemma3", KINDS["lora"])
    save_adapter(model, tmp_path, base_id="x", lora=KINDS["lora"])
    with pytest.raises(FileProblem, match=r"does not fit|another model"):
        load_adapter(tiny("llama").model.layers[0], tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "rank_pattern": {"q": 3}}))
    with pytest.raises(Unsupported, match="rank_pattern"):
        load_adapter(tiny("gemma3"), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(FileProblem, match="cannot be read"):
        load_adapter(tiny("gemma3"), tmp_path)

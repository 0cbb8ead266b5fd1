"""Mixtures of experts: adapters on the attention, on all experts and on some, routers, what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

from families import batch, build, gradients, one_by_one
from luthier.errors import LuthierError, Unsupported
from luthier.models.adapter_files import adapter_tensors, load_adapter, save_adapter
from luthier.models.experts import adapted_experts, router_paths
from luthier.models.lora import adapted, adapters_off, add_lora, merge
from luthier.models.merge_files import files_merge
from luthier.schema.recipe import Lora
from luthier.tasks.causal import causal_objective
from luthier.tasks.warm import start_from_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
FAMILIES = ("Mixtral", "Qwen3Moe")
IDS = torch.arange(3, 43).view(2, 20)


def tuned(family: str) -> tuple[Any, list[str]]:
    model = build(family)
    paths = add_lora(model, Lora(rank=4), seed=1)
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_B.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return model, paths


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_stand_on_the_attention_and_leave_experts_and_router(family: str) -> None:
    model, paths = tuned(family)
    assert {path.rpartition(".")[2] for path in paths} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    model(input_ids=IDS, labels=IDS).loss.backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_the_merged_model_answer_alike(tmp_path: Path, family: str) -> None:
    build(family).save_pretrained(tmp_path / "base")
    model, _ = tuned(family)
    with torch.no_grad():
        base = build(family)(input_ids=IDS).logits
        wanted = model(input_ids=IDS).logits
    assert not torch.allclose(base, wanted, atol=1e-3)
    save_adapter(model, tmp_path / "adapter", base_id="base", lora=Lora(rank=4))
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    merge(model)
    model.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(merged(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-4)


def with_experts(family: str, **method: Any) -> tuple[Any, Lora, list[str]]:
    """A model with adapters that do something, beside its experts too."""
    model, lora = build(family), Lora(rank=4, **{"experts": "all", **method})
    whole = router_paths(model) if lora.router else []
    add_lora(model, lora, seed=1, whole=whole)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and not name.endswith("lora_A"):
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.1)
    return model, lora, whole


def loss_of(model: Any) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=IDS, labels=IDS).loss
    return loss


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [{}, {"experts": (0, 3)}, {"router": True, "rslora": True, "targets": ()}])
def test_adapted_experts_train_and_answer_as_in_peft(tmp_path: Path, family: str, method: Any) -> None:
    build(family).save_pretrained(tmp_path / "base")
    model, lora, whole = with_experts(family, **method)
    save_adapter(model, tmp_path / "adapter", base_id="base", lora=lora, whole=whole)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that experts may be split otherwise
        theirs = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"), is_trainable=True)
    mine, other = loss_of(model), loss_of(theirs)
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    mine.backward()
    other.backward()
    assert any("experts.base_layer" in name for name in adapter_tensors(model, whole))
    gradients = dict(model.named_parameters())
    with torch.no_grad():  # the gradients in place of the weights, then named as PEFT names them
        for weight in gradients.values():
            if weight.requires_grad:
                weight.copy_(weight.grad)
    named = adapter_tensors(model, whole)
    for name, weight in theirs.named_parameters():
        if weight.grad is None:
            continue
        key = name.replace(".default", "").replace("modules_to_save.", "")
        grad = weight.grad
        if lora.experts != "all" and ".experts." in name and "_proj" not in name:
            grad = chosen_part(grad, key.endswith("lora_A.weight"), lora.experts)
        torch.testing.assert_close(named.pop(key), grad, atol=1e-5, rtol=1e-4)
    assert not named


def chosen_part(grad: torch.Tensor, is_a: bool, experts: Any) -> torch.Tensor:
    """PEFT trains every expert: the gradients of the others are not ours."""
    kept = torch.zeros(4, dtype=torch.bool)
    kept[list(experts)] = True
    if is_a:
        return grad.view(4, 4, -1).mul(kept[:, None, None]).reshape(grad.shape)
    return grad.view(grad.shape[0], 4, 4).mul(kept).reshape(grad.shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("experts", ["all", (1,)])
def test_merged_experts_answer_as_with_their_adapters(tmp_path: Path, family: str, experts: Any) -> None:
    model, _, _ = with_experts(family, experts=experts, router=True)
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        with adapters_off(model):
            off = model(input_ids=IDS).logits
        assert not torch.allclose(off, wanted, atol=1e-3)
        fused = dict(build(family).named_parameters())
        changed = {
            path
            for path, layer in adapted_experts(model)
            for number in range(4)
            if not torch.equal(layer.merged("down_proj")[number], fused[f"{path}.down_proj"][number])
            and number not in layer.chosen
        }
        assert not changed
        merge(model)
        torch.testing.assert_close(model(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-4)
        assert not [name for name, _ in model.named_parameters() if "lora" in name or "adapter" in name]
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(again(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-4)


def test_saved_experts_are_read_back_and_merged_from_files(tmp_path: Path) -> None:
    build("Mixtral").save_pretrained(tmp_path / "base")
    model, lora, _ = with_experts("Mixtral", experts=(0, 2))
    save_adapter(model, tmp_path / "adapter", base_id="base", lora=lora)
    again = build("Mixtral")
    assert load_adapter(again, tmp_path / "adapter").experts == "all"
    warm, _, _ = with_experts("Mixtral", experts=(0, 2))
    start_from_adapter(warm, tmp_path / "adapter")
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        for other in (again, warm):
            torch.testing.assert_close(other(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-4)
    # Experts one by one in the files are merged in memory, one tensor for all from file to file.
    assert files_merge(model, tmp_path / "base") is None
    names = {name: weight.detach().clone() for name, weight in build("Mixtral").named_parameters()}
    (tmp_path / "fused").mkdir()
    save_file(names, tmp_path / "fused" / "model.safetensors")
    streamed = files_merge(model, tmp_path / "fused")
    assert streamed is not None
    streamed.write(tmp_path)
    merge(model)
    written = load_file(tmp_path / "model.safetensors")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(written[name], weight, atol=0, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_train_experts_as_rows_one_by_one(family: str) -> None:
    packed = batch()
    model, _, _ = with_experts(family, router=True)
    total, count = one_by_one(model, packed)
    total.backward()
    wanted = gradients(model)
    loss = causal_objective(model)(model, packed)
    assert loss.weight == count
    loss.total.backward()
    torch.testing.assert_close(loss.total, total, atol=1e-4, rtol=1e-5)
    found = gradients(model)
    assert any("experts.gate_up_proj_adapter" in name for name in found)
    assert any(name.endswith("mlp.gate.weight") for name in found)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("family", "method", "words"),
    [
        ("Mixtral", {"experts": (4,)}, "there is no expert 4: each layer has 4"),
        ("Mixtral", {"experts": "all", "dora": True}, "no magnitude"),
        ("Llama", {"experts": "all"}, "has no experts"),
    ],
)
def test_what_cannot_be_adapted_is_refused(family: str, method: Any, words: str) -> None:
    with pytest.raises(LuthierError, match=words):
        add_lora(build(family), Lora(**method))


def test_experts_with_biases_are_refused_with_the_reason() -> None:
    config = GptOssConfig(
        vocab_size=90, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(Unsupported, match=r"laid out in a way that is not adapted yet \(biases\)"):
        add_lora(GptOssForCausalLM(config), Lora(experts="all"))


def test_experts_are_named_in_recipes_and_on_command_lines() -> None:
    assert Lora.model_validate({"experts": "0, 3"}).experts == (0, 3)
    assert Lora.model_validate({"experts": 2}).experts == (2,)
    assert Lora.model_validate({"experts": "all"}).experts == "all"
    with pytest.raises(ValueError, match="experts"):
        Lora.model_validate({"experts": "some"})


@pytest.mark.parametrize("target", ["gate_up_proj", "experts", "mlp.experts.down_proj"])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_as_targets_are_refused_with_the_reason(family: str, target: str) -> None:
    with pytest.raises(Unsupported, match="one tensor for all of them"):
        add_lora(build(family), Lora(targets=("q_proj", target)))

"""Mixtures of experts: adapters on the attention, experts and router frozen, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from families import build
from luthier.errors import Unsupported
from luthier.models.lora import adapted, add_lora, merge, save_adapter
from luthier.schema.recipe import Lora

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


@pytest.mark.parametrize("target", ["gate_up_proj", "experts", "mlp.experts.down_proj"])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_as_targets_are_refused_with_the_reason(family: str, target: str) -> None:
    with pytest.raises(Unsupported, match="one tensor for all of them"):
        add_lora(build(family), Lora(targets=("q_proj", target)))

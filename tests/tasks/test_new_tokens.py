"""A tuning with new tokens goes on after a stop, is saved, and is read by others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_run import fitted
from luthier.data.load import load_splits
from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.models.load import load_causal
from luthier.schema.protocols import Splits
from luthier.schema.recipe import Recipe
from luthier.tasks.registry import load_task
from tiny import chat, save_tiny_model
from tiny_encoders import rows_of

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
NEW = ("<tool>", "</tool>")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 2, "dropout": 0.1},
    "qlora": {"name": "qlora", "rank": 2},
    "full": {"name": "full"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "m")


def made(folder: Path, model: Path, method: str, **training: Any) -> tuple[Recipe, Splits, FileTokenizer]:
    rows = [chat(f"<tool> hat {n}", "red </tool>") for n in range(24)]
    recipe = Recipe.model_validate(
        {
            "model": {"id": str(model), "dtype": "float32", "new_tokens": NEW},
            "method": METHODS[method],
            "data": {"train": str(rows_of(folder / "rows.jsonl", rows)), "test_share": 0.2},
            "training": {
                "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2,
                "sequence_length": 64, "evaluate_every": 2, "checkpoint_every": 10,
                "activation_checkpointing": "full", **training,
            },
        }
    )  # fmt: skip
    tokenizer = load_tokenizer(model, new_tokens=NEW)
    return recipe, load_splits(recipe, tokenizer, base=folder, sequence_length=64).splits, tokenizer


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_after_a_stop_as_if_there_had_been_none(
    tmp_path: Path, model: Path, method: str
) -> None:
    recipe, splits, tokenizer = made(tmp_path, model, method, ema=0.9)

    def task() -> Any:
        return load_task(recipe, model, tokenizer, device="cpu", cache=None)

    whole = fitted(task(), splits, tmp_path / "whole")
    fitted(task(), splits, tmp_path / "parted", stop_after=2)
    again = fitted(task(), splits, tmp_path / "parted")
    assert whole.keys() == again.keys()
    rows = [name for name in whole if "new_tokens" in name]
    assert len(rows) == (method != "full")
    for name, weight in whole.items():
        assert torch.equal(weight, again[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_saved_weights_are_those_that_were_trained(tmp_path: Path, model: Path, method: str) -> None:
    recipe, splits, tokenizer = made(tmp_path, model, method)
    task = load_task(recipe, model, tokenizer, device="cpu", cache=None)
    fitted(task, splits, tmp_path / "run")
    ids = torch.tensor([tokenizer.encode("the <tool> hat </tool> is red")])
    assert set(tokenizer.new_tokens) <= set(ids[0].tolist())
    with torch.no_grad():
        expected = task.model(ids).logits
    began = load_task(recipe, model, tokenizer, device="cpu", cache=None)
    with torch.no_grad():
        assert not torch.allclose(began.model(ids).logits, expected, atol=1e-3)
    if method == "lora":
        task.save_adapter(tmp_path / "adapter")
        tokens = AutoTokenizer.from_pretrained(tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(model)
        base.resize_token_embeddings(len(tokens), mean_resizing=False)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
        with torch.no_grad():
            assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)
    task.save_merged(tmp_path / "merged")
    merged = load_causal(tmp_path / "merged", dtype="float32")
    saved = load_tokenizer(tmp_path / "merged")
    assert torch.tensor([saved.encode("the <tool> hat </tool> is red")]).equal(ids)
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
    fresh = load_task(recipe, model, tokenizer, device="cpu", cache=None)
    fresh.load_trained(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(fresh.model(ids).logits, expected)

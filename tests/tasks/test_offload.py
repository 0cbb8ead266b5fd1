"""A tuning whose frozen weights wait on the host ends as one whose weights stay, and goes on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chat_run import fitted
from luthier.data.load import load_splits
from luthier.data.tokenizer import load_tokenizer
from luthier.models.load import load_causal
from luthier.schema.protocols import Splits
from luthier.schema.recipe import Recipe
from luthier.tasks.registry import load_task
from tiny import chat, save_tiny_model
from tiny_encoders import rows_of

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 2, "dropout": 0.1},
    "qlora": {"name": "qlora", "rank": 2},
}


@pytest.fixture(autouse=True)
def every_weight_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.models.streamed.LEAST", 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "m", layers=3)


def task_of(folder: Path, model: Path, method: str, *, away: bool, keep: str = "full") -> tuple[Any, Splits]:
    recipe = Recipe.model_validate(
        {
            "model": {"id": str(model), "dtype": "float32"},
            "method": METHODS[method],
            "data": {
                "train": str(rows_of(folder / "rows.jsonl", [chat(f"hat {n}", "red") for n in range(24)])),
                "test_share": 0.2,
            },
            "training": {
                "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2,
                "sequence_length": 64, "evaluate_every": 2, "checkpoint_every": 10,
                "activation_checkpointing": keep, "offload_parameters": away,
            },
        }
    )  # fmt: skip
    tokenizer = load_tokenizer(model)
    splits = load_splits(recipe, tokenizer, base=folder, sequence_length=64).splits
    return load_task(recipe, model, tokenizer, device="cpu", cache=None), splits


@pytest.mark.parametrize(("method", "keep"), [("lora", "full"), ("qlora", "offload")])
def test_trained_saved_and_read_as_if_the_weights_had_stayed(
    tmp_path: Path, model: Path, method: str, keep: str
) -> None:
    stays, splits = task_of(tmp_path, model, method, away=False, keep=keep)
    away, _ = task_of(tmp_path, model, method, away=True, keep=keep)
    assert not hasattr(stays.model.model.layers[0], "streamed")
    chain = away.model.model.layers[0].streamed.chain
    assert sum(chain.sizes) > 3 * 10_000
    expected, found = fitted(stays, splits, tmp_path / "stays"), fitted(away, splits, tmp_path / "away")
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name
    ids = torch.tensor([away.tokenizer.encode("the old hat is red")])
    with torch.no_grad():
        answers = stays.model(ids).logits
        assert torch.equal(away.model(ids).logits, answers)
    fresh, _ = task_of(tmp_path, model, method, away=True, keep=keep)
    fresh.load_trained(tmp_path / "away")
    with torch.no_grad():
        assert torch.equal(fresh.model(ids).logits, answers)
    for task, name in ((stays, "a"), (away, "b")):
        task.save_merged(tmp_path / name)
    one, other = (load_causal(tmp_path / name, dtype="float32") for name in ("a", "b"))
    for name, weight in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_a_run_goes_on_after_a_stop_as_if_there_had_been_none(tmp_path: Path, model: Path) -> None:
    whole, splits = task_of(tmp_path, model, "lora", away=True)
    expected = fitted(whole, splits, tmp_path / "whole")
    stopped, _ = task_of(tmp_path, model, "lora", away=True)
    fitted(stopped, splits, tmp_path / "parted", stop_after=2)
    # The place of the frozen weights is no part of what a checkpoint depends on.
    again, _ = task_of(tmp_path, model, "lora", away=False)
    found = fitted(again, splits, tmp_path / "parted")
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name


def test_who_packs_four_bits(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = task_of(tmp_path, model, "qlora", away=True)
    assert task.packs_on_reading()  # read to where it is used
    task.device = torch.device("cuda")
    assert not task.packs_on_reading()
    monkeypatch.setattr("luthier.tasks.base.host_memory", lambda: (1 << 30, 1000))
    assert task.packs_on_reading()
    task.streams = False  # divided over devices
    assert not task.packs_on_reading()

"""Every purpose with every method goes on after a stop exactly as if it had not been stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_run import fitted
from encoders import label_rows
from families import build
from luthier.data.inputs import load_inputs
from luthier.data.load import load_splits
from luthier.data.preferences import load_preferences
from luthier.data.tokenizer import load_tokenizer
from luthier.runs.prepare import with_rows
from luthier.schema.protocols import Splits
from luthier.schema.recipe import Recipe
from luthier.tasks.registry import load_task
from tiny import chat, save_tiny_model
from tiny_encoders import rows_of, save_tiny_encoder, sentences, write_steps

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
TEXTS = sentences(60)
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [chat(f"hat {n}", "red") for n in range(24)],
    "preference": [{"prompt": TEXTS[n], "chosen": f"red {n}", "rejected": f"{n} blue"} for n in range(24)],
    "text-generation": [{"text": text} for text in TEXTS[:24]],
    "multi-class-classification": [
        {"text": row.text, "label": row.labels[0]} for row in label_rows(24, seed=1)
    ],
    "multi-label-classification": [
        {"text": row.text, "labels": list(row.labels)} for row in label_rows(24, multi=True, seed=1)
    ],
    "similarity": [
        {"anchor": TEXTS[n], "positive": TEXTS[n + 24], "negative": TEXTS[n + 30]} for n in range(24)
    ],
    "labelled": [{"text": TEXTS[n], "label": TEXTS[n].split()[1]} for n in range(24)],
    "reranking": [
        {"query": TEXTS[n], "positive": TEXTS[n + 24], "negatives": [TEXTS[n + 30]]} for n in range(24)
    ],
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 2, "dropout": 0.1},
    "qlora": {"name": "qlora", "rank": 2},
}
EXPERTS: dict[str, Any] = {"name": "lora", "rank": 2, "experts": [0, 2], "router": True}
"""Of a mixture: adapters on some experts, and the routers whole."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    mixture = build("Mixtral", vocab_size=384, max_position_embeddings=256)
    mixture.save_pretrained(shutil.copytree(save_tiny_model(folder / "decoder"), folder / "mixture"))
    return {
        "decoder": folder / "decoder",
        "mixture": folder / "mixture",
        "encoder": write_steps(save_tiny_encoder(folder / "encoder")),
    }


def made(folder: Path, name: str, method: str, model: Path) -> tuple[Recipe, Splits]:
    """A resolved recipe and its rows."""
    values: dict[str, Any] = {
        "task": {"preference": "chat", "labelled": "similarity"}.get(name, name),
        "model": {"id": str(model), "dtype": "float32"},
        "method": EXPERTS if method == "experts" else METHODS[method],
        "data": {"train": str(rows_of(folder / "rows.jsonl", ROWS[name])), "test_share": 0.2},
        "training": {
            "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3, "sequence_length": 64,
            "evaluate_every": 2, "checkpoint_every": 10, "activation_checkpointing": "none",
        },
        "preference": {"loss": "dpo"} if name == "preference" else None,
    }  # fmt: skip
    recipe = Recipe.model_validate(values)
    load = {"chat": load_splits, "text-generation": load_splits, "preference": load_preferences}.get(
        name, load_inputs
    )
    data = load(recipe, load_tokenizer(model), base=folder, sequence_length=64)  # type: ignore[operator]
    return with_rows(recipe, data), data.splits


def trained(recipe: Recipe, model: Path, splits: Splits, run: Path, stop_after: int | None) -> dict[str, Any]:
    """Train a task that is loaded afresh, perhaps to a stop; the newest checkpoint's weights."""
    task = load_task(recipe, model, load_tokenizer(model), device="cpu", cache=None)
    return fitted(task, splits, run, stop_after)


CASES = [*((name, method) for name in ROWS for method in METHODS), ("chat", "experts")]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_stopped_run_ends_where_a_whole_one_does(
    tmp_path: Path, models: dict[str, Path], name: str, method: str
) -> None:
    writes = name in ("chat", "preference", "text-generation")
    model = models["mixture" if method == "experts" else "decoder" if writes else "encoder"]
    recipe, splits = made(tmp_path, name, method, model)
    whole = trained(recipe, model, splits, tmp_path / "whole", None)
    half = trained(recipe, model, splits, tmp_path / "parts", 3)
    again = trained(recipe, model, splits, tmp_path / "parts", None)
    assert whole.keys() == again.keys() == half.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert not all(torch.equal(half[key], again[key]) for key in whole), "the stop came before the end"

"""Runs of two processes that each hold a part of every row or of the model, from recipe to checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from luthier.runs.directory import RunDirectory
from luthier.runs.prepare import create_run, prepare
from luthier.runs.ranks import train_together
from luthier.runs.workflow import Inputs
from luthier.schema.load import load_recipe
from tiny import save_tiny_model, write_recipe

pytestmark = [pytest.mark.timeout(290), pytest.mark.workflow]
Events = list[dict[str, Any]]
WAYS = {"context": "lora", "tensor": "lora", "pipeline": "full", "expert": "full"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    dense, mixture = save_tiny_model(folder / "model"), folder / "mixture"
    shutil.copytree(dense, mixture)
    shape = AutoConfig.from_pretrained(dense).to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    torch.manual_seed(3)
    MixtralForCausalLM(
        MixtralConfig(
            **{name: shape[name] for name in kept},
            num_hidden_layers=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).save_pretrained(mixture)
    assert LlamaForCausalLM.from_pretrained(dense).config.tie_word_embeddings
    write_recipe(
        folder, dense, batch_size=2, micro_batch_size=1, max_steps=4, evaluate_every=2, checkpoint_every=2
    )
    return folder


def started(place: Path, name: str, *words: str) -> RunDirectory:
    settings = ("export.gguf=[]", "model.dtype=float32", "data.packing=true", "training.sequence_length=256")
    prepared = prepare(load_recipe(place / "recipe.yaml", (*settings, *words)), say=lambda _: None)
    return create_run(prepared, root=place / "runs", run_id=name)


def held(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    return load_file(folder / "weights.safetensors"), state


@pytest.mark.parametrize("side", sorted(WAYS))
def test_two_go_on_where_one_stood_and_end_where_it_ends(place: Path, side: str) -> None:
    method = WAYS[side]
    words = ["method={name: full}" if method == "full" else "method.dropout=0", "training.select=last"]
    if side == "expert":
        words.append(f"model.id={place / 'mixture'}")
    alone, before, after = started(place, f"{side}-alone", *words), [], []
    work = Inputs(alone, alone.recipe)
    wanted = work.task.fit(work.data.splits, alone.path, recipe_digest="one", on_metrics=before.append)
    both = started(place, f"{side}-both", *words, "training.devices=2", f"training.parallel.{side}=2")
    half = Path("checkpoints") / "step-00000002"
    shutil.copytree(alone.path / half, both.path / half)
    result = train_together(both, "one", 2, on_metrics=after.append)
    assert [event["step"] for event in after if event["kind"] == "resumed"] == [2]
    one, two = ([e for e in found if e["kind"] == "step" and e["step"] > 2] for found in (before, after))
    assert [e["step"] for e in two] == [3, 4]
    for left, right in zip(one, two, strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
        assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-4)
        assert right["tokens"] == left["tokens"] > 256, "runs of tokens meet within rows"
    validated = [[e["loss"] for e in found if e["kind"] == "validation"] for found in (before, after)]
    assert validated[1][-1] == pytest.approx(validated[0][-1], rel=1e-5)
    assert (result.trainable_parameters, result.total_parameters) == (
        wanted.trainable_parameters, wanted.total_parameters,
    )  # fmt: skip
    (weights, state), (own, own_state) = (
        held(run.path / run_result.selected_checkpoint)
        for run, run_result in ((alone, wanted), (both, result))
    )
    assert own.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(own[name], weight, rtol=1e-3, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")
    assert own_state["state"].keys() == state["state"].keys()
    assert own_state["param_groups"] == state["param_groups"]
    for index, values in state["state"].items():
        torch.testing.assert_close(
            own_state["state"][index]["exp_avg"], values["exp_avg"], rtol=1e-3, atol=1e-6
        )

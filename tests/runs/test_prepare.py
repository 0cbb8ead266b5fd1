"""What a training refuses, its plan and a job's price refuse in the same words, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from encoders import save_encoder
from luthier.cli.plan import plan
from luthier.errors import LicenceBroken, LuthierError, Unsupported
from luthier.runs.launch.price import cost_of
from luthier.runs.prepare import prepare
from luthier.schema.launch import LaunchChoice
from luthier.schema.load import load_recipe
from luthier.schema.recipe import Recipe
from seeing import save_seeing_model
from tiny_encoders import rows_of


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an embedder, pairs, and a recipe of both."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    model = save_encoder(tmp_path / "model")
    rows = [{"query": f"cat {n}", "positive": f"dog {n}"} for n in range(30)]
    train = rows_of(tmp_path / "rows.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text(
        f"task: similarity\nmodel: {{id: {model}}}\nmethod: {{name: full}}\ndata: {{train: {train}}}\n"
        "training: {batch_size: 4, max_steps: 2}\nexport: {gguf: []}\n"
    )
    return tmp_path


def trained(file: Path, *words: str) -> None:
    prepare(load_recipe(file, words), say=lambda _: None, offline=True)


def planned(file: Path, *words: str) -> None:
    plan(str(file), *words, offline=True)


def priced(file: Path, *words: str) -> None:
    recipe: Recipe = load_recipe(file, words)
    choice = LaunchChoice.model_validate(
        {"on": "slurm", "name": "pairs", "nodes": 1, "gpus": 1, "gpu_type": "h100"}
    )
    cost_of(choice, recipe, price=None, hours=None)


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("licence.use=commercial", LicenceBroken),
        ("data.train=nowhere.jsonl", LuthierError),
        ("similarity.loss=triplet", LuthierError),
        ("task=chat", Unsupported),
    ],
)
def test_the_plan_and_the_price_refuse_what_the_training_refuses(
    place: Path, word: str, kind: type[LuthierError]
) -> None:
    said = []
    for ask in (trained, planned, priced):
        with pytest.raises(kind) as caught:
            ask(place / "recipe.yaml", word)
        said.append((type(caught.value), str(caught.value), caught.value.hint))
    assert said == [said[0]] * 3


def test_the_plan_refuses_an_export_that_llama_cpp_does_not_pool(place: Path) -> None:
    with pytest.raises(Unsupported, match="max"):
        planned(place / "recipe.yaml", "export.gguf=[F16]", "similarity.pooling=max")


@pytest.mark.parametrize("task", ["similarity", "reranking"])
def test_a_model_that_sees_is_refused_where_nothing_would_load_the_result(place: Path, task: str) -> None:
    model = save_seeing_model(place / "seeing", "qwen3_vl")
    with pytest.raises(Unsupported, match="models of text") as caught:
        planned(place / "recipe.yaml", f"task={task}", f"model.id={model}")
    assert f"--purpose {task}" in str(caught.value.hint)

"""What goes to the Hub, under which names, and what stays here."""

from pathlib import Path

import pytest

from luthier.errors import UsageError
from luthier.exporting.files import artifact_of
from luthier.runs.directory import RunDirectory
from luthier.runs.pushing import plan_push
from luthier.schema.recipe import DataChoice, ModelChoice, Recipe


def finished(root: Path, base: str = "a/base") -> RunDirectory:
    run = RunDirectory.create(
        Recipe(name="orders", model=ModelChoice(id=base), data=DataChoice(train=("/a.jsonl",))), root=root
    )
    out = run.path / "artifacts"
    for name in ("merged/model.safetensors", "merged/README.md", "adapter/adapter_model.safetensors"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    for name in ("orders-Q8_0.gguf", "README.md", "LICENSE", "SHA256SUMS"):
        (out / name).write_text(name)
    made = [
        artifact_of(out / "merged", "merged", relative_to=run.path),
        artifact_of(out / "adapter", "adapter", relative_to=run.path),
        artifact_of(out / "orders-Q8_0.gguf", "gguf:Q8_0", relative_to=run.path),
    ]
    run.save_stage("artifacts", "", [a.model_dump(mode="json") for a in made])
    return run


def test_each_kind_has_a_repository_with_its_own_files(tmp_path):
    found = {u.kind: u for u in plan_push(finished(tmp_path), "hub:me/orders")}
    assert {k: u.repo for k, u in found.items()} == {
        "merged": "me/orders", "adapter": "me/orders-adapter", "gguf": "me/orders-GGUF",
    }  # fmt: skip
    assert [name for name, _ in found["gguf"].files] == ["LICENSE", "README.md", "orders-Q8_0.gguf"]
    assert [name for name, _ in found["merged"].files] == ["README.md", "model.safetensors"]


def test_one_kind_alone_takes_the_name_as_it_is(tmp_path):
    run = finished(tmp_path)
    assert [u.repo for u in plan_push(run, "hub:me/orders", ("gguf",))] == ["me/orders"]
    with pytest.raises(UsageError, match="cannot be sent"):
        plan_push(run, "hub:me/orders", ("onnx",))


def test_the_licences_name_is_asked_for(tmp_path):
    run = finished(tmp_path, "meta-llama/Llama-3.1-8B-Instruct")
    with pytest.raises(UsageError) as caught:
        plan_push(run, "hub:me/orders")
    assert caught.value.hint == f"luthier push {run.id} hub:me/Llama-orders"
    assert plan_push(run, "hub:me/Llama-orders")


def test_nothing_to_send(tmp_path):
    bare = RunDirectory.create(
        Recipe(model=ModelChoice(id="a/b"), data=DataChoice(train=("/a",))), root=tmp_path
    )
    with pytest.raises(UsageError, match="nothing that could be sent"):
        plan_push(bare, "hub:me/x")

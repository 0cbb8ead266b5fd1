"""The registry: versions never change, aliases move and come back, the index can be made again."""

import shutil
from pathlib import Path

import pytest

from luthier.errors import FileProblem, UsageError
from luthier.runs import registry
from luthier.runs.directory import RunDirectory
from luthier.schema.recipe import DataChoice, Lora, ModelChoice, Recipe
from luthier.schema.results import Artifact


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LUTHIER_REGISTRY", str(tmp_path / "registry"))
    return tmp_path / "runs"


def finished(root: Path, rank: int = 8, name: str = "orders") -> RunDirectory:
    recipe = Recipe(
        name=name,
        model=ModelChoice(id="a/base"),
        method=Lora(rank=rank),
        data=DataChoice(train=("/a.jsonl",)),
    )
    run = RunDirectory.create(recipe, root=root)
    artifact = Artifact(kind="merged", path="artifacts/merged", bytes=1, sha256=f"{rank:064d}")
    run.save_stage("artifacts", "", [artifact.model_dump(mode="json")])
    run.save_stage("model", "", {"path": "/x", "id": "a/base", "revision": "abc", "licence": "mit"})
    run.save_stage("data", "", {"digest": "d1"})
    return run


def test_versions_count_up_and_the_same_run_is_registered_once(root):
    first, second = finished(root, 8), finished(root, 16)
    one, two = registry.add(first), registry.add(second, note="wider")
    assert (one.id, two.id) == ("orders:1", "orders:2")
    assert registry.add(first) == one
    assert registry.find("orders").id == "orders:2"
    assert registry.find("orders:1").base_revision == "abc"
    assert registry.run_of("orders:1").id == first.id
    assert registry.resolve("orders:2").id == registry.resolve(second.id).id == second.id
    assert registry.registered_as(first) == ["orders:1"]
    with pytest.raises(UsageError, match="orders has no version '7'") as caught:
        registry.find("orders:7")
    assert caught.value.hint == "it has 2, 1"
    with pytest.raises(UsageError) as caught:
        registry.find("ordres")
    assert "orders" in str(caught.value.hint)


def test_an_alias_moves_and_comes_back_step_by_step(root):
    for rank in (2, 4, 8):
        registry.add(finished(root, rank))
    for version in (1, 2, 3):
        registry.promote(f"orders:{version}", "production")
    assert registry.find("orders:production").version == 3
    assert registry.rollback("orders", "production").version == 2
    assert registry.rollback("orders", "production").version == 1
    with pytest.raises(UsageError, match="named nothing before"):
        registry.rollback("orders", "production")
    registry.promote("orders:3", "production")
    assert registry.rollback("orders", "production").version == 1
    with pytest.raises(UsageError, match="orders:1 is production"):
        registry.remove("orders:1")
    registry.drop_alias("orders", "production")
    registry.remove("orders:1")
    assert [one.version for one in registry.versions("orders")] == [3, 2]
    # a forgotten version's number is not given to another
    registry.remove("orders:3")
    assert registry.add(finished(root, 32)).version == 4


def test_the_index_is_made_again_from_the_runs_wherever_they_are(root, tmp_path, monkeypatch):
    registry.add(finished(root, 8))
    registry.add(finished(root, 16), name="other")
    registry.promote("orders:1", "staging")
    kept = (tmp_path / "registry" / "orders" / "aliases.jsonl").read_text()
    shutil.rmtree(tmp_path / "registry" / "orders" / "versions")
    root.rename(tmp_path / "moved")
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "moved"))
    assert {one.id for one in registry.rebuild()} == {"orders:1", "other:1"}
    assert registry.run_of("orders:staging").path.parent == tmp_path / "moved"
    assert (tmp_path / "registry" / "orders" / "aliases.jsonl").read_text() == kept
    shutil.rmtree(registry.run_of("other").path)
    with pytest.raises(FileProblem, match="no longer there"):
        registry.run_of("other:1")


def test_what_differs_is_told_by_recipe_key(root):
    a, b = registry.add(finished(root, 8)), registry.add(finished(root, 16))
    assert registry.differences(a, b) == {"method.rank": ("8", "16")}


def test_what_cannot_be_registered(root):
    bare = RunDirectory.create(Recipe(model=ModelChoice(id="/m"), data=DataChoice(train=("/a",))), root=root)
    with pytest.raises(UsageError, match="written nothing"):
        registry.add(bare)
    with pytest.raises(UsageError, match="cannot be a model's name"):
        registry.add(finished(root), name="a/b")
    registry.add(finished(root))
    with pytest.raises(UsageError, match="cannot be an alias"):
        registry.promote("orders:1", "7")


def test_a_recipe_starts_from_a_registered_model(root):
    from luthier.runs.model import obtain

    run = finished(root)
    registry.add(run)
    with pytest.raises(FileProblem, match="no merged weights"):
        obtain(ModelChoice(id="registry:orders"), say=print)
    merged = run.path / "artifacts" / "merged"
    merged.mkdir(parents=True)
    found = obtain(ModelChoice(id="registry:orders:1"), say=print)
    assert (found.path, found.id, found.licence) == (merged, "registry:orders:1", "mit")

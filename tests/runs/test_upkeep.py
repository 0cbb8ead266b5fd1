"""Nothing that is deployed, in production, served, protected or at work is removed, packed or thinned."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from luthier.cli.main import build
from luthier.errors import UsageError
from luthier.runs import registry, upkeep
from luthier.runs.directory import RunDirectory
from luthier.runs.process import identity
from luthier.runs.servers import make_server
from luthier.schema.recipe import DataChoice, Lora, ModelChoice, Recipe
from luthier.schema.results import Artifact, TrainResult
from luthier.schema.run import Status
from luthier.schema.server import ServerStatus, ServerWish

RECIPE = Recipe(name="orders", model=ModelChoice(id="/m"), data=DataChoice(train=("/a.jsonl",)))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    for place in ("deployments", "registry", "servers"):
        monkeypatch.setenv(f"LUTHIER_{place.upper()}", str(tmp_path / place))


def finished(name: str = "a", recipe: Recipe = RECIPE, loss: float = 1.0) -> RunDirectory:
    """A finished run with four checkpoints, of which step 2 was selected."""
    run = RunDirectory.create(recipe, run_id=name)
    for step in (1, 2, 3, 4):
        folder = run.path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(bytes(1000 * step))
    (run.path / "checkpoints" / "step-00000005.part").mkdir()
    (run.path / "artifacts").mkdir()
    (run.path / "artifacts" / "model.gguf").write_bytes(bytes(range(256)) * 10)
    run.save_stage("train", "x", TrainResult(
        steps=4, epochs=1, first_loss=2, last_loss=loss, best_step=2, best_validation_loss=1.5,
        selected_checkpoint="checkpoints/step-00000002", seconds=9, tokens=90, trained_tokens=9,
        tokens_per_second=10, peak_memory=1 << 30, trainable_parameters=5, total_parameters=50, device="cpu",
        dtype="float32",
    ))  # fmt: skip
    run.set_status(Status(state="done"))
    return run


def kept(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


@pytest.mark.parametrize("how", ["deployed", "promoted", "served", "protected", "running"])
def test_what_is_in_use_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    run = finished()
    if how == "deployed":
        monkeypatch.setattr(
            upkeep, "list_deployments", lambda: [type("D", (), {"name": "bot", "run": run.id})()]
        )
    elif how == "promoted":
        artifact = Artifact(kind="merged", path="artifacts/merged", bytes=1, sha256="0" * 64)
        run.save_stage("artifacts", "", [artifact.model_dump(mode="json")])
        registry.add(run)
        registry.promote("orders:1", "production")
    elif how == "served":
        server = make_server(ServerWish(models=(f"bot={run.path / 'artifacts' / 'model.gguf'}",)))
        server.set_status(ServerStatus(state="ready", worker=identity()))
    elif how == "protected":
        upkeep.protect(run, "the customer uses it")
    else:
        run.set_status(Status(state="running", worker=identity()))
    said, way = {
        "deployed": ("deployed as bot", "deployments rm bot"),
        "promoted": ("it is orders:production", "registry unalias orders production"),
        "served": ("answers with it", "stop model"),
        "protected": ("the customer uses it", "protect a --off"),
        "running": ("is running", "runs stop a"),
    }[how]
    for touch in (upkeep.remove, upkeep.archive):
        with pytest.raises(UsageError, match=said) as error:
            touch(run)
        assert way in str(error.value.hint)
    assert upkeep.prunable([run]) == []
    assert (run.path / "artifacts" / "model.gguf").exists()
    if how == "protected":
        upkeep.unprotect(run)
    elif how == "promoted":
        registry.drop_alias("orders", "production")
    elif how == "served":
        server.set_status(ServerStatus(state="stopped"))
    else:
        return
    upkeep.remove(run)
    assert not run.path.exists()


def test_finished_runs_are_thinned_to_what_is_needed() -> None:
    run, stopped = finished(), finished("b")
    stopped.set_status(Status(state="stopped"))
    (found,) = upkeep.prunable([run, stopped])
    assert found.bytes == 1000 + 3000
    upkeep.prune(found)
    assert kept(run) == ["step-00000002", "step-00000004"]
    assert len(kept(stopped)) == 5, "it may be gone on with"
    (found,) = upkeep.prunable([run], selected_only=True)
    upkeep.prune(found)
    assert kept(run) == ["step-00000002"]
    assert upkeep.prunable([run]) == []


@pytest.mark.parametrize("checkpoints", [True, False])
def test_an_archive_holds_all_but_checkpoints_and_comes_back(tmp_path: Path, checkpoints: bool) -> None:
    run = finished()
    recipe = (run.path / "recipe.yaml").read_bytes()
    path = upkeep.archive(run, checkpoints=checkpoints)
    assert not run.path.exists()
    with tarfile.open(path) as packed:
        packed.extractall(tmp_path / "back", filter="data")
    back = tmp_path / "back" / "a"
    assert (back / "recipe.yaml").read_bytes() == recipe
    assert (back / "artifacts" / "model.gguf").stat().st_size == 2560
    assert (back / "checkpoints").exists() == checkpoints
    assert [p.name for p in path.parent.iterdir()] == ["a.tar.gz"]
    finished()
    with pytest.raises(UsageError, match="such an archive"):
        upkeep.archive(run)


def call(*words: str) -> None:
    build()(list(words), exit_on_error=False, result_action="return_value")


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    finished("a")
    finished("b", RECIPE.model_copy(update={"method": Lora(rank=32)}), loss=0.5)
    call("runs", "compare", "a", "b", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {"method.rank": {"one": "16", "other": "32"}}
    assert found["outcomes"]["last loss"] == ["1.0000", "0.5000"]
    call("runs", "diff", "a", "b")
    assert "method.rank" in capsys.readouterr().out
    with pytest.raises(UsageError, match="asks first"):
        call("runs", "rm", "a")
    call("runs", "protect", "a", "for the demo")
    with pytest.raises(UsageError, match="for the demo"):
        call("runs", "rm", "a", "--yes")
    call("runs", "prune", "--yes")
    call("runs", "rm", "b", "--yes")
    call("runs", "protect", "a", "--off")
    call("runs", "archive", "a", "--yes")
    call("runs")
    assert "no runs under" in capsys.readouterr().out

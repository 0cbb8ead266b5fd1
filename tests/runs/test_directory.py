"""The run directory: atomic state, append-only streams, stages tied to their inputs."""

import json
from pathlib import Path

import pytest

from luthier.errors import FileProblem, UsageError
from luthier.files import write_text
from luthier.runs.directory import RunDirectory, find_run, list_runs
from luthier.runs.process import alive, current_state, identity
from luthier.schema.base import Range
from luthier.schema.recipe import DataChoice, ModelChoice, Recipe
from luthier.schema.run import Status, WorkerIdentity

RECIPE = Recipe(name="Orders demo", model=ModelChoice(id="/m"), data=DataChoice(train=("/a.jsonl",)))


def test_a_new_run_holds_its_recipe_and_waits(tmp_path: Path) -> None:
    run = RunDirectory.create(RECIPE, root=tmp_path)
    assert run.id.startswith("orders-demo-")
    assert run.recipe == RECIPE
    assert run.status.state == "queued"


def test_two_runs_of_one_second_do_not_meet(tmp_path: Path) -> None:
    first = RunDirectory.create(RECIPE, root=tmp_path, run_id="x")
    second = RunDirectory.create(RECIPE, root=tmp_path, run_id="x")
    assert {first.id, second.id} == {"x", "x-2"}
    assert len(list_runs(tmp_path)) == 2


def test_find_by_id_beginning_path_and_latest(tmp_path: Path) -> None:
    first = RunDirectory.create(RECIPE, root=tmp_path, run_id="alpha-1")
    RunDirectory.create(RECIPE, root=tmp_path, run_id="alpha-2")
    assert find_run("alpha-1", tmp_path).path == first.path
    assert find_run(str(first.path)).id == "alpha-1"
    with pytest.raises(UsageError, match="beginning of 2 runs"):
        find_run("alpha", tmp_path)
    with pytest.raises(UsageError) as caught:
        find_run("alhpa-1", tmp_path)
    assert "alpha-1" in str(caught.value.hint)


def test_a_stage_counts_only_for_its_inputs(tmp_path: Path) -> None:
    run = RunDirectory.create(RECIPE, root=tmp_path)
    run.save_stage("train", "abc", Range(low=1, expected=2, high=3))
    assert run.stage("train", Range, "abc") == Range(low=1, expected=2, high=3)
    assert run.stage("train", Range, "other") is None
    assert run.stage_values("prove") is None
    (run.path / "train.json").write_text("{torn")
    assert run.stage("train", Range, "abc") is None


def test_streams_skip_a_torn_line_and_wait_for_an_unfinished_one(tmp_path: Path) -> None:
    run = RunDirectory.create(RECIPE, root=tmp_path)
    run.append("metrics", {"step": 1})
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo\n{"step":3}\n{"step":')
    seen = list(run.lines("metrics"))
    assert [values["step"] for values, _ in seen] == [1, 3]
    path.write_bytes(path.read_bytes() + b"4}\n")
    assert [values["step"] for values, _ in run.lines("metrics", seen[-1][1])] == [4]


def test_an_interrupted_replacement_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_wishes_are_seen_until_taken_back(tmp_path: Path) -> None:
    run = RunDirectory.create(RECIPE, root=tmp_path)
    assert run.asked() is None
    run.ask("save")
    run.ask("stop")
    assert run.asked() == "stop"
    run.clear("stop")
    assert run.asked() == "save"


def test_a_dead_worker_is_lost_and_a_reused_pid_is_not_ours(tmp_path: Path) -> None:
    run = RunDirectory.create(RECIPE, root=tmp_path)
    me = identity()
    assert alive(me)
    assert not alive(me.model_copy(update={"started": me.started - 100}))
    assert not alive(me.model_copy(update={"boot": "another"}))
    run.set_status(Status(state="running", worker=me))
    assert current_state(run) == "running"
    run.set_status(Status(state="running", worker=WorkerIdentity(pid=me.pid, started=1.0, boot=me.boot)))
    assert current_state(run) == "lost"
    assert json.loads((run.path / "status.json").read_text())["state"] == "lost"


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="not a run"):
        _ = RunDirectory(tmp_path).status

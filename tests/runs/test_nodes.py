"""Several machines and one run: equal to one alone, ended together, and resumed without a shared disk.

Two machines are two process trees on the loopback, each with a runs' folder of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from luthier.errors import TrainingError, Unsupported, UsageError
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.together import check_devices
from luthier.runs.crew import Crew, devices_here, order_of
from luthier.runs.directory import RunDirectory
from luthier.runs.nodes import join, place_of, settings, superfluous
from luthier.runs.prepare import create_run, prepare
from luthier.runs.ranks import train_together
from luthier.runs.workflow import Inputs
from luthier.schema.load import load_recipe
from luthier.schema.nodes import Joined, Order, Place
from luthier.schema.results import TrainResult
from tiny import save_tiny_model, write_recipe

pytestmark = pytest.mark.timeout(300)
Events = list[dict[str, Any]]
ALONE = ("method.dropout=0", "export.gguf=[]", "model.dtype=float32")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def place(rank: int, port: int, **more: Any) -> Place:
    return Place(nodes=2, rank=rank, host="127.0.0.1", port=port, devices=1, **more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    save_tiny_model(folder / "model")
    write_recipe(
        folder, folder / "model", micro_batch_size=1, max_steps=8, evaluate_every=4, checkpoint_every=4
    )
    return folder


def started(home: Path, name: str, *words: str) -> RunDirectory:
    prepared = prepare(load_recipe(home / "recipe.yaml", (*ALONE, *words)), say=lambda _: None)
    return create_run(prepared, root=home / "runs", run_id=name)


class Other:
    """A second machine: its own copy of data and model elsewhere, its own runs' folder."""

    def __init__(self, home: Path, port: int, name: str, *, copied: bool = True) -> None:
        self.home = home / name
        self.recipe = home / "recipe.yaml"
        if copied:
            shutil.copytree(home, self.home, ignore=shutil.ignore_patterns("runs", "other*"))
            self.recipe = self.home / "recipe.yaml"
            self.recipe.write_text(self.recipe.read_text().replace(str(home / "model"), "model"))
        words = {
            "place": place(1, port).model_dump(mode="json"),
            "recipe": str(self.recipe),
            "overrides": [],
            "offline": True,
        }
        self.home.mkdir(exist_ok=True)
        self.log = (self.home / "log.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "luthier.runs.node", json.dumps(words)],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LUTHIER_RUNS": str(self.home / "runs"), "LUTHIER_PATIENCE": "120"},
            start_new_session=True,
        )

    def said(self) -> str:
        return (self.home / "log.txt").read_text()

    def end(self) -> int:
        try:
            return self.process.wait(90)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            for one in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
                one.kill()
            self.process.wait()
        self.log.close()


def train(
    run: RunDirectory, port: int, notes: list[str], on_metrics: Any, *, far: bool = False
) -> TrainResult:
    """What the worker of the first machine does. far: its paths lead nowhere on the other one."""
    from luthier.training.meeting import Meeting

    with Meeting(place(0, port), keeper=True, patience=120) as meeting:
        crew = Crew(run, place(0, port), meeting, notes.append)
        try:
            order = order_of(run, Inputs(run, run.recipe).data_digest)
            if far:
                home = str(run.path.parent.parent)
                order = Order.model_validate_json(order.model_dump_json().replace(home, "/nowhere"))
            crew.gather(order)
            result = train_together(run, "one", 2, on_metrics=on_metrics, crew=crew)
        except BaseException as error:
            crew.close(error)
            raise
        crew.close(None)
    return result


def kept(events: Events, kind: str) -> Events:
    return [values for values in events if values["kind"] == kind]


@pytest.mark.workflow
def test_two_machines_learn_what_one_does_and_go_on_without_a_shared_disk(home: Path) -> None:
    alone, before = started(home, "alone"), []
    work = Inputs(alone, alone.recipe)
    wanted = work.task.fit(work.data.splits, alone.path, recipe_digest="one", on_metrics=before.append)

    run, port, notes, first = started(home, "many", *settings(place(0, 1))), free_port(), [], []
    other = Other(home, port, "other-1")

    def kill_there(values: dict[str, Any]) -> None:
        first.append(values)
        if values["kind"] == "checkpoint" and values["step"] == 4:
            (rank,) = psutil.Process(other.process.pid).children()
            os.kill(rank.pid, signal.SIGKILL)

    try:
        with pytest.raises(TrainingError, match=r"machine 1 \(.*\): process 1 .* was killed by SIGKILL"):
            train(run, port, notes, kill_there)
        assert other.end() != 0
        assert "the run's folder is shared" in other.said()
        assert any("machine 1 is here" in note for note in notes)

        port, second = free_port(), []
        other = Other(home, port, "other-2")
        result = train(run, port, notes, second.append, far=True)
        assert other.end() == 0, other.said()
        assert "is shared" not in other.said()
    finally:
        other.kill()
    assert second[0]["kind"] == "resumed"
    assert second[0]["step"] == 4
    steps = {values["step"]: values for values in (*kept(first, "step"), *kept(second, "step"))}
    for step, left in enumerate(kept(before, "step"), 1):
        assert steps[step]["loss"] == pytest.approx(left["loss"], rel=1e-4)
        assert steps[step]["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-3)
    assert (result.steps, result.tokens, result.best_step) == (wanted.steps, wanted.tokens, wanted.best_step)
    assert not list((home / "other-2").glob("runs/**/*.safetensors")), "the second machine keeps nothing"
    assert not (home / "other-2" / "runs").exists() or not list((home / "other-2" / "runs").iterdir())


@pytest.mark.workflow
def test_a_machine_that_answers_no_more_is_told_after_a_while(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_TIMEOUT", "4")
    run, port = started(home, "silent", *settings(place(0, 1))), free_port()
    other = Other(home, port, "other-4")

    def freeze(values: dict[str, Any]) -> None:
        if values["kind"] == "checkpoint":
            (rank,) = psutil.Process(other.process.pid).children()
            rank.suspend()

    try:
        with pytest.raises(TrainingError, match="process 0 lost touch with the others") as raised:
            train(run, port, [], freeze)
        assert "let nothing through for 4 s" in str(raised.value.hint)
        assert other.end() != 0, "the frozen process was ended"
        assert "machine 0 (" in other.said()
    finally:
        other.kill()


@pytest.mark.workflow
def test_other_rows_on_the_second_machine_are_refused_on_both(home: Path) -> None:
    run, port = started(home, "rows", *settings(place(0, 1))), free_port()
    other = Other(home, port, "other-3")
    rows = (home / "other-3" / "train.jsonl").read_text().splitlines()
    (home / "other-3" / "train.jsonl").write_text("\n".join(rows[1:]) + "\n")
    try:
        with pytest.raises(UsageError, match=r"the training rows of process 1 are not those of the first"):
            train(run, port, [], lambda _: None, far=True)
        assert other.end() == UsageError.exit_code
        assert "the training rows of process 1" in other.said()
    finally:
        other.kill()


def test_a_place_is_read_from_flags_or_from_torchrun() -> None:
    found = place_of(2, 1, "node0:29501", 4)
    assert found == Place(nodes=2, rank=1, host="node0", port=29501, devices=4)
    assert settings(found) == ("training.nodes=2", "training.devices=8")
    assert place_of(2, 0, "[fd00::1]:1234", 1) == Place(nodes=2, rank=0, host="fd00::1", port=1234, devices=1)
    assert place_of(2, 0, "node0", 1) == Place(nodes=2, rank=0, host="node0", port=29400, devices=1)
    assert place_of(1, 0, "node0:1", 4) is None
    assert place_of(None, None, None, 4, environment={}) is None
    torchrun = {
        "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "1", "GROUP_WORLD_SIZE": "3",
        "GROUP_RANK": "2", "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "0", "MASTER_ADDR": "node0",
        "MASTER_PORT": "29400", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    found = place_of(None, None, None, None, environment=torchrun)
    assert found == Place(
        nodes=3, rank=2, host="node0", port=29400, devices=8, hosted=True, key="luthier/job/1"
    )
    assert not superfluous(torchrun)
    assert superfluous({**torchrun, "LOCAL_RANK": "3"})
    assert place_of(None, None, None, None, environment={**torchrun, "GROUP_WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((2, None, "a:1", 1), "--node-rank is missing"),
        ((2, 0, None, 1), "--rendezvous is missing"),
        ((2, 2, "a:1", 1), "it is 0 to 1"),
        ((None, 0, "a:1", 1), "go with --nodes"),
        ((2, 0, "a:port", 1), "not an address"),
        ((2, 0, "a:70000", 1), "not an address"),
        ((2, 0, "a:1", 0), "--gpus 0"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        place_of(*words, environment={})


def test_devices_are_counted_by_machine(home: Path) -> None:
    two = parse_hardware("2xh100")
    check_devices(load_recipe(home / "recipe.yaml", ("training.devices=4", "training.nodes=2")), two, "cuda")
    with pytest.raises(UsageError, match="on each of 2 machines: this machine has 2"):
        check_devices(
            load_recipe(home / "recipe.yaml", ("training.devices=8", "training.nodes=2")), two, "cuda"
        )
    with pytest.raises(UsageError, match="cannot be shared out equally over 2 nodes"):
        load_recipe(home / "recipe.yaml", ("training.devices=3", "training.nodes=2"))


def test_machines_that_do_not_fit_together_are_refused(home: Path, tmp_path: Path) -> None:
    crew = Crew(RunDirectory(tmp_path), place(0, 1), None, lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=r"has Luthier 0\.0\.0"):
        crew._joined(Joined(node=1, host="b", version="0.0.0"), ())
    from luthier.version import __version__

    with pytest.raises(Unsupported, match="different kinds wait for the slowest"):
        crew._joined(Joined(node=1, host="b", version=__version__, accelerators=("T4",)), ("H100",))
    with pytest.raises(Unsupported, match="no GPU on machine 1"):
        crew._joined(Joined(node=1, host="b", version=__version__), ("H100",))
    assert devices_here(place(0, 1)) == ()


def test_nobody_comes_and_nobody_is_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_PATIENCE", "1")
    run = started(home, "waits", *settings(place(0, 1)))
    with pytest.raises(TrainingError, match="machine 1 of 2 did not come"):
        train(run, free_port(), [], lambda _: None)
    began = time.monotonic()
    with pytest.raises(TrainingError, match="nobody answered at 127"):
        join(place(1, free_port()), home / "recipe.yaml", (), say=lambda _: None, offline=True)
    assert time.monotonic() - began < 60


def test_a_used_port_is_told(home: Path) -> None:
    from luthier.training.meeting import Meeting

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot meet at 127"):
            Meeting(place(0, taken.getsockname()[1]), keeper=True, patience=1)

"""How a run ends that breaks off in its work: what its status says, and with which code."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.cli.main import main
from luthier.runs import directory, workflow
from luthier.runs.directory import RunDirectory
from luthier.runs.prepare import create_run, prepare
from luthier.runs.process import current_state
from luthier.runs.worker import RESERVE, work
from luthier.schema.load import load_recipe
from luthier.schema.run import Status, WorkerIdentity
from tiny import save_tiny_model, write_recipe


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    save_tiny_model(tmp_path / "model")
    write_recipe(tmp_path, tmp_path / "model", max_steps=2)
    prepared = prepare(load_recipe(tmp_path / "recipe.yaml", ("export.gguf=[]",)), say=lambda _: None)
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    yield create_run(prepared, root=tmp_path / "runs", run_id="broken")
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DoesNotFit", "whole checkpoints are untouched",
         "luthier train --resume broken", 3),
        (RuntimeError("CUDA error: unknown error\nand more"), "TrainingError",
         "the GPU has stopped answering", "luthier train --resume broken", 1),
        (RuntimeError("shapes cannot be multiplied"), "RuntimeError", "shapes cannot be multiplied",
         "luthier runs logs broken", 1),
    ],
    ids=["full disk", "GPU gone", "bug"],
)  # fmt: skip
def test_what_breaks_off_has_words_and_a_way_on(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, *, error: Exception, kind: str, message: str,
    hint: str, code: int,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(workflow, "execute", fail)
    assert work(run.path) == code
    status = run.status
    assert status.state == "failed"
    assert status.failure is not None
    assert status.failure.kind == kind
    assert message in status.failure.message
    assert hint in str(status.failure.hint)
    assert status.failure.exit_code == code


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_still_takes_the_words_for_it(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RunDirectory.set_status

    def full(self: RunDirectory, status: Status) -> None:
        if (self.path / RESERVE).exists():
            no_room()
        write(self, status)

    def fill_up(*_: object) -> None:
        assert (run.path / RESERVE).stat().st_size == 1 << 16
        monkeypatch.setattr(RunDirectory, "set_status", full)
        monkeypatch.setattr(RunDirectory, "append", no_room)
        no_room()

    monkeypatch.setattr(workflow, "execute", fill_up)
    assert work(run.path) == 3
    assert run.status.state == "failed"
    assert run.status.failure is not None
    assert "the disk is full" in run.status.failure.message
    assert not (run.path / RESERVE).exists()


def test_a_lost_run_is_told_where_nothing_can_be_written(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = WorkerIdentity(pid=1 << 30, started=1.0, boot="another")
    run.set_status(Status(state="running", worker=gone))
    monkeypatch.setattr(RunDirectory, "set_status", no_room)
    assert current_state(run) == "lost"
    monkeypatch.setattr(directory, "list_runs", no_room)
    with pytest.raises(SystemExit) as ended:
        main(["runs", "show", "latest"])
    assert ended.value.code == 3
    assert "the disk is full" in capsys.readouterr().err

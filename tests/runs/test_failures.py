"""How a run ends that breaks off in its work: what its status says, and with which code."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.runs import workflow
from luthier.runs.directory import RunDirectory
from luthier.runs.prepare import create_run, prepare
from luthier.runs.worker import work
from luthier.schema.load import load_recipe
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

"""A real training whose worker is killed under an open page: shown as lost, resumed from there, and done."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command import luthier
from luthier.runs.directory import RunDirectory
from studio_browser import Server, logged_in
from tiny import save_tiny_model, write_recipe, write_rows

pytestmark = pytest.mark.timeout(300)


def kinds(run: RunDirectory) -> list[dict[str, Any]]:
    path = run.path / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Server]:
    """A studio of its own: nothing else runs there, so that a resumed run need not wait."""
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


def test_a_killed_training_is_resumed_from_the_page(chromium: Any, studio: Server) -> None:
    folder = studio.folder
    save_tiny_model(folder / "model")
    write_rows(folder / "rows.jsonl", 200)
    write_recipe(folder, folder / "model")
    luthier(
        folder, "train", "recipe.yaml", "--detach", "name=fallen", "training.epochs=12",
        "training.checkpoint_every=20", "training.evaluate_every=200", "evaluation.max_rows=4",
        "evaluation.probe_rows=0", "evaluation.floor_rows=0", "export=null",
    )  # fmt: skip
    (found,) = [path for path in (folder / "runs").iterdir() if path.name.startswith("fallen")]
    run = RunDirectory(found)
    until = time.monotonic() + 120
    while not any(line["kind"] == "checkpoint" for line in kinds(run)):
        assert time.monotonic() < until
        time.sleep(0.1)
    page = logged_in(chromium, studio)
    page.goto(f"{studio.url}/runs/{run.id}")
    page.wait_for_selector(".u-wrap canvas")
    worker = run.status.worker
    assert worker is not None
    assert run.status.state == "running"
    os.kill(worker.pid, signal.SIGKILL)
    page.wait_for_selector("text=gone without a word", timeout=30_000)
    page.get_by_role("button", name="Resume").first.click()
    until = time.monotonic() + 150
    while run.status.state != "done":
        assert time.monotonic() < until, run.status
        time.sleep(0.2)
    lines = kinds(run)
    assert any(line["kind"] == "resumed" for line in lines)
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert max(steps) == lines[-1].get("total_steps", max(steps))
    page.goto(f"{studio.url}/runs/{run.id}")
    page.wait_for_selector(".u-wrap canvas")
    assert page.get_by_text("done").count()

"""A studio over a folder of runs, asked without a network: helper of tests/studio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from luthier.runs.directory import RunDirectory
from luthier.schema.load import recipe_from
from luthier.schema.run import Status
from luthier.studio.access import Access
from luthier.studio.app import create_app
from luthier.studio.settings import StudioSettings

ORIGIN = "http://127.0.0.1:7860"
LIVE = "ws://127.0.0.1:7860/live"


def settings_in(folder: Path) -> StudioSettings:
    """Settings with every folder below one."""
    return StudioSettings(runs=folder / "runs", home=folder / "studio")


@contextmanager
def studio(folder: Path, *, logged_in: bool = True, **settings: Any) -> Iterator[TestClient]:
    """A client of a studio in a folder; logged in as a browser of this machine unless told otherwise."""
    chosen = StudioSettings(**{"runs": folder / "runs", "home": folder / "studio", **settings})
    with TestClient(create_app(chosen), base_url=ORIGIN, follow_redirects=False) as client:
        client.headers["accept"] = "text/html, application/json"
        if logged_in:
            client.headers["origin"] = ORIGIN
            token = Access(chosen.home).token()
            assert client.post("/api/v1/login", json={"token": token}).status_code == 200
        yield client


def made_run(
    folder: Path, run_id: str = "first", *, steps: int = 20, status: Status | None = None, **recipe: Any
) -> RunDirectory:
    """A run with a recipe, a status and metrics as a worker writes them, without a worker."""
    values = {
        "name": run_id,
        "model": {"id": "acme/tiny"},
        "data": {"train": ["rows.jsonl"]},
        **recipe,
    }
    run = RunDirectory.create(recipe_from(values, ()), root=folder / "runs", run_id=run_id)
    for step in range(1, steps + 1):
        run.append(
            "metrics",
            {
                "kind": "step",
                "step": step,
                "total_steps": steps,
                "epoch": step / steps,
                "loss": 3.0 - step / steps,
                "learning_rate": 2e-4,
                "grad_norm": 0.5,
                "tokens": 1024,
                "tokens_per_second": 300.0,
                "memory": 10**9,
                "peak_memory": 2 * 10**9,
                "seconds": 1.0,
                "seconds_left": float(steps - step),
            },
        )
        if step % 5 == 0:
            run.append(
                "metrics", {"kind": "validation", "step": step, "loss": 3.1 - step / steps, "best": True}
            )
    run.set_status(status or Status(state="done", step=steps, total_steps=steps))
    return run

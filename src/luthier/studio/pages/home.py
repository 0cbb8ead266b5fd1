"""Home: what runs, what waits, what was done last, and the way to a first export."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.runs.directory import RunDirectory
from luthier.runs.process import ACTIVE
from luthier.runs.queue import Queue
from luthier.schema.queue import OPEN
from luthier.studio.services.metrics import sampled
from luthier.studio.services.runs import RunRow
from luthier.studio.web import render, settings_of
from luthier.words import duration

router = APIRouter()


@router.get("/")
def home(request: Request) -> Response:
    """What runs, what waits, what was done last."""
    settings = settings_of(request)
    queue = Queue(settings.runs)
    queue.settle()
    rows = request.app.state.index.rows()
    running = [_working(RunDirectory(settings.runs / row.id), row) for row in rows if row.state in ACTIVE]
    over = [row for row in rows if row.state not in ACTIVE]
    context = {
        "running": [one for one in running if one["row"].state != "queued"],
        "jobs": queue.jobs(OPEN),
        "leases": queue.leases(),
        "recent": over[:5],
        "total": len(rows),
        "steps": _first_steps(request, rows),
    }
    return render(request, "home.html", context, page="home")


def _working(run: RunDirectory, row: RunRow) -> dict[str, Any]:
    found = sampled(run.path / "metrics.jsonl", most=180)
    last = found["last"] or {}
    left = last.get("seconds_left") if row.stage == "train" else None
    return {
        "row": row,
        "left": None if left is None else duration(left),
        "loss": last.get("loss"),
        "spark": sparkline([value for value in found["columns"]["loss"] if value is not None]),
    }


def sparkline(values: list[float], width: int = 160, height: int = 32) -> str:
    """A series as the points of an SVG polyline."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = width / (len(values) - 1)
    return " ".join(
        f"{place * step:.1f},{height - 2 - (value - low) / span * (height - 4):.1f}"
        for place, value in enumerate(values)
    )


def _first_steps(request: Request, rows: list[RunRow]) -> list[tuple[str, str, bool]]:
    """The way to a first export, until there is one: words, where to go, whether it is done."""
    settings = settings_of(request)
    exported = any((settings.runs / row.id / "artifacts.json").is_file() for row in rows)
    if exported:
        return []
    uploads = settings.uploads
    uploaded = uploads.is_dir() and any(uploads.iterdir())
    return [
        ("Ask for advice, or pick a model", "/advise", bool(rows)),
        (
            "Upload data and look at it",
            "/datasets",
            bool(rows) or uploaded,
        ),
        ("Start a run", "/runs/new", bool(rows)),
        ("See whether it became better", "/evals", any(row.verdict for row in rows)),
        ("Export it", "/exports", False),
    ]

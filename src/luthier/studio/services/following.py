"""What is new of runs and the queue since a page last heard of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from luthier.runs.directory import RunDirectory
from luthier.runs.process import ACTIVE, current_state
from luthier.runs.queue import Queue
from luthier.schema.queue import OPEN
from luthier.studio.services.metrics import tail
from luthier.studio.services.runs import find
from luthier.words import duration

Asked = dict[str, Any]


def news_of_jobs(app: FastAPI, asked: Asked) -> dict[str, Any] | None:
    """Whether the queue or the state of any run has changed: a page then asks for itself again."""
    settings = app.state.settings
    queue = Queue(settings.runs)
    queue.settle()
    jobs = [(one.id, one.state, one.position, one.run, one.note, one.name) for one in queue.jobs(OPEN)]
    runs = [(row.id, row.state, row.verdict) for row in app.state.index.rows()]
    now = str(hash((tuple(jobs), tuple(runs))))
    before = asked.get("told")
    asked["told"] = now
    return None if before in (None, now) else {"changed": True}


def news_of_run(app: FastAPI, asked: Asked) -> dict[str, Any] | None:
    """A run's state, and the steps behind the offset; None where nothing has changed."""
    run = _run(app, asked)
    offset = asked.get("offset")
    path = run.path / "metrics.jsonl"
    if not isinstance(offset, int) or offset < 0:
        offset = path.stat().st_size if path.exists() else 0
    news = tail(path, offset)
    asked["offset"] = news["offset"]
    state, status = current_state(run), run.status
    work = _work(run, asked) if state in ACTIVE and status.stage != "train" else None
    # A status is written less often than steps are: a page never goes back.
    last = news.pop("last") or {}
    asked["step"] = max(status.step, int(asked.get("step") or 0), int(last.get("step") or 0))
    words = {
        "state": state,
        "stage": status.stage,
        "step": asked["step"],
        "total": status.total_steps,
        "work": work,
    }
    if asked.get("told") == words and not news["rows"] and not news["checks"]:
        return None
    asked["told"] = words
    if last:
        left = last.get("seconds_left")
        words = words | {
            "total": last.get("total_steps"),
            "left": None if left is None else duration(left),
            "peak": last.get("peak_memory"),
        }
    return {**words, **news}


def news_of_log(app: FastAPI, asked: Asked) -> dict[str, Any] | None:
    """What was added to a run's log behind the offset."""
    run = _run(app, asked)
    offset = asked.get("offset")
    try:
        with (run.path / "log.txt").open("rb") as file:
            end = file.seek(0, 2)
            if not isinstance(offset, int) or not 0 <= offset <= end:
                offset = end
            file.seek(max(offset, end - 100_000))
            text = file.read()
    except FileNotFoundError:
        return None
    asked["offset"] = end
    return {"text": text.decode("utf-8", errors="replace"), "offset": end} if text else None


def _run(app: FastAPI, asked: Asked) -> RunDirectory:
    found = asked.get("found")
    if isinstance(found, RunDirectory):
        return found
    run = find(app.state.settings, str(asked.get("id", "")))
    asked["found"] = run
    return run


def _work(run: RunDirectory, asked: Asked) -> str | None:
    """What the run's last event says that it is at: answers judged, prompts compared."""
    place = int(asked.get("events", 0))
    said = asked.get("work")
    for event, offset in run.lines("events", place):
        place = offset
        if event.get("event") == "progress":
            said = f"{event.get('what')}: {event.get('done')} of {event.get('total')}"
        elif event.get("event") == "stage":
            said = None
    asked["events"], asked["work"] = place, said
    return said

"""One run: what it does now, its curves, and everything it has written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from luthier.errors import LuthierError
from luthier.runs.directory import RunDirectory
from luthier.runs.lineage import changes
from luthier.runs.process import ACTIVE, current_state
from luthier.runs.queue import Queue
from luthier.runs.stages import load_artifacts, load_comparisons, load_estimate
from luthier.schema.data import DataReport
from luthier.schema.recipe import Recipe
from luthier.schema.results import TrainResult
from luthier.schema.run import Failure, Origin, Status
from luthier.studio.api.runs import last_lines
from luthier.studio.services import seen
from luthier.studio.services.checkpoints import checkpoints
from luthier.studio.services.exports import parity_words
from luthier.studio.services.runs import find, predicted_peak, tree_of
from luthier.studio.web import figure, render, settings_of
from luthier.words import duration, memory

router = APIRouter()
TABS = {
    "charts": "Charts",
    "samples": "Samples",
    "batch": "Batch as seen",
    "checkpoints": "Checkpoints",
    "config": "Config",
    "log": "Log",
    "environment": "Environment",
}


@dataclass(frozen=True, slots=True)
class Mend:
    """A way out of a failure, as a button: the same run again with other settings, or from where it stood."""

    words: str
    body: dict[str, Any]


@router.get("/runs/latest")
def latest(request: Request) -> Response:
    """The newest run."""
    return RedirectResponse(f"/runs/{find(settings_of(request), 'latest').id}", 303)


@router.get("/runs/{run_id}")
def run(
    request: Request,
    run_id: str,
    tab: Annotated[str, Query(max_length=20)] = "charts",
    against: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """One run, with the tab that the URL names."""
    settings = settings_of(request)
    found = find(settings, run_id)
    tab = tab if tab in TABS else "charts"
    state, status, recipe = current_state(found), found.status, found.recipe
    context = {
        # Before any row is read: what is told later begins here, so nothing falls between.
        "offset": _size(found, "metrics.jsonl"),
        "run": found,
        "recipe": recipe,
        "state": state,
        "status": status,
        "active": state in ACTIVE,
        "waiting": Queue(settings.runs).of_run(found.id) if state == "queued" else None,
        "tabs": TABS,
        "tab": tab,
        "tiles": _tiles(found, status),
        "origin": found.stage("origin", Origin),
        "family": tree_of(request.app.state.index.rows(), found.id),
        "comparisons": load_comparisons(found),
        "failure": status.failure,
        "cause": _cause(found, state, status.failure),
        "mends": _mends(found, recipe, state, status.failure),
        "has_report": (found.path / "report.html").is_file(),
        "steps_kept": [one.step for one in checkpoints(found)] if state not in ACTIVE else [],
        "log": last_lines(found, 30) if state in ("failed", "lost") else "",
        **_tab(request, found, tab, recipe, against),
    }
    return render(request, "run.html", context, page="runs")


def _tab(request: Request, run: RunDirectory, tab: str, recipe: Recipe, against: str) -> dict[str, Any]:
    """What the open tab shows; nothing is read for the others."""
    if tab == "samples":
        return {"samples": seen.samples(run), "course": seen.course(run)}
    if tab == "batch":
        try:
            return {"rows": seen.batch(run), "refused": None}
        except LuthierError as error:
            return {"rows": [], "refused": error}
    if tab == "checkpoints":
        return {"checkpoints": checkpoints(run), "artifacts": load_artifacts(run), "parity": parity_words}
    if tab == "config":
        others = [row for row in request.app.state.index.rows() if row.id != run.id]
        other = find(settings_of(request), against) if against else None
        return {
            "yaml": (run.path / "recipe.yaml").read_text(encoding="utf-8"),
            "sources": recipe.sources,
            "others": others[:200],
            "against": against,
            "changed": None if other is None else changes(other.recipe, recipe),
        }
    if tab == "log":
        return {"text": last_lines(run, 500), "log_end": _size(run, "log.txt")}
    if tab == "environment":
        return {
            "env": run.stage_values("env") or {},
            "hardware": run.stage_values("hardware") or {},
            "model": run.stage_values("model") or {},
            "data": run.stage("data", DataReport),
        }
    return {}


def _size(run: RunDirectory, name: str) -> int:
    path = run.path / name
    return path.stat().st_size if path.exists() else 0


def _tiles(run: RunDirectory, status: Status) -> list[tuple[str, str, str, str]]:
    """Label, value, unit, id: the figures of the last step, and what was predicted beside the memory."""
    last, check = _last(run)
    train, estimate = run.stage("train", TrainResult), load_estimate(run)
    peak = (train.peak_memory if train else None) or last.get("peak_memory")
    predicted = None if estimate is None else predicted_peak(run, estimate)
    speed = train.tokens_per_second if train else last.get("tokens_per_second")
    best = train.best_validation_loss if train else None
    left = last.get("seconds_left") if status.stage == "train" else None
    step = max(status.step, int(last.get("step") or 0)) if status.state == "running" else status.step
    took = sum(status.seconds.values())
    ended = status.state in ("done", "stopped", "failed", "lost")
    return [
        ("Step", f"{step:,}", f"of {status.total_steps:,}" if status.total_steps else "", "t-step"),
        ("Train loss", figure(last.get("loss")), "", "t-loss"),
        (
            "Eval loss",
            figure(best if best is not None else check),
            "best" if best is not None else "",
            "t-eval",
        ),
        ("Throughput", "" if not speed else f"{speed:,.0f}", "tok/s", "t-speed"),
        (
            "Peak memory, GiB" if predicted is None else "Peak of predicted, GiB",
            "" if not peak else memory(peak).removesuffix(" GiB"),
            "" if predicted is None else f"of {memory(predicted).removesuffix(' GiB')}",
            "t-memory",
        ),
        ("Took in all", duration(took), "", "t-left")
        if ended
        else ("Time left", "" if left is None else duration(left), "", "t-left"),
    ]


def _last(run: RunDirectory) -> tuple[dict[str, Any], float | None]:
    """The last step's row and the last loss on held-out rows, from the end of the file."""
    last: dict[str, Any] = {}
    check: float | None = None
    start = max(0, _size(run, "metrics.jsonl") - 40_000)
    for values, _ in run.lines("metrics", start):
        if values.get("kind") == "step":
            last = values
        elif values.get("kind") == "validation":
            check = values.get("loss")
    return last, check


def _cause(run: RunDirectory, state: str, failure: Failure | None) -> str | None:
    """Why a run ended early, in one sentence."""
    if state == "lost":
        kept = checkpoints(run)
        saved = f"; step {kept[0].step} is saved" if kept else "; no checkpoint was written yet"
        return f"Its worker is gone without a word (killed, out of memory, or the machine restarted){saved}."
    return failure.message if failure is not None and state == "failed" else None


def _mends(run: RunDirectory, recipe: Recipe, state: str, failure: Failure | None) -> list[Mend]:
    """Ways out of a failure that are one click."""
    resume = Mend("Resume", {"kind": "resume", "run": run.id, "first": True})
    if state in ("lost", "stopped"):
        return [resume]
    if state != "failed" or failure is None:
        return []

    def again(words: str, *overrides: str) -> Mend:
        body = {
            "kind": "train",
            "source": "clone",
            "run": run.id,
            "overrides": list(overrides),
            "first": True,
        }
        return Mend(words, body)

    training = recipe.training
    found: list[Mend] = []
    words = f"{failure.kind} {failure.message}".lower()
    if "memory" in words or failure.kind == "DoesNotFit":
        micro = training.micro_batch_size or 1
        if micro > 1:
            found.append(
                again(f"Halve the micro-batch to {micro // 2}", f"training.micro_batch_size={micro // 2}")
            )
        if training.activation_checkpointing != "full":
            found.append(again("Recompute activations", "training.activation_checkpointing=full"))
        if (training.sequence_length or 0) > 512:
            half = training.sequence_length // 2  # type: ignore[operator]
            cut = ("data.over_length=truncate",)
            found.append(again(f"Cut rows to {half:,} tokens", f"training.sequence_length={half}", *cut))
    if ("nan" in words or "not a number" in words or "diverge" in words) and training.learning_rate:
        rate = training.learning_rate / 3
        found.append(again(f"Learning rate {rate:.2g}", f"training.learning_rate={rate:.3g}"))
    return [*found, resume]

"""What runs have written for use elsewhere, and what more they could write: sizes before, steps meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.catalog.purposes import check_supported, spec_of
from luthier.errors import LuthierError, UsageError
from luthier.exporting.space import check_space, largest_gguf_size, parameter_count
from luthier.llamacpp.setup import converter, is_set_up
from luthier.planning.licence_gate import hold_to_licence
from luthier.runs.directory import RunDirectory, list_runs
from luthier.runs.process import ACTIVE, current_state
from luthier.runs.report import words
from luthier.runs.stages import load_artifacts
from luthier.schema.load import export_from
from luthier.schema.queue import QueuedJob
from luthier.schema.recipe import ExportChoice, Full, GgufType
from luthier.schema.results import Artifact, TrainResult
from luthier.schema.run import State
from luthier.studio.problems import Conflict, NotFound
from luthier.studio.services.jobs import AskedJob, open_jobs, submit
from luthier.studio.settings import StudioSettings

TYPES: dict[GgufType, str] = {
    "F16": "Every weight in 16 bits: the reference that others are quantised from",
    "BF16": "16 bits with the exponent of training: for models that were trained in bf16",
    "Q8_0": "8 bits: hardly told from 16, half the size",
    "Q6_K": "6 bits: close to Q8_0",
    "Q5_K_M": "5 bits: between Q4 and Q6",
    "Q4_K_M": "4 bits: the usual choice for a laptop",
    "Q4_K_S": "4 bits, somewhat smaller and coarser",
    "Q3_K_M": "3 bits: where memory is short; look at its quality",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that a run could write."""

    key: str
    """``adapter``, ``merged``, ``onnx`` or a type of GGUF: what the form sends."""
    label: str
    about: str
    bytes: int | None
    """What it takes at most; None where that cannot be told before."""
    there: Artifact | None
    """What was written of it before; writing it again replaces it."""
    refused: str = ""
    """Why this run cannot write it; empty where it can."""


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of an export's work."""

    words: str
    done: int
    total: int
    running: bool


@dataclass(frozen=True, slots=True)
class ExportFile:
    """A file that can be fetched."""

    path: str
    """Relative to the run's ``artifacts``."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Written:
    """One artifact with its files and what was measured of it."""

    artifact: Artifact
    files: tuple[ExportFile, ...]
    parity: str
    quality: str
    kept: str
    whole: bool
    """Whether its files are still there."""


@dataclass(frozen=True, slots=True)
class ExportView:
    """One run as its export page shows it."""

    run: RunDirectory
    state: State
    written: tuple[Written, ...]
    options: tuple[Option, ...]
    free: int
    scratch: int
    """Bytes that GGUF files need besides, while they are written."""
    steps: tuple[Step, ...]
    exporting: bool
    failure: str
    waiting: QueuedJob | None
    """An export of this run that is in the queue."""
    converter: bool
    """Whether llama.cpp's converter is here."""


def exported(runs: Path) -> list[tuple[RunDirectory, Written]]:
    """Every artifact of every run, newest run first."""
    return [(run, one) for run in list_runs(runs) for one in written(run)]


def exportable(runs: Path) -> list[RunDirectory]:
    """Runs with a trained checkpoint, newest first."""
    return [run for run in list_runs(runs) if (run.path / "train.json").is_file()]


def written(run: RunDirectory) -> tuple[Written, ...]:
    """What a run has written."""
    return tuple(_written(run, artifact) for artifact in load_artifacts(run))


def _written(run: RunDirectory, artifact: Artifact) -> Written:
    root = run.path / "artifacts"
    path = run.path / artifact.path
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    there = [p for p in files if p.is_file() and p.is_relative_to(root)]
    quality, kept = "", ""
    if artifact.quality is not None:
        q = artifact.quality
        share = words.is_share(q.metric, q.score)
        quality = (
            f"{words.score(q.metric, q.score.value, share=share)} ({words.in_sentence(q.metric)}, {q.split})"
        )
        if q.kept is not None:
            kept = f"{q.kept * 100:.0f} %"
    return Written(
        artifact=artifact,
        files=tuple(ExportFile(p.relative_to(root).as_posix(), p.stat().st_size) for p in there),
        parity=parity_words(artifact),
        quality=quality,
        kept=kept,
        whole=bool(there),
    )


def parity_words(artifact: Artifact) -> str:
    """How equal an artifact's answers are to the trained model's, in words; empty where nobody looked."""
    p = artifact.parity
    if p is None:
        return ""
    if p.largest_difference is not None:
        return f"largest difference {words.figure(p.largest_difference, 2)} on {p.prompts} inputs"
    kl = "" if p.mean_kl is None else f", KL {p.mean_kl:.4f} nats"
    return f"{p.equal_tokens} of {p.compared_tokens} tokens on {p.prompts} prompts{kl}"


def file_of(run: RunDirectory, name: str) -> Path:
    """A file below the run's artifacts. Errors: NotFound, also for what lies or points outside."""
    root = (run.path / "artifacts").resolve()
    path = (root / name.replace("\0", "")).resolve()
    # The system refuses to look up a name that no file can have.
    odd = "\0" in name or any(len(part.encode()) > 255 for part in name.split("/"))
    if odd or not path.is_relative_to(root) or not path.is_file():
        raise NotFound(f"{run.id} has no such file", hint=f"see /exports/{run.id}")
    return path


def export_view(settings: StudioSettings, run: RunDirectory) -> ExportView:
    """All that a run's export page says."""
    state = current_state(run)
    steps, exporting = _steps(run, state)
    options = _options(run)
    shipped_f16 = any(o.key in ("F16", "BF16") and o.there is not None for o in options)
    scratch = 0 if shipped_f16 else _largest(run, "F16") or 0
    failure = run.status.failure if run.status.stage == "ship" else None
    return ExportView(
        run=run,
        state=state,
        written=written(run),
        options=tuple(options),
        free=shutil.disk_usage(run.path).free,
        scratch=scratch,
        steps=steps,
        exporting=exporting,
        failure="" if failure is None else words.clean(f"{failure.message}. {failure.hint or ''}", 1_000),
        waiting=next(
            (job for job in open_jobs(settings) if job.run == run.id and job.kind == "export"), None
        ),
        converter=is_set_up(),
    )


def _source(run: RunDirectory) -> Path | None:
    """A folder with weights of the size that the merged model will have."""
    facts = run.stage_values("model") or {}
    for folder in (run.path / "artifacts" / "merged", Path(facts.get("path") or "/nonexistent")):
        if any(folder.glob("*.safetensors")):
            return folder
    return None


def _largest(run: RunDirectory, kind: GgufType) -> int | None:
    folder = _source(run)
    try:
        return None if folder is None else largest_gguf_size(folder, kind)
    except LuthierError:
        return None


def _options(run: RunDirectory) -> list[Option]:
    recipe = run.recipe
    there = {artifact.kind: artifact for artifact in load_artifacts(run)}
    trained = run.stage("train", TrainResult)
    folder = _source(run)
    found = []
    full = "a full fine-tuning has no adapter" if isinstance(recipe.method, Full) else ""
    size = None if trained is None or full else trained.trainable_parameters * 4
    about = "The low-rank weights alone, in PEFT's format: needs the base model beside it"
    found.append(Option("adapter", "Adapter", about, size, there.get("adapter"), full))
    merged = None
    if folder is not None:
        with contextlib.suppress(LuthierError):
            merged = parameter_count(folder) * (4 if recipe.model.dtype == "float32" else 2)
    about = "One folder of safetensors, as transformers and vLLM read it"
    found.append(Option("merged", "Merged weights", about, merged, there.get("merged")))
    if spec_of(recipe.task).answers != "chat":
        refused = _refusal(run, ExportChoice(adapter=False, merged=False, onnx=True))
        about = "For onnxruntime, checked against the trained model"
        found.append(Option("onnx", "ONNX graph", about, merged, there.get("onnx"), refused))
    for kind, about in TYPES.items():
        refused = _refusal(run, ExportChoice(adapter=False, merged=False, gguf=(kind,)))
        found.append(
            Option(kind, f"GGUF {kind}", about, _largest(run, kind), there.get(f"gguf:{kind}"), refused)
        )
    return found


def _refusal(run: RunDirectory, wanted: ExportChoice) -> str:
    try:
        check_supported(run.recipe.model_copy(update={"export": wanted}))
    except LuthierError as error:
        return error.message
    return ""


def export_choice(kinds: Iterable[str]) -> ExportChoice:
    """What a form or the API asked for. Errors: RecipeError with the nearest type; UsageError for nothing."""
    wanted = list(dict.fromkeys(kinds))
    if not wanted:
        raise UsageError("nothing was chosen to export", hint="choose at least one kind of file")
    plain = ("adapter", "merged", "onnx")
    ggufs = tuple(kind.removeprefix("gguf:") for kind in wanted if kind not in plain)
    return export_from(**{kind: kind in wanted for kind in plain}, gguf=ggufs)


def start_export(settings: StudioSettings, run: RunDirectory, kinds: Sequence[str]) -> QueuedJob:
    """Enter the job that writes and checks them into the queue; it outlives the studio.

    Errors: Conflict where the run is being worked on, DoesNotFit without space, LicenceBroken,
    ToolchainError without the converter, and those of ``export_choice``.
    """
    wanted = export_choice(kinds)
    if current_state(run) in ACTIVE:
        raise Conflict(f"{run.id} is being worked on", hint="wait for its end, or stop it first")
    if not (run.path / "train.json").is_file():
        raise Conflict(f"{run.id} is not trained yet", hint=f"go on with: luthier train --resume {run.id}")
    recipe = run.recipe
    check_supported(recipe.model_copy(update={"export": wanted}))
    hold_to_licence(recipe, "exported", named=(run.stage_values("model") or {}).get("licence"))
    if wanted.gguf:
        converter()
    check_space(run.path / "artifacts", _needs(run, wanted))
    return submit(settings, AskedJob(kind="export", run=run.id, export=wanted))


def _needs(run: RunDirectory, wanted: ExportChoice) -> dict[str, int]:
    """Bytes of each thing that will be written, as far as they are known."""
    chosen = {name for name in ("adapter", "merged", "onnx") if getattr(wanted, name)} | set(wanted.gguf)
    options = {option.key: option for option in _options(run)}
    needs = {options[key].label: options[key].bytes or 0 for key in options if key in chosen}
    if wanted.gguf:
        if not {"F16", "BF16"} & set(wanted.gguf):
            needs["F16 (removed afterwards)"] = _largest(run, "F16") or 0
        needs.setdefault("Merged weights", options["merged"].bytes or 0)
    return needs


TAIL = 512 * 1024
"""Bytes of the events' end in which an export's steps are looked for."""


def _steps(run: RunDirectory, state: State) -> tuple[tuple[Step, ...], bool]:
    """The last export's steps, and whether it is under way."""
    active = state in ACTIVE
    found: dict[str, tuple[int, int]] = {}
    began = False
    at_work: Literal["", "ship"] = ""
    for event in _last_events(run):
        kind, stage = event.get("event"), event.get("stage")
        if kind == "stage" and stage == "ship":
            if event.get("state") == "start":
                found, began, at_work = {}, True, "ship"
            else:
                at_work = ""
        elif stage == "ship" and kind == "progress":
            found[str(event.get("what"))] = (int(event.get("done") or 0), int(event.get("total") or 0))
        elif kind == "note" and began and at_work:
            found[str(event.get("text", "")).strip()] = (1, 1)
    exporting = active and (run.status.stage == "ship" or at_work == "ship")
    last = next(reversed(found), None)
    steps = tuple(
        Step(words.clean(name, 200), done, total, running=exporting and name == last and done < total)
        for name, (done, total) in found.items()
        if name
    )
    return steps, exporting


def _last_events(run: RunDirectory) -> list[dict[str, Any]]:
    try:
        with (run.path / "events.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the first line of the tail, or one torn by a crash
    return [one for one in found if isinstance(one, dict)]
